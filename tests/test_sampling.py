"""Samplers against diffusers step by step, and against data whose best denoiser is known."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import (
    SAMPLERS,
    SPACINGS,
    Noise,
    ddim,
    ddpm,
    dpm_solver_pp,
    generator,
    sample,
    timesteps,
    trajectory,
)
from diffusion_utils.schedule import Schedule, cosine, flow, linear, make_schedule

quick = settings(deadline=None, max_examples=25)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
THEIR_TYPES = ["epsilon", "sample", "v_prediction"]  # of diffusers' samplers that count in timesteps
SHAPE = (3, 4, 4)


# Which timesteps


# Theirs are computed by repeated float steps and differ from the exact value where that ends in ½;
# these counts do not.
@pytest.mark.parametrize("timestep_spacing", SPACINGS)
@pytest.mark.parametrize(
    "T, steps", [(1000, n) for n in (2, 3, 7, 10, 20, 50, 999, 1000)] + [(200, 50), (200, 30), (50, 10), (4000, 37)]
)
def test_timesteps_agree_with_diffusers(timestep_spacing, T, steps):
    scheduler = DDIMScheduler(num_train_timesteps=T, timestep_spacing=timestep_spacing)
    scheduler.set_timesteps(steps)
    assert timesteps(T, steps, timestep_spacing) == scheduler.timesteps.tolist()


@quick
@given(timestep_spacing=st.sampled_from(SPACINGS), T=st.integers(1, 2000), data=st.data())
def test_timesteps_fall_evenly(timestep_spacing, T, data):
    steps = data.draw(st.integers(1, T))
    visited = timesteps(T, steps, timestep_spacing)
    assert len(visited) == steps and T > visited[0] and visited[-1] >= 0
    assert all(t > s for t, s in zip(visited, visited[1:]))
    if timestep_spacing != "leading":
        assert visited[0] == T - 1
    if timestep_spacing == "leading" or (timestep_spacing == "linspace" and steps > 1):
        assert visited[-1] == 0
    if timestep_spacing == "trailing":  # never more than rounding away from the exact position
        exact = [T - i * Fraction(T, steps) - 1 for i in range(steps)]
        assert all(abs(t - e) <= Fraction(1, 2) for t, e in zip(visited, exact))


def test_all_timesteps_are_visited_when_steps_equal_T():
    for timestep_spacing in SPACINGS:
        assert timesteps(7, 7, timestep_spacing) == [6, 5, 4, 3, 2, 1, 0]
    assert timesteps(1000, 1) == timesteps(1000, 1, "linspace") == [999]


@pytest.mark.parametrize("steps", [0, -1, 11, 5.0])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=rf"steps must be a whole number in \[1, 10\], not {steps}"):
        timesteps(10, steps)
    with pytest.raises(ValueError, match=rf"steps must be a whole number in \[1, 10\], not {steps}"):
        next(ddim(lambda x, t: x, linear(10), torch.zeros(1, *SHAPE), steps=steps))


def test_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="unknown timestep_spacing 'even': choose one of .*trailing"):
        timesteps(10, 5, "even")


# Step by step against diffusers


def network(x, t):
    """A stand-in for a network: fixed, not linear, different at every timestep."""
    return (1.3 * x + t.reshape(-1, 1, 1, 1) / 300).sin()


def predictor(kind, schedule):
    return Denoiser(network, schedule, kind)


def compare(steps, scheduler, step, tolerance):
    """Walk `steps` (ours) and `scheduler` (theirs, by `step`) from the same x_T side by side."""
    steps = list(steps)
    x, largest = steps[0].x_t, 1.0
    assert [s.t for s in steps[:-1]] == scheduler.timesteps.tolist()
    for ours, following in zip(steps, steps[1:]):
        output = network(x, torch.full((len(x),), ours.t))
        x = step(output, ours.t, x)
        # Unclipped x̂₀ from ε reaches 10⁴ where little signal is left: judge by the size reached.
        largest = max(largest, x.abs().max().item())
        torch.testing.assert_close(following.x_t, x, rtol=0, atol=tolerance * largest)


def schedule_like(scheduler):
    return Schedule(scheduler.alphas_cumprod.double())


def common(name, kind, zero):
    return {
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[name],
        "prediction_type": kind,
        "rescale_betas_zero_snr": zero,
    }


def start(dtype=torch.float64):
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def stream(dtype=torch.float64):
    """Noise drawn as diffusers draws it: the whole batch from one generator."""
    generator = torch.Generator().manual_seed(1)
    return generator, lambda: torch.randn(3, *SHAPE, generator=generator, dtype=dtype)


against_diffusers = pytest.mark.parametrize(
    "kind, name, zero, clip_sample",
    [
        (kind, name, zero, clip_sample)
        for kind, name, zero, clip_sample in itertools.product(
            THEIR_TYPES, ["linear", "cosine"], [False, True], [False, True]
        )
        # ε cannot be read as a picture where no signal is left.
        if not (kind == "epsilon" and zero)
    ],
)


def replaced(scheduler, name, zero):
    """Put our float64 ᾱ, known to equal theirs, in place of their float32 list."""
    schedule = make_schedule(name, len(scheduler.alphas_cumprod), zero_terminal_snr=zero)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), schedule.alphas_cumprod, rtol=0, atol=1e-5)
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    return schedule


@against_diffusers
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("timestep_spacing", ["trailing", "leading"])  # their linspace skips the wrong way
def test_ddim_agrees_with_diffusers(kind, name, zero, clip_sample, eta, timestep_spacing):
    scheduler = DDIMScheduler(**common(name, kind, zero), timestep_spacing=timestep_spacing, clip_sample=clip_sample)
    schedule = replaced(scheduler, name, zero)
    scheduler.set_timesteps(10)
    theirs = stream()[0]
    steps = ddim(
        predictor(kind, schedule),
        schedule,
        start(),
        stream()[1],
        steps=10,
        eta=eta,
        clip_sample=clip_sample,
        timestep_spacing=timestep_spacing,
    )

    def step(output, t, x):
        # Ours always takes ε from the clipped picture, as theirs does when asked.
        return scheduler.step(output, t, x, eta=eta, use_clipped_model_output=True, generator=theirs).prev_sample

    compare(steps, scheduler, step, 1e-5)


@against_diffusers
@pytest.mark.parametrize("timestep_spacing", ["trailing", "leading"])
def test_ddpm_agrees_with_diffusers(kind, name, zero, clip_sample, timestep_spacing):
    scheduler = DDPMScheduler(**common(name, kind, zero), timestep_spacing=timestep_spacing, clip_sample=clip_sample)
    schedule = replaced(scheduler, name, zero)
    scheduler.set_timesteps(20)
    theirs = stream()[0]
    steps = ddpm(
        predictor(kind, schedule),
        schedule,
        start(),
        stream()[1],
        steps=20,
        clip_sample=clip_sample,
        timestep_spacing=timestep_spacing,
    )

    def step(output, t, x):
        return scheduler.step(output, t, x, generator=theirs).prev_sample

    compare(steps, scheduler, step, 1e-5)


@pytest.mark.parametrize("kind", THEIR_TYPES)
def test_ddpm_agrees_with_diffusers_over_every_timestep(kind):
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    schedule = replaced(scheduler, "cosine", False)
    scheduler.set_timesteps(100)
    theirs = stream()[0]

    def step(output, t, x):
        return scheduler.step(output, t, x, generator=theirs).prev_sample

    steps = ddpm(predictor(kind, schedule), schedule, start(), stream()[1])
    compare(steps, scheduler, step, 1e-5)


@against_diffusers
@pytest.mark.parametrize("steps", [2, 10, 25])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_dpm_solver_agrees_with_diffusers(kind, name, zero, clip_sample, steps):
    scheduler = DPMSolverMultistepScheduler(
        **common(name, kind, zero),
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        # Their thresholding with this maximum is plain clipping to [-1, 1].
        thresholding=clip_sample,
        sample_max_value=1.0,
    )
    # Theirs counts in float32 and puts 2⁻²⁴ for an ᾱ of 0; the exact 0 has its own test below.
    schedule = schedule_like(scheduler)
    scheduler.set_timesteps(steps)
    x_T = start(torch.float32)
    ours = dpm_solver_pp(predictor(kind, schedule), schedule, x_T, steps=steps, clip_sample=clip_sample)
    compare(ours, scheduler, lambda *args: scheduler.step(*args).prev_sample, 1e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_dpm_solver_takes_no_harm_from_an_exact_zero_of_signal(name):
    exact = make_schedule(name, zero_terminal_snr=True)
    almost = exact.alphas_cumprod.clone()
    almost[-1] = 2**-24  # what diffusers puts there
    # Not clipped, not from ε, and no jump of the guess at T-1: the two must nearly coincide.
    ends = [
        [*dpm_solver_pp(lambda x, t: 0.5 * x.sin(), schedule, start(), steps=20)][-1].x_t
        for schedule in (exact, Schedule(almost))
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 15])
def test_dpm_solver_moves_like_ddim_first_and_last(steps):
    schedule = linear(1000)
    predict = predictor("v_prediction", schedule)
    x_T = start()
    solver = list(dpm_solver_pp(predict, schedule, x_T, steps=steps))
    first = list(ddim(predict, schedule, x_T, steps=steps))
    torch.testing.assert_close(solver[1].x_t, first[1].x_t)
    assert torch.equal(solver[-1].x_t, solver[-2].x0)  # σ = 0: only the guess is left
    if steps > 2:
        assert not torch.allclose(solver[2].x_t, first[2].x_t)


def test_ddim_with_eta_1_is_ddpm():
    schedule, x_T = cosine(40), start()
    predict = predictor("v_prediction", schedule)
    one = list(ddim(predict, schedule, x_T, stream()[1], steps=None, eta=1.0))
    other = list(ddpm(predict, schedule, x_T, stream()[1]))
    for a, b in zip(one, other, strict=True):
        assert a.t == b.t
        torch.testing.assert_close(a.x_t, b.x_t)


# Against an exact answer: for data N(mean, covariance) the best x̂₀ is known, and so is where the
# probability-flow ODE leads: it scales each principal direction by its standard deviation.


class Gaussian:
    def __init__(self, mean, covariance):
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.covariance = torch.tensor(covariance, dtype=torch.float64)
        self.variances, self.directions = torch.linalg.eigh(self.covariance)

    def predictor(self, schedule):
        def predict(x, t):
            alpha, sigma = schedule.alpha_sigma(t, like=x)
            along = (x - alpha * self.mean) @ self.directions
            share = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
            return self.mean + (share * along) @ self.directions.T

        return predict

    def flow(self, schedule, x, t, s):
        """Where the exact probability-flow ODE takes x from timestep t to s."""
        alpha_t, sigma_t = schedule.alpha_sigma(t, like=x)
        alpha_s, sigma_s = schedule.alpha_sigma(s, like=x)
        along = (x - alpha_t * self.mean) @ self.directions
        wide = (alpha_s**2 * self.variances + sigma_s**2).sqrt()
        wide = wide / (alpha_t**2 * self.variances + sigma_t**2).sqrt()
        return alpha_s * self.mean + (along * wide) @ self.directions.T


GAUSSIANS = {
    "axes": Gaussian([0.4, -0.1], [[0.09, 0], [0, 0.25]]),
    "correlated": Gaussian([0.3, -0.2], [[0.25, 0.12], [0.12, 0.16]]),
}


@pytest.mark.parametrize("data, name", [("axes", "linear"), ("correlated", "cosine")])
@pytest.mark.parametrize(
    "sampler, steps, options, bias",
    [
        ("ddpm", 400, {}, 0.05),
        ("ddim", 400, {"eta": 1.0}, 0.05),
        ("ddim", 200, {"eta": 0.0}, 0.03),
        ("dpm_solver_pp", 50, {}, 0.01),
    ],
)
def test_samples_of_a_gaussian_have_its_mean_and_covariance(data, name, sampler, steps, options, bias):
    N, data, schedule = 8000, GAUSSIANS[data], make_schedule(name)
    generator = torch.Generator().manual_seed(2)

    def noise():
        return torch.randn(N, 2, generator=generator, dtype=torch.float64)

    *_, end = SAMPLERS[sampler](
        data.predictor(schedule), schedule, noise(), noise, steps=steps, clip_sample=False, **options
    )
    picture, spread = end.x_t, data.covariance.diagonal().sqrt()
    # 4.5 standard errors (s/√N of a mean, s·s'·√(2/N) at most of a covariance); the covariance
    # also has a bias from the finite number of steps, which the next test examines.
    assert ((picture.mean(0) - data.mean).abs() < (4.5 / math.sqrt(N) + 0.005) * spread).all()
    error = (picture.T.cov() - data.covariance) / (spread[:, None] * spread)
    assert error.abs().max() < 4.5 * math.sqrt(2 / N) + bias


def exact_moments(sampler, predict, schedule, steps, **options):
    """Mean and covariance of a sampler's pictures (2 numbers each), without drawing any.

    For Gaussian data x̂₀ is a linear function of x_t plus a constant, so the picture is one of all
    the noises.  Picture 0 of the batch gets no noise and ends at the mean; each other gets a 1 in
    one place of one noise, and what that adds is one column of the linear function.
    """
    inputs = torch.eye(2 * (steps + 1), dtype=torch.float64).unflatten(1, (steps + 1, 2))
    inputs = iter(torch.cat([torch.zeros_like(inputs[:1]), inputs]).unbind(1))
    walk = SAMPLERS[sampler](
        predict, schedule, next(inputs), lambda: next(inputs), steps=steps, clip_sample=False, **options
    )
    end = [*walk][-1].x_t
    columns = end[1:] - end[0]
    return end[0], columns.T @ columns


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("sampler, options", [("ddpm", {}), ("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0})])
def test_the_bias_of_random_samplers_vanishes_with_more_steps(name, sampler, options):
    data, schedule, errors = GAUSSIANS["correlated"], make_schedule(name), []
    for steps in (125, 250, 500):
        mean, covariance = exact_moments(sampler, data.predictor(schedule), schedule, steps, **options)
        assert (mean - data.mean).abs().max() < 0.005  # x_T keeps a trace of the mean
        errors.append(((covariance - data.covariance).norm() / data.covariance.norm()).item())
    # Twice the steps, half the bias.
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.25)
    assert errors[2] < 0.04


def log_linear(T=6400):
    """λ = log(α/σ) falls evenly: on this schedule equal steps in t are equal steps of a solver."""
    return Schedule(torch.sigmoid(2 * torch.linspace(4, -4, T, dtype=torch.float64)))


@pytest.mark.parametrize("schedule", [log_linear(), linear(6400)], ids=["log-linear", "linear"])
@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("dpm_solver_pp", 2)])
def test_the_error_falls_at_the_solvers_order(schedule, sampler, order):
    T, data, x_T = (
        6400,
        GAUSSIANS["correlated"],
        torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
    )
    # Halfway down, a timestep that every number of steps visits: before the last move, which is
    # of first order in both; T is large and divisible, so nothing is rounded.
    middle = T // 2 - 1
    exact = data.flow(schedule, x_T, T - 1, middle)
    counts, errors = [20, 40, 80, 160], []
    for steps in counts:
        walk = SAMPLERS[sampler](data.predictor(schedule), schedule, x_T, steps=steps, clip_sample=False)
        x_t = next(step.x_t for step in walk if step.t == middle)
        errors.append((x_t - exact).square().mean().sqrt().item())
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert orders[-1] == pytest.approx(order, abs=0.05)
    assert orders == pytest.approx([order] * len(orders), abs=0.2)


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver_pp"])
def test_a_solver_ends_near_the_exact_picture(sampler):
    data, schedule = GAUSSIANS["correlated"], cosine(1000)
    x_T = torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = data.flow(schedule, x_T, 999, -1)
    ends = [
        [*SAMPLERS[sampler](data.predictor(schedule), schedule, x_T, steps=n, clip_sample=False)][-1] for n in (20, 200)
    ]
    coarse, fine = [(end.x_t - exact).square().mean().sqrt().item() for end in ends]
    assert fine < 0.01 and fine < coarse / 4


@every_sampler
def test_edm_at_strength_1_is_sampled_like_minus_v(sampler):
    for name, zero in (("linear", False), ("cosine", True)):
        schedule = make_schedule(name, 50, zero_terminal_snr=zero)
        v = Denoiser(network, schedule, "v_prediction")
        edm = Denoiser(lambda x, t: -network(x, t), schedule, "edm", sigma_data=1.0)
        options = {"steps": 10, "clip_sample": False, **noise_for(sampler)}
        one, other = (sample(d, [1, 2], SHAPE, sampler, **options) for d in (v, edm))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def as_flow(v, schedule):
    """The network that predicts u where `v` predicts v from x_t: u = (α+σ)·v + (σ-α)·x_t, and it gets x_t/(α+σ)."""

    def u(y, t):
        alpha, sigma = schedule.alpha_sigma(t, like=y)
        x_t = y * (alpha + sigma)
        return (alpha + sigma) * v(x_t, t) + (sigma - alpha) * x_t

    return u


@every_sampler
@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
def test_flow_is_sampled_like_v(sampler, name):
    schedule = make_schedule(name, 50)
    denoisers = (
        Denoiser(network, schedule, "v_prediction"),
        Denoiser(as_flow(network, schedule), schedule, "flow_prediction"),
    )
    options = {"steps": 10, "clip_sample": False, **noise_for(sampler)}
    one, other = (sample(d, [1, 2], SHAPE, sampler, **options) for d in denoisers)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_ddim_is_eulers_method_along_the_straight_path(name, steps):
    """In y = x_t/(α+σ) and τ = σ/(α+σ) a move of DDIM is y + (τ_s - τ_t)·u, whatever u is."""
    schedule, x_T = make_schedule(name, 50), start()
    walk = [*ddim(Denoiser(network, schedule, "flow_prediction"), schedule, x_T, steps=steps, clip_sample=False)]
    (alpha, sigma), u = schedule.alpha_sigma(49, like=x_T), torch.zeros_like(x_T)
    y, tau_before = x_T / (alpha + sigma), sigma / (alpha + sigma)
    for step in walk:
        alpha, sigma = schedule.alpha_sigma(step.t, like=x_T)
        tau = sigma / (alpha + sigma)
        y = y + (tau - tau_before) * u
        torch.testing.assert_close(step.x_t / (alpha + sigma), y, rtol=1e-10, atol=1e-10)
        u, tau_before = network(y, torch.full((len(y),), step.t)), tau


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_ddim_on_the_schedule_of_flow_agrees_with_diffusers_flow_matching(steps):
    """Evenly spaced, from pure noise to the finished picture: what a flow is usually walked with."""
    scheduler, schedule, x = FlowMatchEulerDiscreteScheduler(1000), flow(1000), start(torch.float32)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    walk = [*ddim(Denoiser(network, schedule, "flow_prediction"), schedule, x, steps=steps, clip_sample=False)]
    for step, following, time in zip(walk, walk[1:], scheduler.timesteps):
        assert step.t == round(time.item()) - 1
        x = scheduler.step(network(x, torch.full((len(x),), step.t)), time, x).prev_sample
        alpha, sigma = schedule.alpha_sigma(following.t, like=x)
        torch.testing.assert_close(following.x_t / (alpha + sigma), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver_pp"])  # the fourth is not for denoisers
@pytest.mark.parametrize("sigma_data", [0.25, 0.6])
def test_edm_that_has_learnt_nothing_draws_noise_as_strong_as_the_pictures(sampler, sigma_data):
    """F = 0 is the right answer for white noise of that strength: the rest is in c_skip."""
    nothing = Denoiser(lambda x, t: torch.zeros_like(x), cosine(1000), "edm", sigma_data)
    drawn = sample(nothing, range(4), (3, 32, 32), sampler, steps=250, clip_sample=False)
    # A standard error is 1/√(2·12 288), 0.6 %; a finite number of steps has a bias, too.
    assert drawn.std().item() == pytest.approx(sigma_data, rel=0.05)


def test_consistency_sampling_answers_puts_noise_on_the_answer_and_answers_again():
    schedule, asked = linear(100), []

    def predict(x, t):
        asked.append((x, int(t[0])))
        return x * 0.1

    noise = Noise([3], SHAPE)
    x_T = noise()
    *_, end = SAMPLERS["consistency"](predict, schedule, x_T, noise, steps=3, clip_sample=False)
    again = Noise([3], SHAPE)
    expected = again()
    for (x, _), following in zip(asked, [66, 32, -1]):
        torch.testing.assert_close(x, expected)
        alpha, sigma = schedule.alpha_sigma(following, like=x)
        expected = alpha * 0.1 * x + sigma * again()
    assert [t for _, t in asked] == [99, 66, 32] and torch.allclose(end.x_t, expected)
    one = sample(denoiser(), [5], SHAPE, "consistency", 1)
    start = Noise([5], SHAPE)()
    last = denoiser().schedule.num_train_timesteps - 1
    torch.testing.assert_close(one, denoiser()(start, torch.tensor([last])).clamp(-1, 1))


# What every sampler keeps to


def denoiser(T=50, kind="v_prediction"):
    return Denoiser(network, linear(T), kind)


def noise_for(sampler):
    return {"ddim": {"eta": 1.0}}.get(sampler, {})


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 7, 50, None])
def test_a_sampler_yields_each_stop_and_the_end(sampler, steps):
    stops = list(trajectory(denoiser(), [1, 2], SHAPE, sampler, steps=steps))
    assert [s.t for s in stops] == [*timesteps(50, steps or 50), -1]
    assert stops[0].t == 49
    assert torch.equal(stops[-1].x_t, stops[-1].x0)
    assert all(s.x_t.shape == s.x0.shape == (2, *SHAPE) for s in stops)
    end = sample(denoiser(), [1, 2], SHAPE, sampler, steps=steps)
    assert torch.equal(stops[-1].x_t, end)


@every_sampler
def test_the_default_number_of_steps(sampler):
    walk = SAMPLERS[sampler](network, linear(60), torch.zeros(1, *SHAPE), Noise([0], SHAPE))
    assert len(list(walk)) - 1 == {"ddpm": 60, "ddim": 50, "dpm_solver_pp": 20, "consistency": 2}[sampler]


@every_sampler
def test_the_guess_is_clipped_and_x_t_is_not(sampler):
    x_T = 3 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))

    def walk(clip_sample):
        return list(
            SAMPLERS[sampler](
                lambda x, t: 4 * x, linear(50), x_T, Noise([1, 2], SHAPE), steps=10, clip_sample=clip_sample
            )
        )

    clipped, free = walk(True), walk(False)
    assert torch.equal(clipped[0].x_t, x_T) and x_T.abs().max() > 3
    assert all(s.x0.abs().max() <= 1 for s in clipped)
    assert clipped[3].x_t.abs().max() > 1  # what is noisy may leave [-1, 1]
    assert free[0].x0.abs().max() > 10
    # The last guess becomes the picture, also where it is not clipped.
    torch.testing.assert_close(clipped[-1].x_t, clipped[-2].x0)
    torch.testing.assert_close(free[-1].x_t, free[-2].x0)


@every_sampler
@pytest.mark.parametrize("seeds", [[7], [3, 7], [7, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_a_picture_depends_on_its_seed_alone(sampler, seeds):
    options = noise_for(sampler)
    alone = sample(denoiser(), [7], SHAPE, sampler, steps=10, **options)[0]
    together = sample(denoiser(), seeds, SHAPE, sampler, steps=10, **options)
    for seed, picture in zip(seeds, together, strict=True):
        # Not bit for bit: a processor's wide and narrow instructions round sin differently.
        assert torch.allclose(picture, alone, atol=1e-5) == (seed == 7)


def test_noise_is_one_stream_per_seed():
    one, many = Noise([5], SHAPE), Noise([4, 5], SHAPE)
    for _ in range(3):
        assert torch.equal(one()[0], many()[1])
    assert not torch.equal(one(), one())
    assert Noise([5], SHAPE, dtype=torch.float64)().dtype == torch.float64
    values = Noise(range(50), (3, 32, 32))()
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02


@pytest.mark.parametrize(
    "sampler, options, random",
    [("ddpm", {}, True), ("ddim", {"eta": 1.0}, True), ("ddim", {"eta": 0.0}, False), ("dpm_solver_pp", {}, False)],
)
def test_which_samplers_are_random_after_the_start(sampler, options, random):
    def end(seed):
        # This guess keeps x_t in sight; from one that forgets it all ends would be equal.
        return [
            *SAMPLERS[sampler](
                lambda x, t: 0.3 * x, linear(50), start(torch.float32), Noise([seed] * 3, SHAPE), steps=10, **options
            )
        ][-1].x_t

    assert torch.equal(end(1), end(1))
    assert torch.equal(end(1), end(2)) != random


@every_sampler
def test_a_caller_may_stop_early(sampler):
    calls = []

    class Counted(torch.nn.Module):
        def forward(self, x, t):
            calls.append(t.tolist())
            return x

    walk = trajectory(Denoiser(Counted(), linear(50), "sample"), [0], SHAPE, sampler, steps=50)
    for step in walk:
        if step.t == 47:
            break
    walk.close()
    assert calls == [[49], [48], [47]]


@every_sampler
def test_gradients_are_off_inside_and_as_before_outside(sampler):
    net = torch.nn.Conv2d(3, 3, 1)
    wrapped = Denoiser(lambda x, t: net(x), linear(50), "sample")
    for step in trajectory(wrapped, [0], SHAPE, sampler, steps=3):
        assert torch.is_grad_enabled()
        assert not step.x_t.requires_grad and not step.x0.requires_grad
    assert not sample(wrapped, [0], SHAPE, sampler, steps=3).requires_grad


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_of_the_start_is_kept(sampler, dtype):
    def walk(dtype):
        exact = Noise([0, 1], SHAPE, dtype=torch.float64)

        def noise():
            return exact().to(dtype)

        return list(SAMPLERS[sampler](lambda x, t: 0.5 * x, linear(50), noise(), noise, steps=5, **noise_for(sampler)))

    stops = walk(dtype)
    assert {s.x_t.dtype for s in stops} == {s.x0.dtype for s in stops} == {dtype}
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    for stop, exact in zip(stops, walk(torch.float64), strict=True):
        torch.testing.assert_close(stop.x_t.double(), exact.x_t, rtol=0, atol=tolerance)


@every_sampler
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("timestep_spacing", SPACINGS)
def test_nothing_is_lost_where_no_signal_is_left(sampler, name, timestep_spacing):
    schedule = make_schedule(name, 50, zero_terminal_snr=True)
    for steps in (1, 2, 3, 10, 50):
        wrapped = Denoiser(network, schedule, "v_prediction")
        stops = list(trajectory(wrapped, [0, 1], SHAPE, sampler, steps=steps, timestep_spacing=timestep_spacing))
        assert all(torch.isfinite(s.x_t).all() for s in stops)
        if stops[0].t == 49:  # all noise: x̂₀ is -v̂ (α = 0, σ = 1), and the noise is x_T itself
            x_T, x0 = Noise([0, 1], SHAPE)(), -network(stops[0].x_t, torch.tensor([49, 49])).clamp(-1, 1)
            assert torch.equal(stops[0].x_t, x_T)
            torch.testing.assert_close(stops[0].x0, x0)
            if sampler in ("ddim", "dpm_solver_pp"):
                alpha, sigma = schedule.alpha_sigma(stops[1].t, like=x_T)
                torch.testing.assert_close(stops[1].x_t, alpha * x0 + sigma * x_T)


@every_sampler
@pytest.mark.parametrize("T", [1, 2, 3])
def test_the_shortest_schedules_can_be_sampled(sampler, T):
    stops = list(trajectory(denoiser(T), [0], SHAPE, sampler, steps=None))
    assert [stop.t for stop in stops] == [*reversed(range(T)), -1]
    for stop in stops[:-1]:
        expected = denoiser(T)(stop.x_t, torch.tensor([stop.t])).clamp(-1, 1)
        torch.testing.assert_close(stop.x0, expected)
    torch.testing.assert_close(stops[-1].x_t, expected)  # the last guess is the picture
    assert torch.equal(sample(denoiser(T), [0], SHAPE, sampler, steps=None), stops[-1].x_t)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_an_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=rf"eta must lie in \[0, 1\], not {eta}"):
        sample(denoiser(), [0], SHAPE, "ddim", eta=eta)


def test_eta_without_noise_is_refused():
    with pytest.raises(ValueError, match="pass noise=Noise"):
        next(ddim(network, linear(50), torch.zeros(1, *SHAPE), eta=0.5))


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="unknown sampler 'euler': choose one of dpm_solver_pp, .*ddim"):
        sample(denoiser(), [0], SHAPE, "euler")


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="at least one seed: one picture is drawn per seed"):
        sample(denoiser(), [], SHAPE)


@every_sampler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_guess_that_is_not_finite_is_no_black_picture(sampler, value):
    def broken(x, t):
        return torch.where(t.reshape(-1, 1, 1, 1) < 500, value, x)

    broken.schedule = cosine(1000)
    with pytest.raises(FloatingPointError, match="the guess at timestep 499 is not finite"):
        sample(broken, [0], (3, 8, 8), sampler, 10)


# Seeds


def test_every_seed_of_32_bits_draws_something_else():
    for seed in (0, 1, 2**31, 2**32 - 1):
        expected = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(Noise([seed], SHAPE)(), expected)
    seeds = [0, 1, 2**16, 2**31, 2**32 - 1]
    assert len(Noise(seeds, SHAPE)().unique(dim=0)) == len(seeds)


@pytest.mark.parametrize(
    "seeds, text",
    [
        (3, r"seeds must be a list of whole numbers, such as range\(4\), not 3"),
        ([0.5], r"whole numbers.*not \[0.5\]"),
        ({1: 2}, "a list of whole numbers"),
        ({1, 2}, "a list of whole numbers"),
        (b"ab", "a list of whole numbers"),
        ([True, False], "a list of whole numbers"),
        ((i for i in range(2)), "a list of whole numbers"),
        (["a"], "whole numbers"),
        (None, "whole numbers"),
        ([], "at least one seed"),
        ([-1], r"seed must lie in \[0, 4294967295\], not -1"),
        (range(2**32 - 2, 2**32 + 2), "seed must lie in .* not 4294967296"),
    ],
)
def test_seeds_that_are_none_are_refused(seeds, text):
    denoiser = Denoiser(lambda x, t: x, cosine(10), "sample")
    with pytest.raises(ValueError, match=text):
        sample(denoiser, seeds, SHAPE, steps=2)
    for seed in seeds if isinstance(seeds, list) else ():
        with pytest.raises(ValueError, match=text):
            generator(seed)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_guess_of_another_shape_is_refused_not_broadcast(sampler):
    walk = SAMPLERS[sampler](lambda x, t: x[:1], cosine(10), torch.zeros(2, *SHAPE), Noise([0, 1], SHAPE), steps=2)
    with pytest.raises(ValueError, match="the guess must have the shape of x_t"):
        next(walk)
