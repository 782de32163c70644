"""Pictures to learn from: real cars from disk, and toy cars drawn by code."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 pictures 0 … 255 to float32 in [-1, 1], the range every network here works in."""
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pictures, not {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float pictures in [-1, 1] to uint8 0 … 255, rounded; values outside are clipped.

    Raises:
        ValueError: a number that is not finite, which would become black.
    """
    if not images.isfinite().all():
        raise ValueError("the pictures hold numbers that are not finite: their weights or data are damaged")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def root_mean_square(images: Tensor) -> float:
    """√(mean of x²) over all numbers of uint8 pictures, read in [-1, 1], or of latents: EDM's `sigma_data`."""
    if images.is_floating_point():  # latents
        return round(float(images.double().square().mean().sqrt()), 4)
    values = torch.arange(256, dtype=torch.uint8)
    counts = torch.bincount(images.flatten(), minlength=256).double()
    return round(float((counts * to_float(values).double().square()).sum().div(counts.sum()).sqrt()), 4)
