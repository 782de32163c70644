"""Noise schedules against diffusers, against their closed forms, and against simulation."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_utils.schedule import SCHEDULES, Schedule, cosine, flow, linear, make_schedule

DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
quick = settings(deadline=None, max_examples=25)
timestep_counts = st.integers(1, 2000)
names = st.sampled_from(SCHEDULES)


def diffusers_betas(name, T=1000):
    return DDPMScheduler(num_train_timesteps=T, beta_schedule=DIFFUSERS_NAMES[name]).betas.double()


@pytest.mark.parametrize("name, T", [("linear", 1000), ("cosine", 1000), ("cosine", 200)])
def test_agrees_with_diffusers(name, T):
    # Theirs is computed in float32, hence the tolerances.
    schedule, theirs = make_schedule(name, T), diffusers_betas(name, T)
    torch.testing.assert_close(schedule.betas, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(schedule.alphas_cumprod, (1 - theirs).cumprod(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_agrees_with_diffusers(name):
    ours = make_schedule(name, 1000, zero_terminal_snr=True)
    theirs = rescale_zero_terminal_snr(make_schedule(name, 1000).betas)  # float64 in and out
    torch.testing.assert_close(ours.alphas_cumprod, (1 - theirs).cumprod(0), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [2, 50, 1000])
def test_zero_terminal_snr_is_exact_at_both_ends(name, T):
    plain, rescaled = make_schedule(name, T), make_schedule(name, T, zero_terminal_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0 and rescaled.snr()[-1] == 0
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0], rtol=1e-14, atol=0)
    if name == "flow":  # which ends so by itself
        torch.testing.assert_close(rescaled.alphas_cumprod, plain.alphas_cumprod, rtol=1e-12, atol=0)
    assert rescaled.name == f"{name}+zero_terminal_snr"
    x0, noise = torch.randn(2, 1, 3, 8, 8).unbind()
    assert torch.equal(rescaled.add_noise(x0, noise, T - 1), noise)


def test_a_single_timestep_cannot_be_rescaled():
    with pytest.raises(ValueError, match="one timestep cannot be rescaled"):
        make_schedule("linear", 1, zero_terminal_snr=True)


@quick
@given(T=timestep_counts)
def test_linear_ends_at_the_same_noise_for_every_T(T):
    last = math.prod((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).tolist())
    assert last == pytest.approx(4.0358e-5, rel=1e-4)
    assert linear(T).alphas_cumprod[-1].item() == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize("T", [1, 8, 50, 125, 200, 500])
def test_linear_is_every_kth_value_where_T_divides_1000(T):
    k = 1000 // T
    torch.testing.assert_close(linear(T).alphas_cumprod, linear(1000).alphas_cumprod[k - 1 :: k], rtol=1e-12, atol=0)


def test_linear_between_known_points_is_between_their_values():
    fine, coarse = linear(2000).alphas_cumprod, linear(1000).alphas_cumprod
    torch.testing.assert_close(fine[1::2], coarse, rtol=1e-12, atol=0)
    # In log ᾱ the extra points lie in the middle of their neighbours.
    torch.testing.assert_close(fine[2::2].log(), (coarse[:-1].log() + coarse[1:].log()) / 2, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("T", [4, 1000])
def test_cosine_follows_the_paper_until_beta_is_cut(T):
    schedule = cosine(T)
    assert schedule.betas.max() == pytest.approx(0.999, rel=1e-12)
    u = torch.arange(1, T, dtype=torch.float64) / T  # the cut only acts at t = T-1
    f = [torch.cos((v + 0.008) / 1.008 * math.pi / 2) ** 2 for v in (u, torch.zeros_like(u))]
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], f[0] / f[1], rtol=1e-9, atol=0)


@quick
@given(T=timestep_counts)
def test_flow_is_the_straight_path_up_to_scale(T):
    schedule, one = flow(T), torch.ones(T, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(torch.arange(T), like=one)
    tau = torch.arange(1, T + 1, dtype=torch.float64) / T
    torch.testing.assert_close(alpha / (alpha + sigma), 1 - tau, rtol=0, atol=1e-12)
    torch.testing.assert_close(sigma / (alpha + sigma), tau, rtol=0, atol=1e-12)
    assert alpha[-1] == 0 and sigma[-1] == 1
    if T % 2 == 0:  # half picture, half noise
        torch.testing.assert_close(schedule.snr()[T // 2 - 1], torch.tensor(1.0, dtype=torch.float64))


def test_flow_agrees_with_diffusers():
    theirs = FlowMatchEulerDiscreteScheduler(1000)  # its timesteps run from noisy to clean, its sigma is τ
    x0, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64).unbind()
    for t in (0, 249, 499, 999):
        y = theirs.scale_noise(x0, theirs.timesteps[[999 - t]], noise)
        alpha, sigma = flow(1000).alpha_sigma(t, like=x0)
        torch.testing.assert_close(flow(1000).add_noise(x0, noise, t) / (alpha + sigma), y, rtol=0, atol=1e-6)


@quick
@given(name=names, T=timestep_counts, zero=st.booleans())
def test_every_schedule_only_gets_noisier(name, T, zero):
    schedule = make_schedule(name, T, zero_terminal_snr=zero and T > 1)
    alphas_cumprod, snr = schedule.alphas_cumprod, schedule.snr()
    assert alphas_cumprod.shape == (T,) == schedule.betas.shape
    assert alphas_cumprod.dtype == torch.float64 and schedule.num_train_timesteps == T
    assert (alphas_cumprod >= 0).all() and (alphas_cumprod < 1).all()
    assert (snr.diff() < 0).all() and torch.isfinite(snr).all()
    assert (schedule.betas > 0).all() and (schedule.betas <= 1).all()
    torch.testing.assert_close((1 - schedule.betas).cumprod(0), alphas_cumprod)
    torch.testing.assert_close(snr, alphas_cumprod / (1 - alphas_cumprod))


@quick
@given(
    name=names,
    T=timestep_counts,
    data=st.data(),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_add_noise_keeps_shape_and_type(name, T, data, shape, dtype):
    schedule = make_schedule(name, T)
    x0, noise = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    t = torch.tensor(data.draw(st.lists(st.integers(0, T - 1), min_size=len(x0), max_size=len(x0))))
    x_t = schedule.add_noise(x0, noise, t)
    assert x_t.shape == x0.shape and x_t.dtype == dtype
    alpha, sigma = schedule.alpha_sigma(t, like=x0)
    assert alpha.shape == sigma.shape == (len(x0), *[1] * (len(shape) - 1))
    assert alpha.dtype == sigma.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=tolerance)
    for i, one in enumerate(t.tolist()):  # each picture has its own timestep
        alone = schedule.add_noise(x0[i : i + 1], noise[i : i + 1], one)
        assert torch.equal(alone[0], x_t[i])


@pytest.mark.parametrize("name", DIFFUSERS_NAMES)
def test_add_noise_agrees_with_diffusers(name):
    theirs = DDPMScheduler(beta_schedule=DIFFUSERS_NAMES[name])
    x0, noise = torch.randn(2, 6, 3, 8, 8).unbind()
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    torch.testing.assert_close(
        make_schedule(name).add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=0, atol=1e-4
    )


def test_timestep_minus_one_is_the_clean_picture():
    x0, noise = torch.randn(2, 4, 3, 8, 8).unbind()
    for schedule in (linear(10), cosine(10), linear(10).rescale_zero_terminal_snr()):
        assert torch.equal(schedule.add_noise(x0, noise, -1), x0)
        mixed = schedule.add_noise(x0, noise, torch.tensor([-1, 0, 9, -1]))
        assert torch.equal(mixed[[0, 3]], x0[[0, 3]])
        assert not torch.isclose(mixed[1:3], x0[1:3]).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [0, 300, 999])
def test_noisy_pictures_have_the_moments_of_q(name, t):
    N, x0 = 200_000, torch.tensor([[-1.0, 0.25, 0.9]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    schedule = make_schedule(name)
    x_t = schedule.add_noise(x0.expand(N, 3), noise, t)
    mean = schedule.alphas_cumprod[t].sqrt() * x0[0]
    variance = 1 - schedule.alphas_cumprod[t]
    # Five standard errors: of a mean σ/√N, of a variance σ²·√(2/N).
    assert (x_t.mean(0) - mean).abs().max() < 5 * (variance / N).sqrt()
    assert (x_t.var(0) / variance - 1).abs().max() < 5 * math.sqrt(2 / N)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
def test_a_chain_of_single_steps_arrives_where_the_jump_does(name, zero):
    N, T, x0 = 20_000, 60, 0.8
    schedule = make_schedule(name, T, zero_terminal_snr=zero)
    generator = torch.Generator().manual_seed(1)
    x = torch.full((N,), x0, dtype=torch.float64)
    mean, variance = x0, 0.0  # the chain's exact moments, carried along beside the samples
    for t, beta in enumerate(schedule.betas.tolist()):
        noise = torch.randn(N, generator=generator, dtype=torch.float64)
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        alpha_bar = schedule.alphas_cumprod[t].item()
        assert mean == pytest.approx(math.sqrt(alpha_bar) * x0, abs=1e-12)
        assert variance == pytest.approx(1 - alpha_bar, abs=1e-12)
        if t % 20 == 19:
            assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / N))
            assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / N))


def test_snr_can_be_asked_for_some_timesteps():
    schedule, t = linear(100), torch.tensor([3, 99, 3])
    torch.testing.assert_close(schedule.snr(t), schedule.snr()[t])


@pytest.mark.parametrize("t", [10, -2, torch.tensor([0, 10]), torch.tensor([-2, 3])])
def test_timesteps_outside_the_schedule_are_refused(t):
    x0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(
        ValueError,
        match=r"timesteps must lie in \[0, 9\], not -?\d+…\d+"
        if not isinstance(t, int)
        else r"must lie in \[0, 9\], not",
    ):
        linear(10).add_noise(x0, x0, t)


@pytest.mark.parametrize("t", [torch.tensor([0.5, 1.0]), torch.tensor([True, False])])
def test_timesteps_that_are_no_integers_are_refused(t):
    x0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=f"timesteps must be integers, not {t.dtype}"):
        linear(10).add_noise(x0, x0, t)


def test_noise_of_another_shape_is_refused():
    message = r"x0 has shape \(2, 3, 4, 4\) but noise has \(3, 4, 4\).*randn_like"
    with pytest.raises(ValueError, match=message):
        linear(10).add_noise(torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4), 0)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown schedule 'quadratic': choose .*linear, cosine, flow"):
        make_schedule("quadratic")


@pytest.mark.parametrize("T", [0, -5, 10.0, "10"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_impossible_numbers_of_timesteps_are_refused(name, T):
    with pytest.raises(ValueError, match=f"must be a whole number ≥ 1, not {T!r}"):
        make_schedule(name, T)


def test_a_schedule_is_its_list_alone():
    alphas_cumprod = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    schedule = Schedule(alphas_cumprod)
    assert schedule.name == "custom" and schedule.num_train_timesteps == 3
    torch.testing.assert_close(schedule.snr(), torch.tensor([9, 1, 1 / 9], dtype=torch.float64))
    torch.testing.assert_close(schedule.betas, torch.tensor([0.1, 4 / 9, 0.8], dtype=torch.float64))


def test_timesteps_may_come_from_numpy_or_in_small_integers():
    s, x0, noise = linear(10), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = s.add_noise(x0, noise, 3)
    for t in (np.int64(3), torch.tensor([3, 3], dtype=torch.uint8), torch.tensor([3], dtype=torch.int16)):
        assert torch.equal(s.add_noise(x0, noise, t), expected)
    assert linear(np.int64(10)).num_train_timesteps == 10


def test_a_wrong_number_of_timesteps_is_refused():
    with pytest.raises(ValueError, match="3 timesteps for 2 pictures: give one each, or one for all"):
        linear(10).add_noise(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="timesteps must be integers"):
        linear(10).add_noise(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), 0.5)


def test_noise_is_put_on_float_pictures_only():
    pictures = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for images in (pictures, pictures.numpy()):
        with pytest.raises(ValueError, match="expected a tensor of float pictures in .*: see data.to_float"):
            cosine(10).add_noise(images, images, 3)


@pytest.mark.parametrize(
    "alphas_cumprod",
    [
        [0.9, 0.5],
        torch.tensor([0.9, 0.5]),
        torch.tensor([[0.9, 0.5]], dtype=torch.float64),
        torch.tensor([], dtype=torch.float64),
        *(torch.tensor(a, dtype=torch.float64) for a in ([0.5, 0.9], [1.0, 0.5], [0.9, -0.1], [0.9, float("nan")])),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(alphas_cumprod):
    with pytest.raises(ValueError, match="alphas_cumprod must"):
        Schedule(alphas_cumprod)
