"""What a training step sees: pictures, noise, timesteps and descriptions, drawn from (seed, step) alone."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from diffusion_utils.config import TrainConfig
from diffusion_utils.data import to_float
from diffusion_utils.networks.super_resolution import SuperResolution, low_resolution_cond, shrink
from diffusion_utils.schedule import Schedule, make_schedule


def make_batch(
    images: Tensor, step: int, config: TrainConfig, share: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, noise and timesteps of one step, drawn from (seed, step) alone.

    Args:
        images: uint8 (N, 3, H, W), or float32 latents, on the training device.
        share: (i, n): the i-th of n equal parts of the batch.

    Returns:
        x0 (pictures in [-1, 1]) and noise, both (B/n, C, H, W), and t int64 (B/n,).
    """
    batch, device = config.batch_size, images.device
    generator = torch.Generator(device).manual_seed(_stream(config.seed, step))
    x0 = images[batch_indices(step, batch, len(images), config.seed).to(device)]
    x0 = to_float(x0) if x0.dtype == torch.uint8 else x0
    if config.flip:
        mirrored = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < 0.5
        x0 = torch.where(mirrored, x0.flip(3), x0)
    if config.timestep_sampling == "uniform":
        t = torch.randint(config.num_train_timesteps, (batch,), device=device, generator=generator)
    else:
        levels = _log_noise_levels(config.schedule, config.num_train_timesteps, config.zero_terminal_snr)
        drawn = -1.2 + 1.2 * torch.randn(batch, device=device, generator=generator)
        t = torch.searchsorted(levels.to(device), drawn).clamp(max=config.num_train_timesteps - 1)
    noise = torch.randn(x0.shape, device=device, generator=generator)
    part = _part(batch, share)
    return x0[part], noise[part], t[part]


def make_cond(cond: Tensor, step: int, config: TrainConfig, share: tuple[int, int] = (0, 1)) -> Tensor:
    """The descriptions of the pictures of `make_batch`, some of them withheld (`config.cond_dropout`).

    Args:
        cond: (N, D), one row per training picture, or (N, K, D), several of which one is drawn; on the
            training device.
        share: as for `make_batch`.

    Returns:
        (B/n, D); withheld rows are zeros.
    """
    batch = config.batch_size
    rows = cond[batch_indices(step, batch, len(cond), config.seed).to(cond.device)]
    # A stream of its own: a run with descriptions sees the pictures and noise of one without.
    generator = torch.Generator(cond.device).manual_seed(_stream(config.seed + 1, step))
    told = torch.rand(batch, 1, device=cond.device, generator=generator) >= config.cond_dropout
    if rows.dim() == 3:
        choice = torch.randint(rows.shape[1], (batch,), device=cond.device, generator=generator)
        rows = rows[torch.arange(batch, device=cond.device), choice]
    return (rows * told)[_part(batch, share)]


def make_low_resolution(
    x0: Tensor,
    net: SuperResolution,
    schedule: Schedule,
    step: int,
    config: TrainConfig,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """What a network for super-resolution is told of the pictures of `make_batch`: each one small, with
    noise of a random level on it; see `low_resolution_cond`.

    Args:
        x0: (B/n, 3, H, W), this process's pictures.
        share: as for `make_batch`.
    """
    small, part = shrink(x0, net.scale), _part(config.batch_size, share)
    generator = torch.Generator(x0.device).manual_seed(_stream(config.seed + 2, step))
    level = torch.randint(net.max_noise, (config.batch_size,), device=x0.device, generator=generator)
    noise = torch.randn(config.batch_size, *small.shape[1:], device=x0.device, generator=generator)
    return low_resolution_cond(small, schedule, level[part], noise[part])


def check_cond(net: nn.Module, cond: Tensor | None, count: int) -> None:
    """Raise a ValueError if descriptions of `count` pictures are not what the network takes."""
    wanted = getattr(net, "cond_shape", None)
    given = None if cond is None else (tuple(cond.shape[:1]), tuple(cond.shape[-len(wanted or ()) :]))
    if given != (None if wanted is None else ((count,), wanted)):
        raise ValueError(
            f"the network takes {'no cond' if wanted is None else f'cond of shape {(count, *wanted)}'}, not "
            f"{None if cond is None else tuple(cond.shape)}"
        )


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """Which of `count` pictures step `step` sees: every picture once per epoch, each epoch shuffled."""
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epoch = position // count
    return torch.cat([_epoch_order(int(e), count, seed)[position[epoch == e] % count] for e in epoch.unique()])


def _part(batch: int, share: tuple[int, int]) -> slice:
    return slice(share[0] * batch // share[1], (share[0] + 1) * batch // share[1])


def _stream(seed: int, number: int) -> int:
    """The seed of one of a run's many generators.  torch's CPU generator reads only the lower 32
    bits of a seed, so the run's seed cannot stand in the upper ones."""
    return (seed * 0x9E3779B1 + number) % 2**32


@lru_cache(maxsize=4)
def _log_noise_levels(schedule: str, num_train_timesteps: int, zero_terminal_snr: bool) -> Tensor:
    """ln(σ/α) of every timestep, rising, float32 (T,)."""
    return make_schedule(schedule, num_train_timesteps, zero_terminal_snr).snr().log().mul(-0.5).float()


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(_stream(seed, 2**31 + epoch))
    return torch.randperm(count, generator=generator)
