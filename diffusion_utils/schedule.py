"""Noise schedules: how much picture and how much noise there is at each timestep.

The forward process mixes a picture x₀ with Gaussian noise ε (DDPM, Ho et al. 2020, eq. 4):

    x_t = √ᾱ_t · x₀ + √(1 - ᾱ_t) · ε          "alpha" = √ᾱ_t, "sigma" = √(1 - ᾱ_t)

A schedule is nothing but the list of ᾱ_t for the integer timesteps t = 0 … T-1; t = 0 carries the
least noise.  The lists are kept in float64, because ᾱ spans many orders of magnitude; what touches
a picture is cast to the picture's own type.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_utils.checks import suggestions

ScheduleName = Literal["linear", "cosine", "flow"]
SCHEDULES = get_args(ScheduleName)


@dataclass(frozen=True, eq=False)
class Schedule:
    """ᾱ_t for t = 0 … T-1, and what follows from it.

    Args:
        alphas_cumprod: float64 tensor of shape (T,), falling, in [0, 1).
        name: how the schedule was made; stored in model cards.

    Raises:
        ValueError: alphas_cumprod is something else.
    """

    alphas_cumprod: Tensor
    name: str = "custom"

    def __post_init__(self):
        a = self.alphas_cumprod
        if not isinstance(a, Tensor) or a.dtype != torch.float64 or a.dim() != 1 or not len(a):
            kind = f"{a.dtype} {tuple(a.shape)}" if isinstance(a, Tensor) else type(a).__name__
            raise ValueError(f"alphas_cumprod must be a float64 tensor of shape (T,), not {kind}")
        # Rounding apart: where no signal is to be left, diffusers ends in 2⁻²⁴.
        if not (a.isfinite().all() and 0 <= a.min() and a.max() < 1 and (a.diff() < 1e-6).all()):
            raise ValueError("alphas_cumprod must fall, in [0, 1): it is the share of the picture's variance left at t")

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    @property
    def betas(self) -> Tensor:
        """β_t = 1 - ᾱ_t / ᾱ_{t-1}: the share of variance replaced by noise in step t, shape (T,)."""
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        return 1 - self.alphas_cumprod / previous

    def snr(self, t: Tensor | None = None) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float64, for timesteps `t` (default: all T); ∞ at t = -1."""
        if t is None:
            return self.alphas_cumprod / (1 - self.alphas_cumprod)
        table = self._extended / (1 - self._extended)
        if t.device.type == "mps":  # Apple's GPUs have no float64
            table = table.float()
        return to_device(table, t.device)[self._checked(t)]

    def alpha_sigma(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), shaped to multiply the batch `like`.

        Args:
            t: int64 timesteps of shape (N,), or one integer for the whole batch; -1 means the
                finished picture (alpha = 1, sigma = 0), which is where samplers end.
            like: a batch of shape (N, ...); gives type, device and number of dimensions.

        Returns:
            Two tensors of shape (N, 1, ..., 1), or (1, ..., 1) for an integer t.
        """
        if not isinstance(like, Tensor) or not like.is_floating_point():
            kind = getattr(like, "dtype", type(like).__name__)
            raise ValueError(f"expected a tensor of float pictures in [-1, 1], not {kind}: see data.to_float")
        t = torch.as_tensor(t).reshape(-1)
        if len(t) not in (1, len(like)):
            raise ValueError(f"{len(t)} timesteps for {len(like)} pictures: give one each, or one for all")
        # Roots in float64, then the cast, then the move: some devices (Apple's) have no float64.
        table = torch.stack([self._extended.sqrt(), (1 - self._extended).sqrt()]).to(like.dtype)
        alpha, sigma = to_device(table, like.device)[:, to_device(self._checked(t), like.device)]
        shape = (-1, *[1] * (like.dim() - 1))
        return alpha.reshape(shape), sigma.reshape(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """Jump from x₀ straight to x_t: √ᾱ_t · x₀ + √(1 - ᾱ_t) · ε  (DDPM eq. 4).

        Args:
            x0: clean pictures (N, C, H, W) in [-1, 1].
            noise: standard normal ε of the same shape.
            t: integer timesteps (N,) in [0, T-1], or one integer for all; -1 gives x0 back.

        Raises:
            ValueError: x0 and noise differ in shape, or a timestep lies outside the schedule.
        """
        if x0.shape != noise.shape:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)} but noise has {tuple(noise.shape)}: "
                "draw the noise with torch.randn_like(x0)"
            )
        alpha, sigma = self.alpha_sigma(t, like=x0)
        return alpha * x0 + sigma * noise

    def rescale_zero_terminal_snr(self) -> "Schedule":
        """The same schedule, shifted and stretched so that ᾱ_{T-1} = 0 exactly.

        Usual schedules leave a little of the picture in x_{T-1}; sampling, which starts from pure
        noise, then meets an input the network never saw.  Lin et al. 2023 (2305.08891), algorithm
        1: √ᾱ is mapped linearly so that its last value becomes 0 and its first stays.  A network
        that predicts ε learns nothing where no signal is left: use `sample` or `v_prediction`.
        """
        root = self.alphas_cumprod.sqrt()
        if len(root) < 2:
            raise ValueError("a schedule of one timestep cannot be rescaled: use T of 2 or more")
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return Schedule(root**2, name=self.name + "+zero_terminal_snr")

    @property
    def _extended(self) -> Tensor:
        """ᾱ_0 … ᾱ_{T-1}, and 1 at the end, where the index -1 finds it."""
        return torch.cat([self.alphas_cumprod, torch.ones(1, dtype=torch.float64)])

    def _checked(self, t: Tensor) -> Tensor:
        """Timesteps as int64, or a clear error instead of a silent wrap-around."""
        if t.is_floating_point() or t.dtype == torch.bool:
            raise ValueError(f"timesteps must be integers, not {t.dtype}")
        t = t.long()
        # On a GPU the check would make the host wait for the device; indexing still fails there.
        if t.device.type == "cpu" and t.numel() and not -1 <= t.min() <= t.max() < self.num_train_timesteps:
            raise ValueError(
                f"timesteps must lie in [0, {self.num_train_timesteps - 1}], "
                f"not {int(t.min())}…{int(t.max())} (only -1, the finished picture, is allowed besides)"
            )
        return t


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host there; on a CUDA device the host need not wait until all work before is done."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def linear(num_train_timesteps: int = 1000) -> Schedule:
    """DDPM's schedule (Ho et al. 2020, section 4): β rises linearly from 1e-4 to 0.02 at T = 1000.

    Those numbers are made for T = 1000.  Used unchanged for T = 200 they leave a good third of the
    picture in x_T.  So for any other T the *curve* stays and is read at T points: log ᾱ of the
    1000-step schedule, interpolated at 1000·(t+1)/T.  Where T divides 1000 this is exactly every
    (1000/T)-th entry, as in the respacing of Nichol & Dhariwal 2021, and ᾱ_{T-1} is 4e-5 for every T.
    """
    _check_timesteps(num_train_timesteps)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    log_alphas_cumprod = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - betas).log().cumsum(0)])
    position = 1000 * torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    left = position.floor().long().clamp(max=999)
    log_alphas_cumprod = torch.lerp(log_alphas_cumprod[left], log_alphas_cumprod[left + 1], position - left)
    return Schedule(log_alphas_cumprod.exp(), name="linear")


def cosine(num_train_timesteps: int = 1000) -> Schedule:
    """Nichol & Dhariwal 2021 (2102.09672), eq. 17: ᾱ follows cos² and is gentle at both ends.

    As in the paper β is cut at 0.999, so that the last step keeps a trace of signal.
    """
    _check_timesteps(num_train_timesteps)
    s = 0.008  # keeps β from becoming too small near t = 0
    u = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return Schedule((1 - betas).cumprod(0), name="cosine")


def flow(num_train_timesteps: int = 1000) -> Schedule:
    """Flow matching's straight path (Lipman et al. 2022, 2210.02747; Liu et al. 2022, 2209.03003) as a schedule.

    There y = (1-τ)·x₀ + τ·ε.  Divided by n = √((1-τ)² + τ²), so that α² + σ² = 1, this is x_t with
    α = (1-τ)/n and σ = τ/n, hence τ = σ/(α+σ).  Timestep t stands for τ = (t+1)/T, which 🤗 diffusers'
    FlowMatchEulerDiscreteScheduler calls sigma.  At the last one τ = 1 and nothing of the picture is left; τ = 0,
    the finished picture, is t = -1, as in every schedule.
    """
    _check_timesteps(num_train_timesteps)
    tau = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    return Schedule((1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2), name="flow")


def make_schedule(name: str = "cosine", num_train_timesteps: int = 1000, zero_terminal_snr: bool = False) -> Schedule:
    """A schedule by name ("linear", "cosine" or "flow"); this is what configurations and model cards call.

    Raises:
        ValueError: unknown name, or fewer than one timestep.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {suggestions(name, SCHEDULES)}")
    schedule = {"linear": linear, "cosine": cosine, "flow": flow}[name](num_train_timesteps)
    return schedule.rescale_zero_terminal_snr() if zero_terminal_snr else schedule


def _check_timesteps(num_train_timesteps: int) -> None:
    if not isinstance(num_train_timesteps, Integral) or num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be a whole number ≥ 1, not {num_train_timesteps!r}")
