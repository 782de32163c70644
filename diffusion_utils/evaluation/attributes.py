"""Does a picture show what its prompt asked for?  Readers that look at drawn pictures and say what they see.

Toy cars: a small classifier reads body, colour, direction and time of day, and of letters which one it is.
Photographs: the colour is measured from the pixels (`data.captions.colours`), and the body type is read from features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.data import as_float, to_float, toy_cars
from diffusion_utils.data.letters import LETTERS, Letters
from diffusion_utils.data.order import batch_indices

ATTRIBUTES = {
    "body": toy_cars.BODIES,
    "colour": toy_cars.COLOURS,
    "direction": toy_cars.DIRECTIONS,
    "time": toy_cars.TIMES,
}
COUNTS = tuple(len(values) for values in ATTRIBUTES.values())


class AttributeReader(nn.Module):
    """Pictures (N, 3, H, W) in [-1, 1] to one score per value of every attribute; of toy cars float (N, 19): six
    bodies, eight colours, two directions, three times of day.

    Args:
        size: H = W, a multiple of 8.
        counts: how many values each attribute has; of letters (26,).
    """

    def __init__(self, size: int = 32, counts: tuple[int, ...] = COUNTS):
        super().__init__()
        self.counts = counts
        widths = [(12, 32), (32, 48), (48, 64)]
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for number, (before, after) in enumerate(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=1 if number == 0 else 2, padding=1),
                nn.GroupNorm(8, after),
                nn.ReLU(),
            ]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (size // 8) ** 2, sum(counts)))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def by_attribute(self, images: Tensor) -> tuple[Tensor, ...]:
        """The scores of each attribute's values."""
        return self(images).split(self.counts, dim=1)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """What uint8 or float pictures show: int64 (N, attributes), like `ToyCars.labels`."""
        parts = as_float(images).clamp(-1, 1).split(256)
        return torch.cat([torch.stack([s.argmax(1) for s in self.by_attribute(part)], dim=1) for part in parts])


def train_reader(
    cars: toy_cars.ToyCars | Letters, steps: int = 500, batch_size: int = 64, seed: int = 0
) -> AttributeReader:
    """A reader, trained on real toy cars of every kind, or on letters; half a minute on two CPU cores.

    A little noise is put on the pictures, so that it does not hang on to what a drawing program
    leaves in a picture and a denoiser does not.
    """
    torch.manual_seed(seed)
    labels = cars.labels.reshape(len(cars.images), -1)
    reader = AttributeReader(cars.images.shape[-1], COUNTS if isinstance(cars, toy_cars.ToyCars) else (len(LETTERS),))
    optimizer = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        rows = batch_indices(step, batch_size, len(cars.images), seed)
        images = to_float(cars.images[rows])
        scores = reader.by_attribute(images + 0.1 * torch.randn_like(images))
        loss = sum(F.cross_entropy(part, label) for part, label in zip(scores, labels[rows].T))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval().requires_grad_(False)


def accuracy(read: Tensor, asked: Tensor) -> dict[str, float]:
    """Share of the pictures that show what was asked for: by attribute, and all of them at once.

    Args:
        read, asked: int64 (N, 4), as `AttributeReader.read` and `ToyCars.labels` have them.
    """
    right = read == asked
    return {name: part.double().mean().item() for name, part in zip(ATTRIBUTES, right.T)} | {
        "all": right.all(1).double().mean().item()
    }


def every_kind(held_out: bool | None = None) -> tuple[list[str], Tensor]:
    """Captions of all 288 kinds of toy car and their labels, int64 (288, 4).

    Args:
        held_out: only the 36 kinds that training never shows, or only the 252 others.
    """
    labels = torch.cartesian_prod(*[torch.arange(len(values)) for values in ATTRIBUTES.values()])
    kinds = [
        dict(zip(ATTRIBUTES, (values[i] for values, i in zip(ATTRIBUTES.values(), row)))) for row in labels.tolist()
    ]
    keep = [
        i
        for i, kind in enumerate(kinds)
        if held_out is None or ((kind["body"], kind["colour"]) in toy_cars.HELD_OUT) == held_out
    ]
    return [toy_cars.describe(**kinds[i]) for i in keep], labels[keep]


class FeatureReader:
    """Reads a label from pictures' features by the best linear map (ridge regression on one-hot labels).

    Args:
        features: (N, D) of pictures whose labels are known.
        labels: int64 (N,).
        strength: of the regularisation, in pictures.
    """

    def __init__(self, features: Tensor, labels: Tensor, strength: float = 30.0):
        rows = features.double()
        self.mean, self.spread = rows.mean(0), rows.std(0).clamp(min=1e-6)
        rows = self._prepare(features)
        one_hot = F.one_hot(labels).double()
        gram = rows.T @ rows + strength * rows.shape[1] ** 0.5 * torch.eye(rows.shape[1], dtype=torch.float64)
        self.weights = torch.linalg.solve(gram, rows.T @ (one_hot - one_hot.mean(0)))
        self.share = one_hot.mean(0)

    def read(self, features: Tensor) -> Tensor:
        """int64 (N,)."""
        return (self._prepare(features) @ self.weights + self.share).argmax(1)

    def _prepare(self, features: Tensor) -> Tensor:
        if not features.isfinite().all():
            raise ValueError("the features hold numbers that are not finite: nothing can be read from them")
        return (features.double() - self.mean) / self.spread
