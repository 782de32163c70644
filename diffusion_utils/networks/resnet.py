"""A ResNet encoder and a decoder; what else connects the two is an option.

Without skip connections it is of the kind that the project began with (which had stride 32, `FIRST` in
notebook 05): everything it knows about its input passes one narrow place in the middle.  With them the
decoder also gets the encoder's features of each resolution (or only where their maxima were), which is
what notebook 05 compares.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_utils.checks import suggestions
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
from diffusion_utils.networks.registry import register

SKIPS = ("none", "indices", "add", "concat")


@register("resnet")
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
        cond_dim: length of `cond`, the vector of a condition; None: it takes none.
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
        _check_options(channels, depth, decoder_depth, stem, skip)
        depths = [depth] * len(channels) if isinstance(depth, int) else depth
        out_channels = picture_channels if out_channels is None else out_channels
        self.cond_shape = (cond_dim,) if cond_dim else None
        self.timestep, self.picture_channels = timestep, picture_channels
        self.stride = stem * 2 ** (len(channels) - 1)
        check_attention(attention, [stem * 2**i for i in range(len(channels))])
        # The head doubles last, unless it answers patches, or features at full resolution come in before it.
        head_doubles = not patch_head and (stem > 1 or skip == "none")
        ups = len(channels) - 1 if patch_head else int(math.log2(self.stride)) - head_doubles
        widths = _decoder_widths(channels, decoder_channels, ups, skip)

        def blocks(width: int, count: int, stride: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for _ in range(count):
                layers.append(ResBlock(width, width, embedding_dim))
                if stride in attention:
                    layers.append(SelfAttention(width, context_dim=context_dim))
            return layers

        self.embed = TimestepEmbedding(embedding_dim, cond_dim=cond_dim)
        fold = nn.PixelUnshuffle(stem) if stem > 1 else nn.Identity()
        self.stem = nn.Sequential(fold, nn.Conv2d(picture_channels * stem**2, channels[0], 3, padding=1))

        self.encoder = nn.ModuleList()
        down = PoolDown if skip == "indices" else Downsample
        for i, (width, count) in enumerate(zip(channels, depths)):
            if i:
                self.encoder.append(down(channels[i - 1], width))
            self.encoder.extend(blocks(width, count, stem * 2**i))

        self.decoder = nn.ModuleList()
        for i, (before, width) in enumerate(zip([channels[-1], *widths], widths)):
            has_skip = skip != "none" and i < len(channels) - 1
            self.decoder.append(
                SkipUp(skip, before, width, upsample) if has_skip else make_upsample(upsample, before, width)
            )
            self.decoder.extend(blocks(width, decoder_depth, self.stride // 2 ** (i + 1)))
            # Bare transposed convolutions in a row would collapse into one linear map.
            if decoder_depth == 0:
                self.decoder.append(nn.Sequential(group_norm(width), nn.SiLU()))

        width = widths[-1] if widths else channels[-1]
        if head_doubles:
            last = make_upsample(upsample, width, out_channels)
        else:
            last = nn.Conv2d(width, out_channels * (stem**2 if patch_head else 1), 3, padding=1)
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), last)
        if patch_head:
            self.head.append(nn.PixelShuffle(stem))
        # Start from the answer 0, the mean of every target, instead of from random patterns.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        h, embedding = self._begin(x_t, t, cond)
        return self.head(_through([*self.encoder, *self.decoder], h, [], embedding, context))

    def both(
        self,
        other: "ResNetEncoderDecoder",
        x_t: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        context: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """See `blocks.both`."""
        h, embedding = self._begin(x_t, t, cond)
        mine, others, kept = [*self.encoder, *self.decoder], [*other.encoder, *other.decoder], []
        skips = [[getattr(layer, "skipped", False) for layer in layers] for layers in (mine, others)]
        shared = next((i for i, (one, two) in enumerate(zip(*skips)) if one != two), len(mine))
        h = _through(mine[:shared], h, kept, embedding, context)
        ways = mine[shared:], others[shared:]
        return torch.stack([self.head(_through(way, h, [*kept], embedding, context)) for way in ways])

    def _begin(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the encoder gets: features, and the vector of timestep and condition."""
        check_size(x_t, self.stride, self.picture_channels)
        embedding = self.embed(t if self.timestep else torch.zeros_like(t), cond)
        return self.stem(x_t), embedding


def _through(
    layers: Sequence[nn.Module], h: Tensor, kept: list[Tensor], embedding: Tensor, context: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Features on their way through some layers; what the decoder will be given goes into `kept`, and leaves it."""
    for layer in layers:
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
    return h


def _check_options(
    channels: Sequence[int], depth: int | Sequence[int], decoder_depth: int, stem: int, skip: str
) -> None:
    """Raise a ValueError for a configuration that cannot be built."""
    if isinstance(channels, int):
        raise ValueError(f"channels must be a list of widths, one per stage, such as [{channels}]")
    if stem not in (1, 2, 4):
        raise ValueError(f"stem must be 1, 2 or 4, not {stem}")
    if skip not in SKIPS:
        raise ValueError(f"unknown skip {skip!r}: choose one of {suggestions(skip, SKIPS)}")
    depths = [depth] * len(channels) if isinstance(depth, int) else depth
    if not channels or len(depths) != len(channels) or min(depths) < 1 or decoder_depth < 0:
        raise ValueError(
            "channels needs at least one width, depth one number ≥ 1 (or one per stage), and decoder_depth a number ≥ 0"
        )
    if skip == "indices" and decoder_depth == 0:
        raise ValueError("skip='indices' needs decoder_depth ≥ 1: unpooling leaves gaps to be filled")
    if skip != "none" and len(channels) == 1:
        raise ValueError(f"skip={skip!r} needs two stages or more: with one there is nothing to carry past")
    if stem * 2 ** (len(channels) - 1) < 2:
        raise ValueError("a stride of 1 leaves nothing to decode: give more channels or a larger stem")


def _decoder_widths(channels: Sequence[int], asked: Sequence[int] | None, ups: int, skip: str) -> list[int]:
    """The width after each of `ups` doublings: the ones asked for, or the encoder's widths in reverse and,
    below the stem's own width, halved from there on."""
    mirrored = [*reversed(channels[:-1])]
    widths = [*asked] if asked is not None else mirrored[:ups]
    while asked is None and len(widths) < ups:
        widths.append(max(8, (widths or channels)[-1] // 2))
    if len(widths) != ups:
        raise ValueError(f"this encoder needs {ups} decoder_channels, not {len(widths)}")
    if skip != "none" and widths[: len(mirrored)] != mirrored:
        raise ValueError(
            f"with skip={skip!r} decoder_channels must begin with the encoder's widths in reverse, "
            f"{mirrored}, not {widths}"
        )
    return widths
