"""From noise to picture: DDPM ancestral sampling, DDIM, DPM-Solver++(2M), consistency sampling.

Every sampler walks down a list of timesteps and is a generator: it yields `Step(t, x_t, x0)` before
each move (what it stands on, and the picture the network guesses from there), and at the end
`Step(-1, picture, picture)`.  The caller can stop, draw, or record; `sample` just runs to the end.

All of them need one thing of the network: x̂₀, as `prediction.Denoiser` gives it (any function of
(x_t, t) will do).  As with every generator, wrong arguments are reported at the first step.  Noise
comes from one generator per picture, so picture i is the same in a batch of 1 or of 100.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from numbers import Integral
from operator import index
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffusion_utils.checks import suggestions
from diffusion_utils.schedule import Schedule

SamplerName = Literal["ddpm", "ddim", "dpm_solver_pp", "consistency"]
TimestepSpacing = Literal["trailing", "leading", "linspace"]
SPACINGS = get_args(TimestepSpacing)
LARGEST_SEED = 2**32 - 1  # torch's CPU generator ignores all bits above: 0 and 2**32 would draw one picture
Predictor = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) to x̂₀
Fresh = Callable[[], Tensor]  # fresh noise each time


class Step(NamedTuple):
    """One stop of a sampler.

    t: the timestep, -1 when finished;  x_t: the batch there;  x0: the network's guess x̂₀ from it.
    """

    t: int
    x_t: Tensor
    x0: Tensor


def timesteps(num_train_timesteps: int, steps: int, timestep_spacing: str = "trailing") -> list[int]:
    """Which of the T trained timesteps to visit, from noisy to clean.

    "trailing" always starts at T-1, where sampling from pure noise belongs; "leading" (DDPM's
    common choice) does not, see Lin et al. 2023 (2305.08891), table 2, for all three.

    Raises:
        ValueError: unknown timestep_spacing, or `steps` outside [1, T].
    """
    if timestep_spacing not in SPACINGS:
        known = suggestions(timestep_spacing, SPACINGS)
        raise ValueError(f"unknown timestep_spacing {timestep_spacing!r}: choose one of {known}")
    if not isinstance(steps, Integral) or not 1 <= steps <= num_train_timesteps:
        raise ValueError(f"steps must be a whole number in [1, {num_train_timesteps}], not {steps}")
    T = num_train_timesteps
    if timestep_spacing == "trailing":
        return [round(T - i * T / steps) - 1 for i in range(steps)]
    if timestep_spacing == "leading":
        return [(steps - 1 - i) * (T // steps) for i in range(steps)]
    if steps == 1:
        return [T - 1]
    return [round((T - 1) * (1 - i / (steps - 1))) for i in range(steps)]


def stream(seed: int, number: int) -> int:
    """The seed of one of many independent generators that belong to a seed of a run or of a picture."""
    return (int(seed) * 0x9E3779B1 + number) % 2**32


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU for a whole number in [0, 2**32 - 1]; raises a ValueError for anything else."""
    return torch.Generator().manual_seed(*checked_seeds([seed]))


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds as a list.

    Raises:
        ValueError: no list, an empty one, or something in it that is no whole number in [0, 2**32 - 1].
    """
    try:
        if isinstance(seeds, str | bytes | Set | Mapping) or not hasattr(seeds, "__len__"):
            raise TypeError  # some of these yield whole numbers, too, in an order that nobody asked for
        numbers = [index(None if isinstance(seed, bool) else seed) for seed in seeds]
    except TypeError:
        raise ValueError(f"seeds must be a list of whole numbers, such as range(4), not {seeds!r}") from None
    if not numbers:
        raise ValueError("give at least one seed: one picture is drawn per seed")
    if wrong := [seed for seed in numbers if not 0 <= seed <= LARGEST_SEED]:
        raise ValueError(f"seed must lie in [0, {LARGEST_SEED}], not {wrong[0]}")
    return numbers


class Noise:
    """Standard normal noise, one independent stream per picture.

    Args:
        seeds: one whole number in [0, 2**32 - 1] per picture; picture i depends on seeds[i] alone.
        shape: of one picture, (C, H, W).
        device, dtype: of the result; drawn on the CPU, so that a GPU draws the same picture.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device="cpu", dtype=torch.float32):
        self.generators = [generator(seed) for seed in checked_seeds(seeds)]
        self.shape, self.device, self.dtype = tuple(shape), device, dtype

    def __call__(self) -> Tensor:
        """The next noise of every stream: (N, C, H, W)."""
        pictures = [torch.randn(self.shape, generator=g, dtype=self.dtype) for g in self.generators]
        return torch.stack(pictures).to(self.device)


def ddpm(
    predict: Predictor, schedule: Schedule, x_T: Tensor, noise: Fresh, steps: int | None = None, **walk
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, with the posterior of eq. 6 and 7).

    Each move draws x_s from q(x_s | x_t, x̂₀), a Gaussian between the guess and where we stand.

    Args:
        predict: (x_t, t (N,)) to x̂₀.
        x_T: the start, standard normal (N, C, H, W).
        noise: called once per step for fresh noise shaped like x_T; see `Noise`.
        steps: how many; default all T.
        walk: clip_sample, to clip x̂₀ (never x_t) to [-1, 1], where pictures live, default True; and
            timestep_spacing, see `timesteps`, default "trailing".
    """
    x = x_T
    for t, s, guess, alpha_t, sigma_t, alpha_s, sigma_s in _walk(predict, schedule, steps, **walk):
        x0 = guess(x)
        yield Step(t, x, x0)
        alpha_ts = alpha_t / alpha_s  # how the signal shrinks from s to t …
        variance_ts = sigma_t**2 - (alpha_ts * sigma_s) ** 2  # … and the noise that comes on top
        mean = (alpha_s * variance_ts * x0 + alpha_ts * sigma_s**2 * x) / sigma_t**2
        fresh = noise()
        x = mean if s < 0 else mean + sigma_s / sigma_t * variance_ts.sqrt() * fresh
    yield Step(-1, x, x)


def ddim(
    predict: Predictor,
    schedule: Schedule,
    x_T: Tensor,
    noise: Fresh | None = None,
    steps: int | None = 50,
    eta: float = 0.0,
    **walk,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, 2010.02502, eq. 12 and 16): same network, far fewer steps.

    x_s = α_s·x̂₀ + √(σ_s² - τ²)·ε̂ + τ·(fresh noise).  With eta = 0 nothing is random after x_T, so
    the noise works as an address of the picture; eta = 1 gives DDPM.

    Args as for `ddpm`; `noise` is needed only for eta > 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], not {eta}")
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds fresh noise at every step: pass noise=Noise(seeds, shape)")
    x = x_T
    for t, _, guess, alpha_t, sigma_t, alpha_s, sigma_s in _walk(predict, schedule, steps, **walk):
        x0 = guess(x)
        yield Step(t, x, x0)
        epsilon = (x - alpha_t * x0) / sigma_t
        variance_ts = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        tau = eta * sigma_s / sigma_t * variance_ts.clamp(min=0).sqrt()
        x = alpha_s * x0 + (sigma_s**2 - tau**2).clamp(min=0).sqrt() * epsilon
        if eta > 0:
            x = x + tau * noise()
    yield Step(-1, x, x)


def dpm_solver_pp(
    predict: Predictor, schedule: Schedule, x_T: Tensor, noise: Fresh | None = None, steps: int | None = 20, **walk
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, 2211.01095, algorithm 2): second order, one call a step.

    DDIM takes x̂₀ as constant between two timesteps; here it is a straight line in λ = log(α/σ)
    through this guess and the previous one.  The first and the last move are DDIM's: before the
    first there is no previous guess, and at the end λ is infinite.

    Args as for `ddpm`; nothing is random after x_T, `noise` is ignored.
    """
    x, previous = x_T, None
    for t, s, guess, alpha_t, sigma_t, alpha_s, sigma_s in _walk(predict, schedule, steps, **walk):
        x0 = guess(x)
        yield Step(t, x, x0)
        lambda_t = (alpha_t / sigma_t).log()  # -∞ where no signal is left: then `line` is just x0
        line = x0
        if s >= 0:
            step_size = (alpha_s / sigma_s).log() - lambda_t
            if previous is not None:
                previous_x0, previous_lambda = previous
                ratio = (lambda_t - previous_lambda) / step_size
                line = x0 + (x0 - previous_x0) / (2 * ratio)
        previous = (x0, lambda_t)
        # σ_s/σ_t·x + α_s·(1 - e^(-h))·line, with e^(-h) = (α_t/σ_t)·(σ_s/α_s) written out
        x = sigma_s / sigma_t * x + (alpha_s - sigma_s * alpha_t / sigma_t) * line
    yield Step(-1, x, x)


def consistency(
    predict: Predictor, schedule: Schedule, x_T: Tensor, noise: Fresh, steps: int | None = 2, **walk
) -> Iterator[Step]:
    """Multistep consistency sampling (Song et al. 2023, 2303.01469, algorithm 1), for weights that
    were tuned to answer with a finished picture (see `training.consistency`).

    One step takes the answer to pure noise; every further one puts fresh noise on the picture, less
    each time, and answers again.  Args as for `ddpm`.
    """
    x = x_T
    for t, _, guess, _, _, alpha_s, sigma_s in _walk(predict, schedule, steps, **walk):
        x0 = guess(x)
        yield Step(t, x, x0)
        x = alpha_s * x0 + sigma_s * noise()
    yield Step(-1, x, x)


SAMPLERS = dict(zip(get_args(SamplerName), (ddpm, ddim, dpm_solver_pp, consistency)))


@torch.no_grad()
def sample(denoiser, seeds: Sequence[int], *args, **options) -> Tensor:
    """Draw one picture per seed and return the batch (N, C, H, W), about in [-1, 1]; arguments as for `trajectory`."""
    return deque(trajectory(denoiser, seeds, *args, **options), maxlen=1).pop().x_t


@torch.no_grad()
def trajectory(
    denoiser,
    seeds: Sequence[int],
    shape: Sequence[int] = (3, 64, 64),
    sampler: SamplerName = "dpm_solver_pp",
    steps: int | None = 20,
    device: torch.device | str = "cpu",
    **options,
) -> Iterator[Step]:
    """Draw one picture per seed, and yield every `Step` on the way.

    Args:
        denoiser: a `prediction.Denoiser` or a `guidance.Guided` (needs `.schedule`).
        seeds: one per picture.
        shape: of one picture.
        sampler: "ddpm", "ddim", "dpm_solver_pp" or "consistency";  options (eta, clip_sample, …) go to it.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: choose one of {suggestions(sampler, SAMPLERS)}")
    noise = Noise(seeds, shape, device)
    yield from SAMPLERS[sampler](denoiser, denoiser.schedule, noise(), noise, steps=steps, **options)


def _walk(
    predict: Predictor,
    schedule: Schedule,
    steps: int | None,
    clip_sample: bool = True,
    timestep_spacing: TimestepSpacing = "trailing",
):
    """What all samplers share: for each move t → s the α and σ of both ends, and a function that
    asks the network for x̂₀ at t.  The last s is -1: the finished picture, α = 1, σ = 0."""
    T = schedule.num_train_timesteps
    visited, finite = timesteps(T, T if steps is None else steps, timestep_spacing), []
    for t, s in zip(visited, [*visited[1:], -1]):

        def guess(x: Tensor, t: int = t) -> Tensor:
            x0 = predict(x, torch.full((len(x),), t, device=x.device))
            if x0.shape != x.shape:
                raise ValueError(f"the guess must have the shape of x_t, {tuple(x.shape)}, not {tuple(x0.shape)}")
            finite.append(x0.isfinite().all())  # before clipping makes it black or white; read at the end, to wait once
            return x0.clamp(-1, 1) if clip_sample else x0

        # Kept in float64 numbers: products of small α and σ lose digits in float32.
        one = torch.ones(1, dtype=torch.float64)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            [v.reshape(()) for v in schedule.alpha_sigma(u, like=one)] for u in (t, s)
        )
        yield t, s, guess, alpha_t, sigma_t, alpha_s, sigma_s
    if not all(finite):
        t = visited[[*map(bool, finite)].index(False)]
        raise FloatingPointError(
            f"the guess at timestep {t} is not finite: the weights are damaged, or guidance is too strong"
        )
