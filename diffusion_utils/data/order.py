"""Which picture is seen in which step: everything from (seed, step) alone, so that runs can be resumed and shared."""

from functools import lru_cache

import torch
from torch import Tensor

from diffusion_utils.sampling import stream


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """Which of `count` pictures step `step` sees, int64 (batch_size,): every picture once per epoch, each
    epoch shuffled."""
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epoch = position // count
    return torch.cat([_epoch_order(int(e), count, seed)[position[epoch == e] % count] for e in epoch.unique()])


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, 2**31 + epoch)))
