"""The project's first network, properly built: a ResNet encoder and transposed convolutions.

Everything the network knows about its input passes one narrow place in the middle, 8 times smaller
than the picture in height and width.  There is no skip connection around it; that is the point.
"""

import math

from torch import Tensor, nn

from diffusion_utils.networks.blocks import Downsample, ResBlock, TimestepEmbedding, Upsample, group_norm


class ResNetEncoderDecoder(nn.Module):
    """A denoiser: encoder down to `stride`, then log₂(stride) transposed convolutions back up.

        picture ─ stem ─ [blocks ─ down] … [blocks] ─ blocks ─ [up ─ blocks] … up ─ picture

    Args:
        channels: width of each encoder stage; between two stages the resolution halves.
        depth: residual blocks per encoder stage; one number, or one per stage.
        decoder_channels: width after each transposed convolution but the last, which gives the
            picture; default: the encoder's own widths in reverse.  Of length log₂(stride) - 1.
        decoder_depth: residual blocks after each transposed convolution but the last; 0 gives bare
            transposed convolutions, as the project's first version had them.
        stem: 1 reads the picture by a 3×3 convolution; 2 or 4 first folds each 2×2 or 4×4 patch
            into channels (pixel-unshuffle), so that no work is done at full resolution.
        picture_channels: 3 for RGB.
        embedding_dim: length of the timestep vector.

    Shape:
        x_t (N, C, H, W) and t int64 (N,) to (N, C, H, W); H and W divisible by `self.stride`.

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
        picture_channels: int = 3,
        embedding_dim: int = 128,
    ):
        super().__init__()
        if isinstance(channels, int):
            raise ValueError(f"channels must be a list of widths, one per stage, such as [{channels}]")
        if stem not in (1, 2, 4):
            raise ValueError(f"stem must be 1, 2 or 4, not {stem}")
        depths = [depth] * len(channels) if isinstance(depth, int) else list(depth)
        if not channels or len(depths) != len(channels) or min(depths) < 1 or decoder_depth < 0:
            raise ValueError(
                "channels needs at least one width, depth one number ≥ 1 (or one per stage), and "
                "decoder_depth a number ≥ 0"
            )
        self.stride = stem * 2 ** (len(channels) - 1)
        doublings = int(math.log2(self.stride))
        if decoder_channels is None:
            # One width per doubling but the last; below the stem's own width it keeps halving.
            widths = [*reversed(channels[:-1])]
            while len(widths) < doublings - 1:
                widths.append(max(8, (widths or channels)[-1] // 2))
            decoder_channels = tuple(widths[: doublings - 1])
        if doublings < 1 or len(decoder_channels) != doublings - 1:
            raise ValueError(
                f"a stride of {self.stride} needs {max(0, doublings - 1)} decoder_channels, "
                f"not {len(decoder_channels)}" if doublings else "a stride of 1 leaves nothing to decode"
            )

        self.embed = TimestepEmbedding(embedding_dim)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(stem) if stem > 1 else nn.Identity(),
            nn.Conv2d(picture_channels * stem**2, channels[0], 3, padding=1),
        )
        self.encoder = nn.ModuleList()
        for i, (width, blocks) in enumerate(zip(channels, depths)):
            if i:
                self.encoder.append(Downsample(channels[i - 1], width))
            self.encoder.extend(ResBlock(width, width, embedding_dim) for _ in range(blocks))

        self.decoder = nn.ModuleList()
        width = channels[-1]
        for next_width in decoder_channels:
            self.decoder.append(Upsample(width, next_width))
            self.decoder.extend(
                ResBlock(next_width, next_width, embedding_dim) for _ in range(decoder_depth)
            )
            # Bare transposed convolutions in a row would collapse into one linear map.
            if decoder_depth == 0:
                self.decoder.append(nn.Sequential(group_norm(next_width), nn.SiLU()))
            width = next_width
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), Upsample(width, picture_channels))
        # Start from the answer 0, the mean of every target, instead of from random patterns.
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        height, width = x_t.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"a {height}×{width} picture cannot pass: height and width must be multiples of "
                f"the network's stride, {self.stride}; crop or resize it"
            )
        embedding = self.embed(t)
        h = self.stem(x_t)
        for layer in [*self.encoder, *self.decoder]:
            h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
        return self.head(h)
