"""A diffusion transformer: a picture as a sentence of patches.

Peebles & Xie 2022 (2212.09748), section 3: the picture is cut into patches, each becomes one vector (a *token*),
and a transformer works on the tokens as it would on words.  There is no convolution, no halving and no doubling:
every token may look at every other one, in every block.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.networks.blocks import CrossAttention, TimestepEmbedding, check_size, timestep_embedding
from diffusion_utils.networks.registry import register


def grid_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Where each token stands, as sines and cosines: one half of the numbers says the row, the other the column
    (DiT, section 3.2, after Vaswani et al. 2017).

    Args:
        dim: a multiple of 4.

    Returns:
        float32 (height·width, dim), row by row.

    Raises:
        ValueError: dim is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4, not {dim}")
    rows, columns = (timestep_embedding(torch.arange(n, device=device), dim // 2) for n in (height, width))
    rows, columns = rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class TokenAttention(nn.Module):
    """Every token looks at every other one (Vaswani et al. 2017): (N, L, dim) to the same.

    Args:
        dim: divisible by `heads`.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        # (N, L, 3·dim) to three of (N, heads, L, dim/heads)
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim))


def mlp(dim: int, inside: int) -> nn.Sequential:
    """dim numbers to `inside` and back."""
    return nn.Sequential(nn.Linear(dim, inside), nn.GELU(approximate="tanh"), nn.Linear(inside, dim))


class TokenBlock(nn.Module):
    """First the tokens exchange what they know, then each thinks for itself: (N, L, dim) to the same.

    The timestep acts on both by adaLN-Zero (DiT, section 3.2): it scales and shifts what goes in, and opens the gate
    through which the result is added.  All gates start at zero, so every block begins as the identity.

    Args:
        mix: how tokens exchange, a module from (N, L, dim) to the same.
        embedding_dim: length of the timestep vector.
        context_dim: of the vectors of a text that every token also looks at, in between, by `CrossAttention`; None:
            there is no text.
    """

    skipped = False  # see `blocks.without`

    def __init__(self, mix: nn.Module, dim: int, embedding_dim: int, context_dim: int | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(embedding_dim, 6 * dim)
        self.mix, self.mlp = mix, mlp(dim, 4 * dim)
        self.cross = CrossAttention(dim, context_dim) if context_dim else None
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """context: vectors and mask of a text, as for `CrossAttention`."""
        if self.skipped:
            return x
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = x + gate * self.mix(self.norm(x) * (1 + scale) + shift)
        if self.cross is not None:
            x = self.cross(x.transpose(1, 2)[..., None], *context)[..., 0].transpose(1, 2)  # as a map, one token wide
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


class PatchHead(nn.Module):
    """Each token answers for its patch: (N, L, dim) to (N, channels, patch·height, patch·width), at first 0."""

    def __init__(self, dim: int, embedding_dim: int, channels: int, patch: int):
        super().__init__()
        self.patch, self.norm = patch, nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation, self.out = nn.Linear(embedding_dim, 2 * dim), nn.Linear(dim, channels * patch**2)
        for parameter in (*self.modulation.parameters(), *self.out.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor, height: int, width: int) -> Tensor:
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        patches = self.out(self.norm(x) * (1 + scale) + shift)
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (height, width)), self.patch)


@register("dit")
class DiT(nn.Module):
    """A denoiser without convolutions: patches, transformer blocks, patches.

    Args:
        patch: side of a patch in pixels; half of it makes four times as many tokens.
        dim: numbers per token, a multiple of 4 and of `heads`.
        depth: blocks.
        heads: of the attention in each block.
        picture_channels: 3 for RGB.
        embedding_dim: length of the timestep vector.
        cond_dim: length of `cond`, the vector of a condition; None: it takes none.
        context_dim: length of the vectors of `context`, a text that every block also looks at.
        out_channels: of the answer, where it has not as many as the picture that is read.

    Shape:
        x_t (N, C, H, W), t int64 (N,), cond None or (N, cond_dim), and with context_dim context, the
        pair (N, L, context_dim) and bool (N, L), to (N, out_channels, H, W); H and W divisible by
        `self.stride`, which is the patch.

    Raises:
        ValueError: a configuration that cannot be built, or a picture that `stride` does not divide.
    """

    def __init__(
        self,
        patch: int = 4,
        dim: int = 96,
        depth: int = 4,
        heads: int = 3,
        picture_channels: int = 3,
        embedding_dim: int = 64,
        cond_dim: int | None = None,
        context_dim: int | None = None,
        out_channels: int | None = None,
    ):
        super().__init__()
        if dim % 4 or dim % heads:
            raise ValueError(f"dim must be a multiple of 4 and of its {heads} heads, not {dim}")
        self.stride, self.dim = patch, dim
        self.cond_shape = (cond_dim,) if cond_dim else None
        self.embed = TimestepEmbedding(embedding_dim, cond_dim=cond_dim)
        self.stem = nn.Conv2d(picture_channels, dim, patch, stride=patch)  # one matrix for all patches
        mix = partial(TokenAttention, dim, heads)
        self.blocks = nn.ModuleList(TokenBlock(mix(), dim, embedding_dim, context_dim) for _ in range(depth))
        self.head = PatchHead(dim, embedding_dim, out_channels or picture_channels, patch)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        check_size(x_t, self.stride, self.stem.in_channels)
        embedding, h = self.embed(t, cond), self.stem(x_t)
        height, width = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + grid_positions(height, width, self.dim, h.device)
        for block in self.blocks:
            h = block(h, embedding, context)
        return self.head(h, embedding, height, width)
