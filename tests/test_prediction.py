"""What a network may predict: conversions against diffusers and against each other."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_utils.prediction import (
    PREDICTION_TYPES, Denoiser, convert, min_snr_weight, target, to_epsilon, to_sample)
from diffusion_utils.schedule import make_schedule

quick = settings(deadline=None, max_examples=25)
types = st.sampled_from(PREDICTION_TYPES)
every_type = pytest.mark.parametrize("kind", PREDICTION_TYPES)
every_schedule = pytest.mark.parametrize("name", ["linear", "cosine"])


def noisy(name="linear", dtype=torch.float64, t=(0, 10, 500, 900), shape=(3, 8, 8)):
    """A batch with everything that belongs to it: x0, noise, x_t, alpha, sigma, t."""
    schedule, t = make_schedule(name), torch.tensor(t)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(len(t), *shape, generator=generator, dtype=dtype) * 2 - 1
    noise = torch.randn(len(t), *shape, generator=generator, dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(t, like=x0)
    return x0, noise, schedule.add_noise(x0, noise, t), alpha, sigma, t


@every_type
@every_schedule
def test_targets_are_read_back_as_picture_and_noise(kind, name):
    x0, noise, x_t, alpha, sigma, _ = noisy(name)
    output = target(kind, x0, noise, alpha, sigma)
    torch.testing.assert_close(to_sample(kind, output, x_t, alpha, sigma), x0)
    torch.testing.assert_close(to_epsilon(kind, output, x_t, alpha, sigma), noise)


def test_v_agrees_with_diffusers():
    x0, noise, _, alpha, sigma, t = noisy("cosine", torch.float32)
    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2").get_velocity(x0, noise, t)
    ours = target("v_prediction", x0, noise, alpha, sigma)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@every_type
@every_schedule
@pytest.mark.parametrize("t", [0, 500, 999])
def test_the_guess_agrees_with_diffusers(kind, name, t):
    beta_schedule = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[name]
    scheduler = DDIMScheduler(
        beta_schedule=beta_schedule, prediction_type=kind, clip_sample=False)
    scheduler.alphas_cumprod = make_schedule(name).alphas_cumprod  # theirs are float32
    scheduler.set_timesteps(1000)
    _, output, x_t, alpha, sigma, _ = noisy(name, t=(t,) * 4)
    theirs = scheduler.step(output, t, x_t).pred_original_sample
    torch.testing.assert_close(to_sample(kind, output, x_t, alpha, sigma), theirs)


@quick
@given(
    source=types, goal=types, name=st.sampled_from(["linear", "cosine"]), data=st.data(),
    T=st.integers(1, 2000), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_conversions_there_and_back_change_nothing(source, goal, name, data, T, shape, dtype):
    schedule, t = make_schedule(name, T), data.draw(st.integers(0, T - 1))
    x_t, output = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(t, like=x_t)
    there = convert(output, source, goal, x_t, alpha, sigma)
    back = convert(there, goal, source, x_t, alpha, sigma)
    assert there.shape == output.shape and there.dtype == dtype
    # Dividing by a small α or σ magnifies rounding; the magnified unit is the honest tolerance.
    unit = torch.finfo(dtype).eps * 50 / (alpha * sigma).min().item()
    torch.testing.assert_close(back, output, rtol=unit, atol=unit)
    # All expressions of one prediction are the same picture.
    torch.testing.assert_close(
        to_sample(goal, there, x_t, alpha, sigma), to_sample(source, output, x_t, alpha, sigma),
        rtol=unit, atol=unit / alpha.min().item())  # fmt: skip


@every_type
def test_converting_to_the_same_type_divides_by_nothing(kind):
    x = torch.randn(2, 3)
    zero, one = torch.zeros(2, 1), torch.ones(2, 1)
    assert convert(x, kind, kind, x, alpha=zero, sigma=one) is x


@quick
@given(
    snr=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), gamma=st.floats(0.1, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_weights_are_equal_once_expressed_on_the_picture(snr, gamma, dtype):
    snr = torch.tensor(snr, dtype=dtype)
    # An error e in x0 is an error √SNR·e in ε and √(SNR+1)·e in v; so is the loss, squared.
    on_x0 = min_snr_weight("sample", snr, gamma)
    torch.testing.assert_close(on_x0, torch.minimum(snr, torch.full_like(snr, gamma)))
    torch.testing.assert_close(min_snr_weight("epsilon", snr, gamma) * snr, on_x0)
    torch.testing.assert_close(min_snr_weight("v_prediction", snr, gamma) * (snr + 1), on_x0)


@every_type
def test_the_weighted_loss_is_the_same_whatever_is_predicted(kind):
    x0, noise, x_t, alpha, sigma, _ = noisy()
    guess = x0 + 0.1 * torch.randn_like(x0)
    snr = (alpha / sigma) ** 2
    output = convert(guess, "sample", kind, x_t, alpha, sigma)
    error = (output - target(kind, x0, noise, alpha, sigma)) ** 2
    expected = snr.clamp(max=5) * (guess - x0) ** 2
    torch.testing.assert_close(min_snr_weight(kind, snr) * error, expected)


@every_type
def test_the_weight_at_no_signal_is_the_limit(kind):
    limit = {"epsilon": 1.0, "sample": 0.0, "v_prediction": 0.0}[kind]
    assert min_snr_weight(kind, torch.zeros(1)).item() == limit


def test_snr_agrees_with_diffusers():
    t = torch.tensor([0, 5, 500, 900])
    theirs = compute_snr(DDIMScheduler(beta_schedule="linear"), t).double()
    # At t = 0 their float32 1 - ᾱ = 1e-4 keeps only four digits.
    torch.testing.assert_close(make_schedule("linear").snr(t), theirs, rtol=2e-3, atol=0)


@every_type
def test_a_denoiser_answers_with_the_picture(kind):
    x0, noise, x_t, alpha, sigma, t = noisy("cosine")
    answer = target(kind, x0, noise, alpha, sigma)
    seen = []

    def net(x, timesteps):
        seen.append((x, timesteps))
        return answer

    torch.testing.assert_close(Denoiser(net, make_schedule("cosine"), kind)(x_t, t), x0)
    assert seen[0][0] is x_t and seen[0][1] is t


@every_type
@every_schedule
def test_only_epsilon_is_refused_without_terminal_signal(kind, name):
    schedule = make_schedule(name, 50, zero_terminal_snr=True)
    if kind == "epsilon":
        with pytest.raises(ValueError, match="zero-terminal-SNR.*use 'v_prediction' or 'sample'"):
            Denoiser(torch.nn.Identity(), schedule, kind)
    else:
        guess = Denoiser(lambda x, t: x, schedule, kind)(torch.randn(2, 3), torch.tensor([49, 0]))
        assert torch.isfinite(guess).all()
    Denoiser(torch.nn.Identity(), make_schedule(name, 50), kind)  # with signal left all are fine


def test_unknown_types_are_refused_everywhere():
    x = torch.zeros(1, 1)
    calls = [
        lambda: target("noise", x, x, x, x),
        lambda: to_sample("noise", x, x, x, x),
        lambda: to_epsilon("noise", x, x, x, x),
        lambda: convert(x, "noise", "sample", x, x, x),
        lambda: convert(x, "sample", "noise", x, x, x),
        lambda: min_snr_weight("noise", x),
        lambda: Denoiser(torch.nn.Identity(), make_schedule(), "noise"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="unknown prediction_type 'noise': choose .*epsilon"):
            call()


@pytest.mark.parametrize("gamma", [0, -1.0])
def test_a_cut_that_is_not_positive_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma must be greater than 0, not {gamma}"):
        min_snr_weight("epsilon", torch.ones(1), gamma)
