"""SegNet: an encoder–decoder whose decoder gets the place of each maximum, and nothing else.

Badrinarayanan, Kendall & Cipolla 2015 (1511.00561), figure 2: VGG-like stages of convolutions, each
ended by 2×2 max pooling; the decoder mirrors it, puts each value back where the maximum had been
(unpooling) and fills the gaps by convolutions.  Indices cost 2 bits per value, so edges stay sharp
for almost no memory.  It was made for labelling street scenes; here it denoises.  Changed for that:

- every convolution also hears the timestep (FiLM);
- GroupNorm instead of BatchNorm, which mixes clean and noisy pictures of a batch;
- it ends in a picture instead of class scores, and starts from the answer 0.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.networks.blocks import TimestepEmbedding, check_size, group_norm
from diffusion_utils.networks.registry import register


class ConvBlock(nn.Module):
    """3×3 convolution, normalisation, scale and shift by the timestep, ReLU.

    Shape:
        (N, in_channels, H, W) and (N, embedding_dim) to (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = group_norm(out_channels)
        self.scale_shift = nn.Linear(embedding_dim, 2 * out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        return F.relu(self.norm(self.conv(x)) * (1 + scale) + shift)


@register("segnet")
class SegNet(nn.Module):
    """A denoiser in SegNet's form.

    Args:
        channels: width of each stage; after every one of them the resolution halves (VGG16 and
            the paper: 64, 128, 256, 512, 512).
        depth: convolutions per stage, one number or one per stage (the paper: 2, 2, 3, 3, 3).
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
        channels: tuple[int, ...] = (32, 64, 96, 128),
        depth: int | tuple[int, ...] = 2,
        picture_channels: int = 3,
        embedding_dim: int = 128,
        cond_dim: int | None = None,
    ):
        super().__init__()
        depths = [depth] * len(channels) if isinstance(depth, int) else list(depth)
        if not channels or len(depths) != len(channels) or min(depths) < 1:
            raise ValueError("channels needs at least one width, depth one number ≥ 1 (or one per stage)")
        self.stride = 2 ** len(channels)
        self.cond_shape = (cond_dim,) if cond_dim else None
        self.embed = TimestepEmbedding(embedding_dim, cond_dim=cond_dim)

        def stage(widths: list[int]) -> nn.ModuleList:
            return nn.ModuleList(ConvBlock(a, b, embedding_dim) for a, b in zip(widths, widths[1:]))

        before = [picture_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(
            stage([first, *[width] * count]) for first, width, count in zip(before, channels, depths)
        )
        # The mirror image: each stage ends at the width that the unpooling above it needs.  The last
        # one would end at the picture's 3 channels; it keeps its width, and the head follows.
        after = [channels[0], *channels[:-1]]
        self.decoder = nn.ModuleList(
            stage([*[width] * count, last]) for last, width, count in reversed([*zip(after, channels, depths)])
        )
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.head = nn.Conv2d(channels[0], picture_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        check_size(x_t, self.stride, self.head.out_channels)
        embedding = self.embed(t, cond)
        h, indices = x_t, []
        for stage in self.encoder:
            for block in stage:
                h = block(h, embedding)
            h, places = self.pool(h)
            indices.append(places)
        for stage in self.decoder:
            h = self.unpool(h, indices.pop())
            for block in stage:
                h = block(h, embedding)
        return self.head(h)
