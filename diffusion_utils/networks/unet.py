"""The usual diffusion U-Net, as the baseline that the small networks are measured against.

Ronneberger et al. 2015 (1505.04597) gave the form; this is DDPM's version of it (Ho et al. 2020,
appendix B) with the timestep as scale and shift (Dhariwal & Nichol 2021, section 3): residual
blocks, self-attention at low resolution, and a skip connection out of *every* block.
"""

import torch
from torch import Tensor, nn

from diffusion_utils.networks.blocks import (
    Downsample,
    ResBlock,
    SelfAttention,
    TimestepEmbedding,
    check_attention,
    check_size,
    group_norm,
    upsample,
)
from diffusion_utils.networks.registry import register


@register("unet")
class UNet(nn.Module):
    """A denoiser in U-Net form, at any width.

    Args:
        channels: width at each resolution, from the picture's own downwards (DDPM for CIFAR-10:
            128, 256, 256, 256 with depth 2 and attention at stride 2; its 35.7 million parameters
            are 38.3 here, because a timestep that scales *and* shifts takes twice the numbers).
        depth: residual blocks per resolution on the way down; one more on the way up.
        attention: strides (picture height / feature map height) with self-attention after every
            block; the middle, at the lowest resolution, always has it.
        picture_channels: 3 for RGB.
        embedding_dim: length of the timestep vector.
        cond_dim: length of `cond`, the vector of a condition; None: it takes none.

    Shape:
        x_t (N, C, H, W), t int64 (N,) and cond None or (N, cond_dim) to (N, C, H, W); H and W
        divisible by `self.stride`.

    Raises:
        ValueError: a configuration that cannot be built, or a picture that `stride` does not divide.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 128, 256),
        depth: int = 2,
        attention: tuple[int, ...] = (),
        picture_channels: int = 3,
        embedding_dim: int = 256,
        cond_dim: int | None = None,
    ):
        super().__init__()
        if not channels or depth < 1:
            raise ValueError("channels needs at least one width, and depth must be at least 1")
        self.stride = 2 ** (len(channels) - 1)
        check_attention(attention, [2**i for i in range(len(channels))])

        def block(before: int, after: int, stride: int) -> nn.ModuleList:
            attend = SelfAttention(after) if stride in attention else nn.Identity()
            return nn.ModuleList([ResBlock(before, after, embedding_dim), attend])

        self.cond_shape = (cond_dim,) if cond_dim else None
        self.embed = TimestepEmbedding(embedding_dim, cond_dim=cond_dim)
        self.stem = nn.Conv2d(picture_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, kept = channels[0], [channels[0]]  # widths of what the decoder will be given
        for i, next_width in enumerate(channels):
            if i:
                self.down.append(Downsample(width, width))
                kept.append(width)
            for _ in range(depth):
                self.down.append(block(width, next_width, 2**i))
                width = next_width
                kept.append(width)
        self.middle = nn.ModuleList(
            [ResBlock(width, width, embedding_dim), SelfAttention(width), ResBlock(width, width, embedding_dim)]
        )
        for i, next_width in reversed([*enumerate(channels)]):
            for _ in range(depth + 1):
                self.up.append(block(width + kept.pop(), next_width, 2**i))
                width = next_width
            if i:
                self.up.append(upsample("nearest", width, width))
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, picture_channels, 3, padding=1))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        check_size(x_t, self.stride, self.stem.in_channels)
        embedding = self.embed(t, cond)
        h = self.stem(x_t)
        kept = [h]
        for layer in self.down:
            if isinstance(layer, Downsample):
                h = layer(h)
            else:
                residual, attend = layer
                h = attend(residual(h, embedding))
            kept.append(h)
        before, attend, after = self.middle
        h = after(attend(before(h, embedding)), embedding)
        for layer in self.up:
            if isinstance(layer, nn.ModuleList):
                residual, attend = layer
                h = attend(residual(torch.cat([h, kept.pop()], dim=1), embedding))
            else:
                h = layer(h)
        return self.head(h)
