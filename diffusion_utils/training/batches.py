"""What a training step sees: pictures, noise, timesteps and conditions, drawn from (seed, step) alone."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_utils.data import to_float
from diffusion_utils.data.order import batch_indices
from diffusion_utils.networks import Autoencoder, SuperResolution
from diffusion_utils.networks.super_resolution import low_resolution_cond, shrink
from diffusion_utils.sampling import stream
from diffusion_utils.schedule import Schedule, make_schedule, to_device
from diffusion_utils.training.config import TrainConfig

Share = tuple[int, int]  # (i, n): of n processes the i-th
LOG_NOISE_LEVELS = {"lognormal": (-1.2, 1.2), "logitnormal": (0.0, 1.0)}  # mean and deviation of ln(σ/α)


class Batch(NamedTuple):
    """One step's pictures (or latents) x0 and noise, (B, C, H, W), timesteps t, int64 (B,), and conditions.

    Noise has the shape of x0, but for an autoencoder that of its latents.
    """

    x0: Tensor
    noise: Tensor
    t: Tensor
    cond: Tensor | None = None


class Batches:
    """The batch of every step: `batches[step]`.

    Args:
        images: uint8 (N, 3, H, W), or float32 latents, on the training device.
        cond: as for `training.train`, on the same device.
        net: the network that is trained; one for super-resolution gets its conditions made here.
        config: seed, batch size, and how things are drawn.
        share: (i, n): of n processes the i-th, which gets its equal part of each batch.

    Raises:
        ValueError: the network takes other conditions.
    """

    def __init__(self, images: Tensor, cond: Tensor | None, net: nn.Module, config: TrainConfig, share: Share = (0, 1)):
        check_cond(net, cond, len(images))
        self.images, self.cond, self.config, self.share = images, cond, config, share
        self.schedule = config.make_schedule()
        self.super_resolution = net if isinstance(net, SuperResolution) else None
        if self.super_resolution and net.max_noise > config.num_train_timesteps:
            raise ValueError(
                f"max_noise {net.max_noise} is beyond the {config.num_train_timesteps} timesteps: lower it"
            )
        autoencoder = isinstance(net, Autoencoder)
        self.noise_shape = net.latent_shape(*images.shape[2:]) if autoencoder else images.shape[1:]

    def __getitem__(self, step: int) -> Batch:
        x0, noise, t = make_batch(self.images, step, self.config, self.share, self.noise_shape)
        cond = None
        if self.super_resolution:
            cond = make_low_resolution(x0, self.super_resolution, self.schedule, step, self.config, self.share)
        elif self.cond is not None:
            cond = make_cond(self.cond, step, self.config, self.share)
        return Batch(x0, noise, t, cond)


def make_batch(
    images: Tensor, step: int, config: TrainConfig, share: Share = (0, 1), noise_shape: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, noise and timesteps of one step, drawn from (seed, step) alone.

    Args:
        images: uint8 (N, 3, H, W), or float32 latents, on the training device.
        share: (i, n): the i-th of n equal parts of the batch.
        noise_shape: of the noise for one picture; default: the picture's.

    Returns:
        x0 (pictures in [-1, 1]) and noise, both (B/n, C, H, W), and t int64 (B/n,).
    """
    batch, device = config.batch_size, images.device
    generator = torch.Generator(device).manual_seed(stream(config.seed, step))
    x0 = images[to_device(batch_indices(step, batch, len(images), config.seed), device)]
    x0 = to_float(x0) if x0.dtype == torch.uint8 else x0
    if config.flip:
        mirrored = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < 0.5
        x0 = torch.where(mirrored, x0.flip(3), x0)
    if config.shift:
        by = torch.randint(-config.shift, config.shift + 1, (batch, 2), device=device, generator=generator)
        x0 = shifted(x0, by)
    if config.timestep_sampling == "uniform":
        t = torch.randint(config.num_train_timesteps, (batch,), device=device, generator=generator)
    else:
        levels = _log_noise_levels(config.schedule, config.num_train_timesteps, config.zero_terminal_snr)
        mean, deviation = LOG_NOISE_LEVELS[config.timestep_sampling]
        drawn = mean + deviation * torch.randn(batch, device=device, generator=generator)
        t = torch.searchsorted(to_device(levels, device), drawn).clamp(max=config.num_train_timesteps - 1)
    noise = torch.randn(batch, *(noise_shape or x0.shape[1:]), device=device, generator=generator)
    part = _part(batch, share)
    return x0[part], noise[part], t[part]


def shifted(images: Tensor, by: Tensor) -> Tensor:
    """Pictures (N, C, H, W), moved by (N, 2) pixels down and right, whole numbers; the edge is repeated where
    there is nothing."""
    pictures = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = (
        (torch.arange(side, device=images.device) - by[:, i, None]).clamp(0, side - 1)
        for i, side in enumerate(images.shape[2:])
    )
    return images[pictures, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def make_cond(cond: Tensor, step: int, config: TrainConfig, share: Share = (0, 1)) -> Tensor:
    """The conditions of the pictures of `make_batch`, some of them withheld (`config.cond_dropout`).

    Args:
        cond: (N, D), one row per training picture, or (N, K, D), several of which one is drawn; on the
            training device.
        share: as for `make_batch`.

    Returns:
        (B/n, D); withheld rows are zeros.
    """
    batch = config.batch_size
    rows = cond[to_device(batch_indices(step, batch, len(cond), config.seed), cond.device)]
    # A stream of its own: a run with conditions sees the pictures and noise of one without.
    generator = torch.Generator(cond.device).manual_seed(stream(config.seed + 1, step))
    kept = torch.rand(batch, 1, device=cond.device, generator=generator) >= config.cond_dropout
    if rows.dim() == 3:
        choice = torch.randint(rows.shape[1], (batch,), device=cond.device, generator=generator)
        rows = rows[torch.arange(batch, device=cond.device), choice]
    return (rows * kept)[_part(batch, share)]


def make_low_resolution(
    x0: Tensor, net: SuperResolution, schedule: Schedule, step: int, config: TrainConfig, share: Share = (0, 1)
) -> Tensor:
    """The conditions of a network for super-resolution for the pictures of `make_batch`: each one small, with
    noise of a random level on it; see `low_resolution_cond`.

    Args:
        x0: (B/n, 3, H, W), this process's pictures.
        share: as for `make_batch`.
    """
    small, part = shrink(x0, net.scale), _part(config.batch_size, share)
    generator = torch.Generator(x0.device).manual_seed(stream(config.seed + 2, step))
    level = torch.randint(net.max_noise, (config.batch_size,), device=x0.device, generator=generator)
    noise = torch.randn(config.batch_size, *small.shape[1:], device=x0.device, generator=generator)
    return low_resolution_cond(small, schedule, level[part], noise[part])


def check_cond(net: nn.Module, cond: Tensor | None, count: int) -> None:
    """Raise a ValueError if conditions for `count` pictures are not what the network takes."""
    expected = getattr(net, "cond_shape", None)
    given = None if cond is None else (tuple(cond.shape[:1]), tuple(cond.shape[-len(expected or ()) :]))
    if given != (None if expected is None else ((count,), expected)):
        raise ValueError(
            f"the network takes {'no cond' if expected is None else f'cond of shape {(count, *expected)}'}, not "
            f"{None if cond is None else tuple(cond.shape)}"
        )
    if cond is not None and not cond.isfinite().all():
        raise ValueError("cond holds numbers that are not finite")


def _part(batch: int, share: Share) -> slice:
    return slice(share[0] * batch // share[1], (share[0] + 1) * batch // share[1])


@lru_cache(maxsize=4)
def _log_noise_levels(schedule: str, num_train_timesteps: int, zero_terminal_snr: bool) -> Tensor:
    """ln(σ/α) of every timestep, rising, float32 (T,)."""
    return make_schedule(schedule, num_train_timesteps, zero_terminal_snr).snr().log().mul(-0.5).float()
