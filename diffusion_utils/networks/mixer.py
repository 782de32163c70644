"""MLP-Mixer: not even attention, nothing but small fully connected networks.

Tolstikhin et al. 2021 (2105.01601), figure 1: tokens exchange by an MLP that reads one number of all tokens at a
time, the same for each number.  Which token tells which is learnt once and for all, place by place, so the network
works at one size of pictures only.  Changed for denoising: timestep and head are those of the diffusion transformer.
"""

from torch import Tensor, nn

from diffusion_utils.networks.blocks import TimestepEmbedding, check_size
from diffusion_utils.networks.dit import PatchHead, TokenBlock, mlp
from diffusion_utils.networks.registry import register


class AcrossTokens(nn.Module):
    """An MLP from all tokens to all tokens, for each of their numbers: (N, tokens, dim) to the same."""

    def __init__(self, tokens: int):
        super().__init__()
        self.mlp = mlp(tokens, 4 * tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


@register("mixer")
class Mixer(nn.Module):
    """A denoiser of fully connected layers alone.

    Args:
        size: pixels per side of the pictures, which are square.
        patch: side of a patch in pixels.
        dim: numbers per token.
        depth: blocks.
        picture_channels: 3 for RGB.
        embedding_dim: length of the timestep vector.
        cond_dim: length of `cond`, the vector of a condition; None: it takes none.
        out_channels: of the answer, where it has not as many as the picture that is read.

    Shape:
        x_t (N, C, size, size), t int64 (N,) and cond None or (N, cond_dim) to (N, out_channels, size, size).

    Raises:
        ValueError: a size that the patch does not divide, or a picture of another size.
    """

    def __init__(
        self,
        size: int = 32,
        patch: int = 4,
        dim: int = 96,
        depth: int = 4,
        picture_channels: int = 3,
        embedding_dim: int = 64,
        cond_dim: int | None = None,
        out_channels: int | None = None,
    ):
        super().__init__()
        if size % patch:
            raise ValueError(f"size must be a multiple of the patch, {patch}, not {size}")
        self.stride, self.size = patch, size
        self.cond_shape = (cond_dim,) if cond_dim else None
        self.embed = TimestepEmbedding(embedding_dim, cond_dim=cond_dim)
        self.stem = nn.Conv2d(picture_channels, dim, patch, stride=patch)
        tokens = (size // patch) ** 2
        self.blocks = nn.ModuleList(TokenBlock(AcrossTokens(tokens), dim, embedding_dim) for _ in range(depth))
        self.head = PatchHead(dim, embedding_dim, out_channels or picture_channels, patch)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        check_size(x_t, self.stride, self.stem.in_channels)
        height, width = x_t.shape[2:]
        if not height == width == self.size:
            raise ValueError(
                f"a picture of {height}×{width} pixels cannot pass: this mixer was built for {self.size}×{self.size}; "
                "give its option size"
            )
        embedding, h = self.embed(t, cond), self.stem(x_t).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(h, embedding, height // self.stride, width // self.stride)
