"""The bricks that every network here is built from."""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.checks import suggestions


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
    """Timesteps (N,) to vectors (N, dim): the sinusoids, then a small MLP that reads them.

    Args:
        dim: length of the vector.
        frequencies: length of the sinusoids, even.
        cond_dim: length of a condition's vector (that of a class, of a text), which is
            mapped without a bias and added before the last non-linearity, so that a vector of zeros
            says as little as none at all; None: the network takes no description.
    """

    def __init__(self, dim: int, frequencies: int = 64, cond_dim: int | None = None):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.cond = nn.Linear(cond_dim, dim, bias=False) if cond_dim else None

    def forward(self, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """t (N,) and, where the network takes it, cond (N, cond_dim); without cond a network that
        could take one is unconditional, as classifier-free guidance needs it."""
        h = self.mlp(timestep_embedding(t, self.frequencies))
        if cond is not None:
            if self.cond is None:
                raise ValueError("this network was built without cond_dim: it cannot be given cond")
            h = h + self.cond(cond)
        return F.silu(h)


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
        embedding_dim: length of the timestep vector; None: nothing acts between the convolutions.

    Shape:
        (N, in_channels, H, W) and (N, embedding_dim) to (N, out_channels, H, W).
    """

    skipped = False  # see `without`

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int | None = None):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding_dim, 2 * out_channels) if embedding_dim else None
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.carry = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        if self.skipped:
            return self.carry(x)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.scale_shift is not None:
            scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.carry(x) + self.conv2(F.silu(h))


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H·W, C), each place's numbers side by side: PyTorch's fast attention needs them so."""
    return x.flatten(2).transpose(1, 2).contiguous()


class SelfAttention(nn.Module):
    """Every place of the feature map looks at every other one (Vaswani et al. 2017), and adds what
    it found; as in the U-Nets of DDPM (appendix B) and, with several heads, Dhariwal & Nichol 2021.

    Starts as the identity, like `ResBlock`.  (N, C, H, W) to the same; costs grow with (H·W)².

    Args:
        channels: C.
        head_channels: of each head; where it does not divide C there is one head.
        context_dim: length of the vectors of a text that every place also looks at, afterwards, by
            `CrossAttention`; None: there is no text.
    """

    skipped = False  # see `without`

    def __init__(self, channels: int, head_channels: int = 32, context_dim: int | None = None):
        super().__init__()
        self.heads = channels // head_channels if channels % head_channels == 0 else 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.cross = CrossAttention(channels, context_dim, head_channels) if context_dim else None

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """context: vectors and mask of a text, as for `CrossAttention`."""
        if self.skipped:
            return x
        n, c, height, width = x.shape
        # (N, 3C, H, W) to three of (N, heads, H·W, C/heads)
        qkv = tokens(self.qkv(self.norm(x)))
        q, k, v = qkv.reshape(n, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(found.transpose(2, 3).reshape(n, c, height, width))
        return x if self.cross is None else self.cross(x, *context)


class CrossAttention(nn.Module):
    """Every place of the feature map looks at the words of a text, and adds what it found there (as
    in latent diffusion, Rombach et al. 2022, 2112.10752, section 3.3).

    The question comes from the place, keys and values from the words.  Starts as the identity.

    Args:
        channels: C of the feature map.
        context_dim: length D of each word's vector.
        head_channels: as for `SelfAttention`.

    Shape:
        x (N, C, H, W), context (N, L, D) and mask, bool (N, L), which words are there, to (N, C, H, W).
    """

    def __init__(self, channels: int, context_dim: int, head_channels: int = 32):
        super().__init__()
        self.heads = channels // head_channels if channels % head_channels == 0 else 1
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.kv = nn.Linear(context_dim, 2 * channels)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        n, c, height, width = x.shape
        # q as (N, heads, H·W, C/heads), k and v as (N, heads, L, C/heads)
        q = tokens(self.q(self.norm(x))).reshape(n, height * width, self.heads, -1).transpose(1, 2)
        k, v = self.kv(context).reshape(n, len(mask[0]), 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return x + self.out(found.transpose(2, 3).reshape(n, c, height, width))


def without(net: nn.Module, layers: Sequence[str]) -> nn.Module:
    """A network that leaves some of another one's residual blocks, attention layers or transformer blocks out: what
    they would add is not added.  The weights are the other one's own, not copies.

    Args:
        layers: their names among the network's modules, such as "encoder.7".

    Raises:
        ValueError: no such layer; the message names some of those there are.
    """
    if isinstance(layers, str):
        raise ValueError(f"layers is a list of names, [{layers!r}], not one name")
    net = copy.deepcopy(net, {id(weight): weight for weight in [*net.parameters(), *net.buffers()]})
    optional = {name: layer for name, layer in net.named_modules() if hasattr(layer, "skipped")}
    for name in layers:
        if name not in optional:
            raise ValueError(f"the network cannot do without {name!r}: choose one of {suggestions(name, optional)}")
        optional[name].skipped = True
    return net


def both(net: nn.Module, other: nn.Module, *inputs, **options) -> Tensor:
    """The answers of a network and of the same `without` some layers, or the other way round: (2, N, C, H, W).

    Networks with a method `both` compute only once what comes before those layers.
    """
    if hasattr(net, "both"):
        return net.both(other, *inputs, **options)
    return torch.stack([net(*inputs, **options), other(*inputs, **options)])


class Both(nn.Module):
    """`both` as a network: as its two, but it answers (2, N, C, H, W)."""

    def __init__(self, net: nn.Module, other: nn.Module):
        super().__init__()
        self.net, self.other = net, other
        self.cond_shape, self.tokenizer = getattr(net, "cond_shape", None), getattr(net, "tokenizer", None)

    def forward(self, *inputs) -> Tensor:
        return both(self.net, self.other, *inputs)


def check_size(x_t: Tensor, stride: int, channels: int | None = None) -> None:
    """Raise a ValueError for pictures whose height or width the network's stride does not divide, or of other
    channels than it reads."""
    height, width = x_t.shape[-2:]
    if channels is not None and x_t.shape[1] != channels:
        raise ValueError(
            f"a picture of {x_t.shape[1]} channels cannot pass: the network's picture_channels is {channels}"
        )
    if height % stride or width % stride:
        raise ValueError(
            f"a picture of {height}×{width} pixels cannot pass: height and width must be multiples of "
            f"the network's stride, {stride}; crop or resize it"
        )


def check_attention(attention, strides: list[int]) -> None:
    """Raise a ValueError if attention is asked for where the network has no feature map."""
    if isinstance(attention, int) or not set(attention) <= set(strides):
        raise ValueError(f"attention must list strides out of {strides}, not {attention!r}")


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


def upsample(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    """A layer that doubles height and width, (N, C, H, W) to (N, C', 2H, 2W), of one of four kinds:

    "transposed"      `Upsample`: transposed convolution, kernel 4
    "transposed_k3"   the same with kernel 3, which prints a checkerboard: for comparison
    "nearest"         each pixel repeated 2×2, then a 3×3 convolution (Odena et al. 2016)
    "pixel_shuffle"   a 3×3 convolution to 4·C' channels, folded out (Shi et al. 2016, 1609.05158)
    """
    if kind == "transposed":
        return Upsample(in_channels, out_channels)
    if kind == "transposed_k3":
        return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    if kind == "nearest":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 3, padding=1))
    if kind == "pixel_shuffle":
        return nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1), nn.PixelShuffle(2))
    raise ValueError(f"unknown upsample {kind!r}: choose transposed, transposed_k3, nearest or pixel_shuffle")


class PoolDown(nn.Module):
    """Half height and width by 2×2 max pooling, remembering where in each square the maximum was;
    a 3×3 convolution adapts the width.  The indices are what SegNet's decoder gets from the encoder.

    Shape:
        (N, C, H, W) to (N, C', H/2, W/2) and the indices, int64 (N, C, H/2, W/2).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, indices = self.pool(x)
        return self.conv(pooled), indices


class SkipUp(nn.Module):
    """Double height and width, and bring in what the encoder kept at that resolution.

    Args:
        skip: "add": its features are added; "concat": stacked behind the own ones and mixed by a 1×1
            convolution; "indices": each value is put where `PoolDown` found its maximum, the other
            three of the square are 0 (Badrinarayanan et al. 2015, section 3).
        in_channels: before;  channels: after, and of what the encoder kept.
        kind: see `upsample`; indices need none.

    Shape:
        (N, in_channels, H, W) and what was kept, (N, channels, 2H, 2W) — indices: (N, channels, H, W)
        — to (N, channels, 2H, 2W).
    """

    def __init__(self, skip: str, in_channels: int, channels: int, kind: str = "transposed"):
        super().__init__()
        self.skip = skip
        if skip == "indices":
            self.up = nn.Conv2d(in_channels, channels, 3, padding=1)
        else:
            self.up = upsample(kind, in_channels, channels)
        self.mix = nn.Conv2d(2 * channels, channels, 1) if skip == "concat" else None

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        x = self.up(x)
        if self.skip == "indices":
            return F.max_unpool2d(x, kept, 2)
        return x + kept if self.skip == "add" else self.mix(torch.cat([x, kept], dim=1))
