"""What a network may predict: conversions against diffusers and against each other."""

import pytest
import torch
from diffusers import DDIMScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_utils.prediction import (
    PREDICTION_TYPES,
    Denoiser,
    convert,
    min_snr_weight,
    network_input,
    target,
    to_epsilon,
    to_sample,
)
from diffusion_utils.schedule import make_schedule

quick = settings(deadline=None, max_examples=25)
types = st.sampled_from(PREDICTION_TYPES)
every_type = pytest.mark.parametrize("kind", PREDICTION_TYPES)
every_schedule = pytest.mark.parametrize("name", ["linear", "cosine"])
every_strength = pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0, 2.0])


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
@every_strength
def test_targets_are_read_back_as_picture_and_noise(kind, name, sigma_data):
    x0, noise, x_t, alpha, sigma, _ = noisy(name)
    output = target(kind, x0, noise, alpha, sigma, sigma_data)
    torch.testing.assert_close(to_sample(kind, output, x_t, alpha, sigma, sigma_data), x0)
    torch.testing.assert_close(to_epsilon(kind, output, x_t, alpha, sigma, sigma_data), noise)


def test_v_agrees_with_diffusers():
    x0, noise, _, alpha, sigma, t = noisy("cosine", torch.float32)
    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2").get_velocity(x0, noise, t)
    ours = target("v_prediction", x0, noise, alpha, sigma)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@every_schedule
@pytest.mark.parametrize("t", [0, 500, 999])
def test_the_guess_agrees_with_diffusers(kind, name, t):
    beta_schedule = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[name]
    scheduler = DDIMScheduler(beta_schedule=beta_schedule, prediction_type=kind, clip_sample=False)
    scheduler.alphas_cumprod = make_schedule(name).alphas_cumprod  # theirs are float32
    scheduler.set_timesteps(1000)
    _, output, x_t, alpha, sigma, _ = noisy(name, t=(t,) * 4)
    theirs = scheduler.step(output, t, x_t).pred_original_sample
    torch.testing.assert_close(to_sample(kind, output, x_t, alpha, sigma), theirs)


# EDM (Karras et al. 2022).  There x = x₀ + s·ε, which is x_t/α, and s = σ/α.


@every_schedule
@every_strength
def test_edm_is_karras_preconditioning(name, sigma_data):
    x0, noise, x_t, alpha, sigma, _ = noisy(name)
    x, s, output = x_t / alpha, sigma / alpha, torch.randn_like(x_t)
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)  # table 1, last column
    c_out = s * sigma_data / (s**2 + sigma_data**2).sqrt()
    c_in = 1 / (s**2 + sigma_data**2).sqrt()
    torch.testing.assert_close(network_input("edm", x_t, alpha, sigma, sigma_data), c_in * x)
    guess = to_sample("edm", output, x_t, alpha, sigma, sigma_data)
    torch.testing.assert_close(guess, c_skip * x + c_out * output)
    right = (x0 - c_skip * x) / c_out  # equation 8
    torch.testing.assert_close(target("edm", x0, noise, alpha, sigma, sigma_data), right)


@every_schedule
@every_strength
@pytest.mark.parametrize("theirs", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_agrees_with_diffusers(name, sigma_data, theirs):
    scheduler, (_, _, x_t, alpha, sigma, _) = theirs(sigma_data=sigma_data), noisy(name)
    x, s, output = x_t / alpha, sigma / alpha, torch.randn_like(x_t)
    shown = scheduler.precondition_inputs(x, s)
    torch.testing.assert_close(network_input("edm", x_t, alpha, sigma, sigma_data), shown)
    guess = scheduler.precondition_outputs(x, output, s)
    torch.testing.assert_close(to_sample("edm", output, x_t, alpha, sigma, sigma_data), guess)


@every_schedule
def test_edm_for_pictures_as_strong_as_the_noise_is_minus_v(name):
    x0, noise, x_t, alpha, sigma, _ = noisy(name)
    v = target("v_prediction", x0, noise, alpha, sigma)
    torch.testing.assert_close(target("edm", x0, noise, alpha, sigma, 1.0), -v)
    torch.testing.assert_close(network_input("edm", x_t, alpha, sigma, 1.0), x_t)


@every_schedule
@every_strength
def test_edms_input_and_target_have_variance_1_at_every_noise_level(name, sigma_data):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 50_000, generator=generator, dtype=torch.float64)
    schedule, t = make_schedule(name), torch.tensor([0, 50, 200, 500, 800, 999])
    alpha, sigma = schedule.alpha_sigma(t, like=x0)
    x_t = alpha * sigma_data * x0 + sigma * noise
    shown = network_input("edm", x_t, alpha, sigma, sigma_data)
    wanted = target("edm", sigma_data * x0, noise, alpha, sigma, sigma_data)
    # Five standard errors of a variance, √(2/50 000); of the covariance, 1/√50 000.
    assert (shown.square().mean(1) - 1).abs().max() < 0.032
    assert (wanted.square().mean(1) - 1).abs().max() < 0.032
    # For white noise as data the input says nothing about the target: all that can be guessed
    # without looking is in c_skip already.
    assert (shown * wanted).mean(1).abs().max() < 0.023


# Flow matching (Lipman et al. 2022; Liu et al. 2022).  There y = (1-τ)·x₀ + τ·ε, which is x_t/(α+σ).


every_path = pytest.mark.parametrize("name", ["linear", "cosine", "flow"])


@every_path
def test_flow_shows_the_straight_path_and_asks_for_its_velocity(name):
    x0, noise, x_t, alpha, sigma, _ = noisy(name)
    tau, step = sigma / (alpha + sigma), 1e-6
    y = (1 - tau) * x0 + tau * noise
    torch.testing.assert_close(network_input("flow_prediction", x_t, alpha, sigma), y)
    u = target("flow_prediction", x0, noise, alpha, sigma)
    further = (1 - tau - step) * x0 + (tau + step) * noise
    torch.testing.assert_close((further - y) / step, u, rtol=0, atol=1e-8)
    torch.testing.assert_close(to_sample("flow_prediction", u, x_t, alpha, sigma), y - tau * u)
    torch.testing.assert_close(to_epsilon("flow_prediction", u, x_t, alpha, sigma), y + (1 - tau) * u)


@every_path
def test_flow_is_v_in_another_scale(name):
    x0, noise, x_t, alpha, sigma, _ = noisy(name)
    v = target("v_prediction", x0, noise, alpha, sigma)
    by_v = (alpha + sigma) * v + (sigma - alpha) * x_t
    torch.testing.assert_close(target("flow_prediction", x0, noise, alpha, sigma), by_v)
    guess = torch.randn_like(v)  # no target of any picture: the conversion holds for whatever is answered
    by_guess = (alpha + sigma) * guess + (sigma - alpha) * x_t
    torch.testing.assert_close(convert(guess, "v_prediction", "flow_prediction", x_t, alpha, sigma), by_guess)


@pytest.mark.parametrize("kind", PREDICTION_TYPES[1:])  # ε is refused there
def test_where_flow_leaves_no_signal_the_answer_is_still_a_picture(kind):
    schedule = make_schedule("flow", 50)
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 24, 49])
    alpha, sigma = schedule.alpha_sigma(t, like=x0)
    answer = target(kind, x0, noise, alpha, sigma)
    torch.testing.assert_close(Denoiser(lambda x, t: answer, schedule, kind)(schedule.add_noise(x0, noise, t), t), x0)


def test_a_step_of_flow_agrees_with_diffusers():
    """Their network gets y and answers u; a step of theirs is Euler's."""
    schedule, scheduler = make_schedule("flow"), FlowMatchEulerDiscreteScheduler(1000)
    scheduler.set_timesteps(sigmas=[0.8, 0.3])
    x0, noise, output = torch.randn(3, 2, 3, 4, 4)
    (a, s), (a_next, s_next) = (schedule.alpha_sigma(t, like=x0) for t in (799, 299))  # τ = 0.8 and 0.3
    x_t = schedule.add_noise(x0, noise, 799)
    theirs = scheduler.step(output, scheduler.timesteps[0], x_t / (a + s)).prev_sample
    picture, eps = (to("flow_prediction", output, x_t, a, s) for to in (to_sample, to_epsilon))
    torch.testing.assert_close((a_next * picture + s_next * eps) / (a_next + s_next), theirs)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_only_edm_looks_at_sigma_data(kind):
    x0, noise, x_t, alpha, sigma, t = noisy()
    assert kind == "flow_prediction" or network_input(kind, x_t, alpha, sigma, 0.1) is x_t
    for function, first, second in ((target, x0, noise), (to_sample, noise, x_t), (to_epsilon, x0, x_t)):
        one, other = (function(kind, first, second, alpha, sigma, d) for d in (0.1, 2.0))
        assert torch.equal(one, other)
    snr = make_schedule().snr(t)
    assert torch.equal(min_snr_weight(kind, snr, 5, 0.1), min_snr_weight(kind, snr, 5, 2.0))


@quick
@given(
    source=types,
    goal=types,
    name=st.sampled_from(["linear", "cosine", "flow"]),
    data=st.data(),
    T=st.integers(2, 2000),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    d=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_conversions_there_and_back_change_nothing(source, goal, name, data, T, shape, dtype, d):
    schedule, t = make_schedule(name, T), data.draw(st.integers(0, T - 1 - (name == "flow")))
    x_t, output = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(t, like=x_t)
    there = convert(output, source, goal, x_t, alpha, sigma, d)
    back = convert(there, goal, source, x_t, alpha, sigma, d)
    assert there.shape == output.shape and there.dtype == dtype
    # Dividing by a small α or σ magnifies rounding; the magnified unit is the honest tolerance.
    unit = torch.finfo(dtype).eps * 50 / (alpha * sigma).min().item()
    torch.testing.assert_close(back, output, rtol=unit, atol=unit)
    # All expressions of one prediction are the same picture.
    torch.testing.assert_close(
        to_sample(goal, there, x_t, alpha, sigma, d),
        to_sample(source, output, x_t, alpha, sigma, d),
        rtol=unit,
        atol=unit / alpha.min().item(),
    )


@every_type
def test_converting_to_the_same_type_divides_by_nothing(kind):
    x = torch.randn(2, 3)
    zero, one = torch.zeros(2, 1), torch.ones(2, 1)
    assert convert(x, kind, kind, x, alpha=zero, sigma=one) is x


@quick
@given(
    snr=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20),
    gamma=st.floats(0.1, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    d=st.floats(0.1, 3),
)
def test_weights_are_equal_once_expressed_on_the_picture(snr, gamma, dtype, d):
    snr = torch.tensor(snr, dtype=dtype)
    # An error e in x0 is an error √SNR·e in ε, √(SNR+1)·e in v, √(SNR+1/d²)·e in EDM's F and (√SNR+1)·e in u; so
    # is the loss, squared.
    on_x0 = min_snr_weight("sample", snr, gamma)
    torch.testing.assert_close(on_x0, torch.minimum(snr, torch.full_like(snr, gamma)))
    torch.testing.assert_close(min_snr_weight("epsilon", snr, gamma) * snr, on_x0)
    torch.testing.assert_close(min_snr_weight("v_prediction", snr, gamma) * (snr + 1), on_x0)
    torch.testing.assert_close(min_snr_weight("edm", snr, gamma, d) * (snr + 1 / d**2), on_x0)
    torch.testing.assert_close(min_snr_weight("flow_prediction", snr, gamma) * (snr.sqrt() + 1) ** 2, on_x0)


@every_type
@every_strength
def test_the_weighted_loss_is_the_same_whatever_is_predicted(kind, sigma_data):
    x0, noise, x_t, alpha, sigma, _ = noisy()
    guess = x0 + 0.1 * torch.randn_like(x0)
    snr = (alpha / sigma) ** 2
    output = convert(guess, "sample", kind, x_t, alpha, sigma, sigma_data)
    error = (output - target(kind, x0, noise, alpha, sigma, sigma_data)) ** 2
    expected = snr.clamp(max=5) * (guess - x0) ** 2
    torch.testing.assert_close(min_snr_weight(kind, snr, 5, sigma_data) * error, expected)


@every_type
@every_strength
def test_with_a_floor_no_error_of_the_picture_counts_less(kind, sigma_data):
    snr = torch.tensor([1e-4, 0.3, 1.0, 3.0, 5.0, 400.0], dtype=torch.float64)
    on_x0 = torch.tensor([0.5, 0.5, 1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    per_x0 = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1, "edm": snr + 1 / sigma_data**2}
    per_x0 = {**per_x0, "flow_prediction": (snr.sqrt() + 1) ** 2}[kind]
    torch.testing.assert_close(min_snr_weight(kind, snr, 5, sigma_data, floor=0.5) * per_x0, on_x0)


@every_type
def test_the_weight_at_no_signal_is_the_limit(kind):
    limit = 1.0 if kind == "epsilon" else 0.0
    assert min_snr_weight(kind, torch.zeros(1)).item() == limit


def test_snr_agrees_with_diffusers():
    t = torch.tensor([0, 5, 500, 900])
    theirs = compute_snr(DDIMScheduler(beta_schedule="linear"), t).double()
    # At t = 0 their float32 1 - ᾱ = 1e-4 keeps only four digits.
    torch.testing.assert_close(make_schedule("linear").snr(t), theirs, rtol=2e-3, atol=0)


@every_type
@every_strength
def test_a_denoiser_answers_with_the_picture(kind, sigma_data):
    x0, noise, x_t, alpha, sigma, t = noisy("cosine")
    answer = target(kind, x0, noise, alpha, sigma, sigma_data)
    seen = []

    def net(x, timesteps):
        seen.append((x, timesteps))
        return answer

    torch.testing.assert_close(Denoiser(net, make_schedule("cosine"), kind, sigma_data)(x_t, t), x0)
    strength = {"edm": (alpha**2 * sigma_data**2 + sigma**2).sqrt(), "flow_prediction": alpha + sigma}.get(kind, 1)
    torch.testing.assert_close(seen[0][0], x_t / strength)
    assert seen[0][1] is t


@every_type
def test_a_denoiser_hands_the_condition_on(kind):
    seen = []

    def net(x, t, *cond):
        seen.append(cond)
        return x

    denoiser, cond = Denoiser(net, make_schedule(), kind), torch.randn(2, 4)
    denoiser(torch.randn(2, 3), torch.tensor([0, 9]), cond)
    denoiser(torch.randn(2, 3), torch.tensor([0, 9]))
    assert seen[0][0] is cond and seen[1] == ()  # a network that knows no cond can be used, too


@every_type
@every_strength
def test_the_guess_can_be_asked_for_with_alpha_and_sigma_given(kind, sigma_data):
    _, _, x_t, alpha, sigma, t = noisy("cosine")
    denoiser = Denoiser(lambda x, t: x.sin(), make_schedule("cosine"), kind, sigma_data)
    assert torch.equal(denoiser.predict(x_t, t, alpha, sigma), denoiser(x_t, t))
    # They are what counts then, not those of t.
    other = Denoiser(lambda x, t: x.sin(), make_schedule("linear"), kind, sigma_data)
    assert torch.equal(other.predict(x_t, t, alpha, sigma), denoiser(x_t, t))


@every_type
@every_strength
@pytest.mark.parametrize("conditional", [False, True])
def test_the_loss_is_the_mean_squared_error_of_the_target(kind, sigma_data, conditional):
    x0, noise, x_t, alpha, sigma, t = noisy("cosine", torch.float32)
    cond = torch.tensor([0.5, -1.0, 2.0, 0.0]) if conditional else None

    def net(x, timesteps, *cond):
        assert torch.equal(timesteps, t)
        return x.sin() + (cond[0].reshape(-1, 1, 1, 1) if cond else 0)

    denoiser = Denoiser(net, make_schedule("cosine"), kind, sigma_data)
    weight = torch.tensor([2.0, 0.5, 0.0, 1.0])
    total, weighted = 0.0, 0.0
    for i in range(4):  # picture by picture, each with its own timestep
        a, s = alpha[i].item(), sigma[i].item()
        n = {"edm": (a**2 * sigma_data**2 + s**2) ** 0.5, "flow_prediction": a + s}.get(kind, 1)
        answer = (x_t[i] / n).sin() + (cond[i] if conditional else 0)
        wanted = {
            "epsilon": noise[i],
            "sample": x0[i],
            "v_prediction": a * noise[i] - s * x0[i],
            "edm": (s * x0[i] / sigma_data - a * sigma_data * noise[i]) / n,
            "flow_prediction": noise[i] - x0[i],
        }[kind]
        error = (answer - wanted).square().mean().item()
        total, weighted = total + error / 4, weighted + weight[i].item() * error / 4
    assert denoiser.loss(x0, noise, t, cond).item() == pytest.approx(total, rel=1e-5)
    assert denoiser.loss(x0, noise, t, cond, weight).item() == pytest.approx(weighted, rel=1e-5)


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


def test_epsilon_is_refused_on_the_schedule_of_flow():
    with pytest.raises(ValueError, match="schedule, such as flow: .*use 'v_prediction' or 'sample'"):
        Denoiser(torch.nn.Identity(), make_schedule("flow", 50), "epsilon")


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


@pytest.mark.parametrize("floor", [-0.1, 5.1])
def test_a_floor_above_the_cut_is_refused(floor):
    with pytest.raises(ValueError, match=rf"floor must lie in \[0, gamma\], not {floor}"):
        min_snr_weight("sample", torch.ones(1), 5, floor=floor)


@pytest.mark.parametrize("sigma_data", [0, -1, float("nan"), "0.5", None])
def test_a_sigma_data_that_is_no_number_above_0_is_refused(sigma_data):
    with pytest.raises(ValueError, match="sigma_data must be"):
        Denoiser(torch.nn.Identity(), make_schedule("cosine", 10), "edm", sigma_data)


@pytest.mark.parametrize("noise, weight", [((1, 3, 4, 4), None), ((2, 3, 4, 4), (2, 1)), ((2, 3, 4, 4), (3,))])
def test_a_loss_of_shapes_that_do_not_match_is_refused_not_broadcast(noise, weight):
    denoiser = Denoiser(lambda x, t: x, make_schedule("cosine", 10), "sample")
    weight = None if weight is None else torch.ones(weight)
    with pytest.raises(ValueError, match="x0, noise and weight must be"):
        denoiser.loss(torch.zeros(2, 3, 4, 4), torch.zeros(noise), torch.tensor([1, 2]), weight=weight)
