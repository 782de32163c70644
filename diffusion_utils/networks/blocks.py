"""The bricks that every network here is built from."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of the timestep at geometrically spaced frequencies.

    One number t becomes `dim` numbers, as a clock turns one time into the angles of several hands:
    nearby timesteps get nearby vectors, distant ones differ.  Vaswani et al. 2017, section 3.5, as
    used for timesteps by DDPM.

    Args:
        t: timesteps (N,), any number type.
        dim: even, ≥ 2.

    Returns:
        float32 (N, dim): the dim/2 cosines, then the dim/2 sines, in [-1, 1].
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and at least 2, not {dim}")
    half = dim // 2
    exponent = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """Timesteps (N,) to vectors (N, dim): the sinusoids, then a small MLP that reads them."""

    def __init__(self, dim: int, frequencies: int = 64):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.frequencies))


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in groups of 8 channels (Wu & He 2018): unlike BatchNorm it treats each picture
    alone, which matters when a batch mixes nearly clean pictures with nearly pure noise."""
    return nn.GroupNorm(max(1, channels // 8) if channels % 8 == 0 else 1, channels)


class ResBlock(nn.Module):
    """Two 3×3 convolutions around which the input is carried unchanged (He et al. 2016).

    The timestep acts between them by scale and shift, h·(1 + scale) + shift (FiLM, Perez et al.
    2018; "adaptive group normalization" in Dhariwal & Nichol 2021, eq. 3).  The second convolution
    starts at zero, so every block begins as the identity and learning starts from there.

    Args:
        in_channels, out_channels: a 1×1 convolution adapts the carried input where they differ.
        embedding_dim: length of the timestep vector.

    Shape:
        (N, in_channels, H, W) and (N, embedding_dim) to (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding_dim, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.carry = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.carry(x) + self.conv2(F.silu(h))


class Downsample(nn.Conv2d):
    """Half the height and width by a strided 3×3 convolution: (N, C, H, W) to (N, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


class Upsample(nn.ConvTranspose2d):
    """Double height and width by a transposed convolution: (N, C, H, W) to (N, C', 2H, 2W).

    The kernel (4) is divisible by the stride (2), so that every output pixel is written by the
    same number of inputs; with a kernel of 3 the counts alternate and print a checkerboard
    (Odena et al. 2016, distill.pub/2016/deconv-checkerboard).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
