"""A ResNet encoder and a decoder; what else connects the two is an option.

Without skip connections this is the project's first network: everything it knows about its input
passes one narrow place in the middle.  With them the decoder also gets the encoder's features of
each resolution (or only where their maxima were), which is what notebook 05 compares.
"""

import math

import torch
from torch import Tensor, nn

from diffusion_utils.networks.blocks import (
    Downsample,
    PoolDown,
    ResBlock,
    SelfAttention,
    SkipUp,
    TimestepEmbedding,
    check_attention,
    check_size,
    group_norm,
)
from diffusion_utils.networks.blocks import upsample as make_upsample

SKIPS = ("none", "indices", "add", "concat")


class ResNetEncoderDecoder(nn.Module):
    """A denoiser: encoder down to `stride`, then as many doublings back up.

        picture ─ stem ─ [blocks ─ down] … blocks ─ [up ─ blocks] … head ─ picture

    Args:
        channels: width of each encoder stage; between two stages the resolution halves.
        depth: residual blocks per encoder stage; one number, or one per stage.
        decoder_channels: width after each doubling; default: the encoder's own widths in reverse.
            The head does the last doubling, so there are log₂(stride) - 1 of them, but log₂(stride)
            for stem 1 with skips, where the encoder has features at full resolution to bring in.
        decoder_depth: residual blocks after each doubling; 0 gives bare transposed convolutions, as
            the project's first version had them.
        stem: 1 reads the picture by a 3×3 convolution; 2 or 4 first folds each 2×2 or 4×4 patch
            into channels (pixel-unshuffle), so that no work is done at full resolution.
        skip: what the decoder gets from each encoder stage besides the bottleneck: "none",
            "indices" (of max pooling, which then replaces the strided convolutions), "add", "concat".
        patch_head: True: the head answers whole stem×stem patches at once, by a 3×3 convolution and a
            pixel shuffle (Shi et al. 2016, 1609.05158), so that no work is done above the stem's
            resolution on the way out either; decoder_channels then end at that resolution.
        upsample: "transposed", "transposed_k3", "nearest" or "pixel_shuffle", see `blocks.upsample`.
        attention: strides (picture height / feature map height) at which self-attention follows
            every residual block, e.g. (8,).
        timestep: False makes the network blind to t (for comparison); the layers stay.
        picture_channels: 3 for RGB.
        embedding_dim: length of the timestep vector.
        cond_dim: length of `cond`, a vector that describes the picture; None: it takes none.
        context_dim: length of the vectors of `context`, a text that attention layers also look at.
        out_channels: of the answer, where it has not as many as the picture that is read.

    Shape:
        x_t (N, C, H, W), t int64 (N,), cond None or (N, cond_dim), and with context_dim context, the
        pair (N, L, context_dim) and bool (N, L), to (N, out_channels, H, W); H and W divisible by
        `self.stride`.

    Raises:
        ValueError: a configuration that cannot be built, or a picture that `stride` does not divide.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 96, 128),
        depth: int | tuple[int, ...] = 1,
        decoder_channels: tuple[int, ...] | None = None,
        decoder_depth: int = 0,
        stem: int = 1,
        skip: str = "none",
        patch_head: bool = False,
        upsample: str = "transposed",
        attention: tuple[int, ...] = (),
        timestep: bool = True,
        picture_channels: int = 3,
        embedding_dim: int = 128,
        cond_dim: int | None = None,
        context_dim: int | None = None,
        out_channels: int | None = None,
    ):
        super().__init__()
        out_channels = out_channels or picture_channels
        self.cond_shape = (cond_dim,) if cond_dim else None
        if isinstance(channels, int):
            raise ValueError(f"channels must be a list of widths, one per stage, such as [{channels}]")
        if stem not in (1, 2, 4):
            raise ValueError(f"stem must be 1, 2 or 4, not {stem}")
        if skip not in SKIPS:
            raise ValueError(f"unknown skip {skip!r}: choose one of {', '.join(SKIPS)}")
        depths = [depth] * len(channels) if isinstance(depth, int) else list(depth)
        if not channels or len(depths) != len(channels) or min(depths) < 1 or decoder_depth < 0:
            raise ValueError(
                "channels needs at least one width, depth one number ≥ 1 (or one per stage), and "
                "decoder_depth a number ≥ 0"
            )
        if skip == "indices" and decoder_depth == 0:
            raise ValueError("skip='indices' needs decoder_depth ≥ 1: unpooling leaves gaps to be filled")
        if skip != "none" and len(channels) == 1:
            raise ValueError(f"skip={skip!r} needs two stages or more: with one there is nothing to carry past")
        self.stride = stem * 2 ** (len(channels) - 1)
        check_attention(attention, [stem * 2**i for i in range(len(channels))])
        self.timestep = timestep
        doublings = int(math.log2(self.stride))
        if doublings < 1:
            raise ValueError("a stride of 1 leaves nothing to decode: give more channels or a larger stem")
        # The head doubles last, unless there are features at full resolution to bring in before it.
        head_doubles = stem > 1 or skip == "none"
        ups = len(channels) - 1 if patch_head else doublings - head_doubles
        if decoder_channels is None:
            # The encoder's widths in reverse; below the stem's own width it keeps halving.
            widths = [*reversed(channels[:-1])]
            while len(widths) < ups:
                widths.append(max(8, (widths or channels)[-1] // 2))
            decoder_channels = tuple(widths[:ups])
        if len(decoder_channels) != ups:
            raise ValueError(f"a stride of {self.stride} needs {ups} decoder_channels, not {len(decoder_channels)}")
        skips = len(channels) - 1 if skip != "none" else 0
        if tuple(decoder_channels[:skips]) != tuple(reversed(channels[:-1]))[:skips]:
            raise ValueError(
                f"with skip={skip!r} decoder_channels must begin with the encoder's widths in reverse, "
                f"{[*reversed(channels[:-1])]}, not {list(decoder_channels)}"
            )

        def blocks(width: int, count: int, stride: int) -> list[nn.Module]:
            layers = []
            for _ in range(count):
                layers.append(ResBlock(width, width, embedding_dim))
                if stride in attention:
                    layers.append(SelfAttention(width, context_dim=context_dim))
            return layers

        self.embed = TimestepEmbedding(embedding_dim, cond_dim=cond_dim)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(stem) if stem > 1 else nn.Identity(),
            nn.Conv2d(picture_channels * stem**2, channels[0], 3, padding=1),
        )
        self.encoder = nn.ModuleList()
        down = PoolDown if skip == "indices" else Downsample
        for i, (width, count) in enumerate(zip(channels, depths)):
            if i:
                self.encoder.append(down(channels[i - 1], width))
            self.encoder.extend(blocks(width, count, stem * 2**i))

        self.decoder = nn.ModuleList()
        width, stride = channels[-1], self.stride
        for i, next_width in enumerate(decoder_channels):
            stride //= 2
            if i < skips:
                self.decoder.append(SkipUp(skip, width, next_width, upsample))
            else:
                self.decoder.append(make_upsample(upsample, width, next_width))
            self.decoder.extend(blocks(next_width, decoder_depth, stride))
            # Bare transposed convolutions in a row would collapse into one linear map.
            if decoder_depth == 0:
                self.decoder.append(nn.Sequential(group_norm(next_width), nn.SiLU()))
            width = next_width
        if patch_head:
            last = nn.Conv2d(width, out_channels * stem**2, 3, padding=1)
        elif head_doubles:
            last = make_upsample(upsample, width, out_channels)
        else:
            last = nn.Conv2d(width, out_channels, 3, padding=1)
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), last)
        if patch_head:
            self.head.append(nn.PixelShuffle(stem))
        # Start from the answer 0, the mean of every target, instead of from random patterns.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        check_size(x_t, self.stride)
        embedding = self.embed(t if self.timestep else torch.zeros_like(t), cond)
        h, kept = self.stem(x_t), []
        for layer in [*self.encoder, *self.decoder]:
            if isinstance(layer, ResBlock):
                h = layer(h, embedding)
            elif isinstance(layer, SelfAttention):
                h = layer(h, context)
            elif isinstance(layer, PoolDown):
                h, indices = layer(h)
                kept.append(indices)
            elif isinstance(layer, SkipUp):
                h = layer(h, kept.pop())
            else:
                if isinstance(layer, Downsample):
                    kept.append(h)
                h = layer(h)
        return self.head(h)
