"""Averages of a run's weights, of any length, put together after the run.

How long the average of the weights should be is known only at the end.  Karras et al. 2023 (EDM2, 2312.02696, section
3) keep snapshots of short averages, and mix them into longer ones: each snapshot is a known weighted sum of the
weights after all steps, its profile, so a mixture has one, too, and the best mixture is found by least squares.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion_utils.training.optimizers import average_decay

FURTHEST = 0.5  # from the wanted profile to that of a mixture, as a share of its length


def exponential(step: int, decay: float, steps: int) -> Tensor:
    """The profile of the average that `ema_update(decay)` keeps, after `step` of `steps`: how much the weights after
    step 1, 2, … count in it, float64 (steps,), summing to 1.

    Raises:
        ValueError: a step that is not one of 1 … `steps`.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step must lie in [1, {steps}], not {step}")
    decays = torch.tensor([average_decay(decay, n) for n in range(steps)], dtype=torch.float64)
    decays[0] = 0  # the average begins as the weights after the first step
    kept = decays.clamp(min=1e-300).log().cumsum(0)
    shares = (1 - decays) * (kept[step - 1] - kept).exp()
    shares[step:] = 0
    return shares


def power(steps: int, gamma: float) -> Tensor:
    """The profile that counts the weights after step s by s^γ (equation 2 there), float64 (steps,), summing to 1.  Its
    weights are steps / (γ + 2) old on average: a share of the run, however long that is."""
    shares = torch.arange(1, steps + 1, dtype=torch.float64) ** gamma
    return shares / shares.sum()


def mixture(profiles: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """How much of each snapshot comes nearest to the wanted average, float64 (N,), summing to 1.

    Raises:
        ValueError: nothing comes near it: it is shorter than what was kept, or snapshots are too few.
    """
    if not profiles:
        raise ValueError("there are no snapshots to mix: keep some while the run goes on")
    given = torch.stack([*profiles], dim=1)
    shares = torch.linalg.lstsq(given, wanted[:, None]).solution[:, 0]
    shares = shares / shares.sum()
    if not (given @ shares - wanted).norm() <= FURTHEST * wanted.norm():  # nor what is no number
        raise ValueError("no mixture comes near the wanted average: keep more snapshots, of shorter averages")
    return shares


def mix(snapshots: Sequence[Mapping[str, Tensor]], shares: Tensor) -> dict[str, Tensor]:
    """The weighted sum of state dictionaries, summed in float64, each value in its own type; counts, in whole numbers,
    are the last one's.

    Raises:
        ValueError: not one share for each snapshot.
    """
    if len(shares) != len(snapshots):
        raise ValueError(f"there are {len(snapshots)} snapshots and {len(shares)} shares: give one for each")
    pairs = [*zip(shares.tolist(), snapshots)]
    return {
        name: sum(share * snapshot[name].double() for share, snapshot in pairs).to(last.dtype)
        if last.is_floating_point()
        else last
        for name, last in snapshots[-1].items()
    }
