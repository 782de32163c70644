"""Text to picture: a tokenizer, a small text encoder, and a denoiser that listens to it.

The encoder is trained together with the denoiser, from nothing.  Imagen (Saharia et al. 2022,
2205.11487) has a frozen one of billions of parameters that has read the web; captions here use some
dozens of words, and learning those takes little more than the denoiser itself.
"""

import re
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.networks.blocks import CrossAttention, both
from diffusion_utils.networks.registry import build, register

NOTHING = 0  # the number that stands for "no word"


class Tokenizer:
    """Words to numbers, and what to say of words it does not know.

    A caption is cut into its words (letters and digits, in small letters: "Rolls-Royce" is two), and
    each known word becomes its place in `words`, from 1.  A word that no caption had could only get a
    number that training never saw, and such a number means something random: it is left out instead.

    Args:
        words: all known ones.
        length: the most words a caption can have; what follows is cut off.
    """

    def __init__(self, words: Sequence[str], length: int):
        self.words, self.length = list(words), length
        self.places = {word: place for place, word in enumerate(self.words, start=NOTHING + 1)}

    @classmethod
    def from_captions(cls, captions: Iterable[str], length: int | None = None) -> "Tokenizer":
        """One that knows every word of these captions, in alphabetical order.

        Args:
            length: default: that of the longest caption.

        Raises:
            ValueError: not one word.
        """
        split = [cls.split(caption) for caption in captions]
        words = sorted({word for caption in split for word in caption})
        if not words:
            raise ValueError("the captions hold no words to learn")
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1 word, not {length}")
        return cls(words, max(len(caption) for caption in split) if length is None else length)

    @staticmethod
    def split(text: str) -> list[str]:
        """The words of a text: "A red 2012 BMW!" → ["a", "red", "2012", "bmw"]."""
        return re.findall(r"[^\W_]+", text.lower())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """int64 (N, length): the known words' numbers, then zeros; an empty prompt is all zeros."""
        if isinstance(texts, str):
            raise ValueError("encode takes a list of texts: for one, give [text]")
        rows = torch.full((len(texts), self.length), NOTHING)
        for row, text in zip(rows, texts):
            known = [self.places[word] for word in self.split(text) if word in self.places][: self.length]
            row[: len(known)] = torch.tensor(known)
        return rows

    def remark(self, text: str) -> str:
        """What of a prompt will not be heard, in a sentence for its author; "" if all of it will."""
        words = self.split(text)
        known = [word for word in words if word in self.places]
        unknown = [word for word in dict.fromkeys(words) if word not in self.places]
        said = []
        if unknown:
            said.append(f"Not learnt, so left out: {', '.join(unknown)}.")
        if len(known) > self.length:
            said.append(f"Only the first {self.length} words count, not: {' '.join(known[self.length :])}.")
        if not known:
            said.append("No word to go by: any car may come.")
        return " ".join(said)


class TextBlock(nn.Module):
    """A transformer's layer (Vaswani et al. 2017, with the norms first): every word looks at every
    other one, then each thinks about what it saw.  (N, L, dim) to the same.

    Args:
        dim: divisible by `heads`.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: bool (N, L), which of the words are there to be looked at."""
        n, length, dim = x.shape
        # (N, L, 3·dim) to three of (N, heads, L, dim/heads)
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.out(seen.transpose(1, 2).reshape(n, length, dim))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Numbers of words to vectors: one for each word, in the light of the others, and one for the
    whole caption.

    In front of the words stands one learnt vector that is always there.  Its output sums up the
    caption (as BERT's [CLS]), and where there is no word at all, it is what there is to look at.

    Args:
        words: how many are known.
        length: the most words in a caption.
        dim, depth, heads: width, layers, and attention heads per layer.

    Shape:
        int64 (N, length) to tokens (N, 1 + length, dim), mask bool (N, 1 + length), pooled (N, dim).
    """

    def __init__(self, words: int, length: int, dim: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the text's dim must be a multiple of its {heads} heads, not {dim}")
        self.embed_words = nn.Embedding(1 + words, dim)
        self.embed_places = nn.Parameter(0.02 * torch.randn(1 + length, dim))
        self.embed_start = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList([TextBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = self.embed_start.expand(ids.shape[0], -1, -1)  # len would be fixed when the network is exported
        x = torch.cat([start, self.embed_words(ids)], dim=1) + self.embed_places
        mask = F.pad(ids != NOTHING, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return x, mask, x[:, 0]


@register("text_to_image")
class TextToImage(nn.Module):
    """A denoiser conditioned on words.

    The text reaches the picture in one or both of two ways:

        pooled           one vector for the whole caption joins the timestep's, and so scales and
                         shifts every residual block: the same everywhere in the picture
        cross-attention  after each self-attention, every place of the feature map looks at the words
                         and takes what it needs: other places, other words

    Imagen has both (section 2.3 and appendix D); Stable Diffusion has cross-attention alone.

    Args:
        words: the vocabulary; lies in the configuration, so that weights know their own.
        length: the most words in a caption.
        net: name and options of the picture network, as for `networks.build`.
        pooled, cross_attention: which ways there are.
        text_dim, text_depth: width and layers of the text encoder.

    Shape:
        x_t (N, C, H, W), t int64 (N,), cond None or int64 (N, length) from `tokenizer.encode` to
        (N, C, H, W).  None, or a row of zeros, is the empty caption.

    Raises:
        ValueError: neither way, or a network that cannot take one of them.
    """

    def __init__(
        self,
        words: Sequence[str],
        length: int,
        net: dict,
        pooled: bool = True,
        cross_attention: bool = True,
        text_dim: int = 64,
        text_depth: int = 2,
    ):
        super().__init__()
        if not pooled and not cross_attention:
            raise ValueError("the text needs a way to the picture: pooled, cross_attention or both")
        self.tokenizer = Tokenizer(words, length)
        self.cond_shape = (length,)
        self.pooled, self.cross_attention = pooled, cross_attention
        self.text = TextEncoder(len(words), length, text_dim, text_depth)
        ways = {"cond_dim": text_dim} if pooled else {}
        self.net = build(**net, **ways, **({"context_dim": text_dim} if cross_attention else {}))
        if cross_attention and not any(isinstance(layer, CrossAttention) for layer in self.net.modules()):
            raise ValueError("cross-attention follows self-attention: give the net attention, such as [8]")

    @property
    def stride(self) -> int:
        return self.net.stride

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x_t, t, **self._heard(x_t, cond))

    def both(self, other: "TextToImage", x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """See `blocks.both`."""
        return both(self.net, other.net, x_t, t, **self._heard(x_t, cond))

    def _heard(self, x_t: Tensor, cond: Tensor | None) -> dict:
        """The text as the picture network takes it."""
        if cond is None:
            cond = torch.full((len(x_t), *self.cond_shape), NOTHING, device=x_t.device)
        tokens, mask, pooled = self.text(cond)
        context = {"context": (tokens, mask)} if self.cross_attention else {}
        return {"cond": pooled if self.pooled else None, **context}
