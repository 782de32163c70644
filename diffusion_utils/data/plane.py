"""Pictures of two numbers each: points of the plane, for the figures in which diffusion can be watched."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_utils.checks import suggestions, whole

PlaneName = Literal["moons", "car", "ring"]
PLANES = get_args(PlaneName)

# A car from its left side: corners of the body, from the ground at the back over the roof, and the wheels' middles.
BODY = [(-1.25, -0.3), (-1.3, 0.1), (-0.95, 0.2), (-0.6, 0.62), (0.25, 0.62), (0.62, 0.2), (1.2, 0.08), (1.3, -0.3)]
WHEELS, RADIUS = [(-0.75, -0.3), (0.72, -0.3)], 0.24


def points(name: PlaneName, count: int = 600) -> Tensor:
    """Points of a data set of the plane, evenly along its lines.

    Args:
        name: "moons", two arcs that reach into each other; "car", the outline of one; "ring", a circle.
        count: how many.

    Returns:
        float32 (count, 2), x to the right and y upwards, with mean 0 and variance 1 (over both coordinates).

    Raises:
        ValueError: unknown name, fewer than two points, or no whole number of them.
    """
    if name not in PLANES:
        raise ValueError(f"unknown data set {name!r}: choose one of {suggestions(name, PLANES)}")
    count = whole("count", count, least=2)
    lines = {"moons": _moons, "car": _car, "ring": _ring}[name]()
    found = torch.cat([_along(line, share) for line, share in zip(lines, _shares(lines, count))])
    found = found - found.mean(0)
    return (found / found.square().mean().sqrt()).float()


def _moons() -> list[Tensor]:
    angle = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    return [upper, torch.tensor([1.0, 0.4]) - upper]


def _ring() -> list[Tensor]:
    return [_circle(0.0, 0.0, 1.0)]


def _car() -> list[Tensor]:
    (rear, ground), front = WHEELS[0], WHEELS[1][0]
    stops = [BODY[-1][0], front + RADIUS, front - RADIUS, rear + RADIUS, rear - RADIUS, BODY[0][0]]
    below = [[(x, ground) for x in stops[i : i + 2]] for i in (0, 2, 4)]  # the ground line, but for the wheels
    lines = [torch.tensor(line, dtype=torch.float64) for line in (BODY, *below)]
    return [*lines, *(_circle(x, y, RADIUS) for x, y in WHEELS)]


def _circle(x: float, y: float, radius: float) -> Tensor:
    angle = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64)
    return torch.stack([x + radius * angle.cos(), y + radius * angle.sin()], 1)


def _shares(lines: list[Tensor], count: int) -> list[int]:
    """How many points each line gets: by its length, `count` together."""
    ends = torch.tensor([line.diff(dim=0).norm(dim=1).sum() for line in lines]).cumsum(0)
    ends = (ends / ends[-1] * count).round().long().tolist()
    return [end - start for start, end in zip([0, *ends], ends)]


def _along(line: Tensor, count: int) -> Tensor:
    """`count` points in equal distances along a line of corners (K, 2)."""
    lengths = torch.cat([torch.zeros(1), line.diff(dim=0).norm(dim=1).cumsum(0)])
    place = (torch.arange(count) + 0.5) / max(count, 1) * lengths[-1]
    corner = torch.searchsorted(lengths, place, right=True).clamp(1, len(line) - 1)
    share = (place - lengths[corner - 1]) / (lengths[corner] - lengths[corner - 1])
    return torch.lerp(line[corner - 1], line[corner], share[:, None])
