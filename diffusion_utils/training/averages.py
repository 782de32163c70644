"""Averages of a run's weights, of any length, put together after the run.

How long the average of the weights should be is known only at the end.  Karras et al. 2023 (EDM2, 2312.02696, section
3.2) keep snapshots of short averages, and mix them into longer ones: each snapshot is a known weighted sum of the
weights at all steps, so a mixture is one, too, and the best mixture is found by least squares.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion_utils.training.optimizers import average_decay


def profile(step: int, decay: float, steps: int) -> Tensor:
    """How much the weights after each of the steps 1 … `steps` count in an average that `ema_update(decay)` has kept
    up to `step`: float64 (steps,), summing to 1."""
    decays = torch.tensor([average_decay(decay, n) for n in range(steps)], dtype=torch.float64)
    decays[0] = 0  # the average begins as the weights after the first step
    kept = decays.clamp(min=1e-300).log().cumsum(0)
    shares = (1 - decays) * (kept[step - 1] - kept).exp()
    shares[step:] = 0
    return shares


def mixture(steps: Sequence[int], decay: float, wanted: float) -> Tensor:
    """How much of each snapshot makes up an average of another length, float64 (N,), summing to 1.

    Args:
        steps: after which the snapshots were taken, rising; the last one ends the wanted average.
        decay: of the averages in the snapshots.
        wanted: the decay of the wanted average, at least `decay`: short averages cannot be told from long ones.

    Raises:
        ValueError: a shorter average is wanted.
    """
    if wanted < decay:
        raise ValueError(f"averages of decay {decay} cannot be mixed into a shorter one: {wanted} is less")
    given = torch.stack([profile(step, decay, steps[-1]) for step in steps], dim=1)
    shares = torch.linalg.lstsq(given, profile(steps[-1], wanted, steps[-1])[:, None]).solution[:, 0]
    return shares / shares.sum()


def mix(snapshots: Sequence[Mapping[str, Tensor]], shares: Tensor) -> dict[str, Tensor]:
    """The weighted sum of state dictionaries, summed in float64, in their own type."""
    return {
        name: sum(share * snapshot[name].double() for share, snapshot in zip(shares.tolist(), snapshots)).to(first)
        for name, first in ((name, value.dtype) for name, value in snapshots[-1].items())
    }
