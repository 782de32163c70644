"""Pictures to learn from: real cars and own pictures from disk, toy cars and letters drawn by code."""

import torch
from torch import Tensor

NOT_FINITE = "the pictures hold numbers that are not finite: their weights or data are damaged"


def to_float(images: Tensor) -> Tensor:
    """uint8 pictures 0 … 255 to float32 in [-1, 1], the range every network here works in."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise ValueError(f"expected a tensor of uint8 pictures, not {getattr(images, 'dtype', type(images).__name__)}")
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float pictures in [-1, 1] to uint8 0 … 255, rounded; values outside are clipped.

    Raises:
        ValueError: a number that is not finite, which would become black.
    """
    if not images.isfinite().all():
        raise ValueError(NOT_FINITE)
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_uint8(images: Tensor) -> Tensor:
    """Pictures, uint8 or float in [-1, 1], as uint8 (N, 3, H, W) on the CPU.

    Raises:
        TypeError: no tensor.
        ValueError: no pictures, another shape or type, numbers that are not finite, or floats in 0 … 255.
    """
    check_batch(images)
    if images.shape[1] != 3:
        raise ValueError(f"expected pictures of shape (N, 3, H, W), not {tuple(images.shape)}")
    images = images.detach().cpu()
    return images if images.dtype == torch.uint8 else to_uint8(images)


def as_float(images: Tensor) -> Tensor:
    """Pictures, uint8 or float in [-1, 1], or latents as float32 (N, C, H, W).  Raises the errors of `as_uint8`."""
    check_batch(images)
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def check_batch(images: Tensor) -> None:
    """Raise an error that says what is wrong with a batch of pictures or latents, see `as_uint8`."""
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a tensor of pictures, not {type(images).__name__}: see torch.from_numpy")
    if images.dim() != 4:
        hint = "; for a single picture pass image[None]" if images.dim() == 3 else ""
        raise ValueError(f"expected pictures of shape (N, 3, H, W), not {tuple(images.shape)}{hint}")
    if images.numel() == 0:
        raise ValueError(f"no pictures: the batch has shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"expected float pictures in [-1, 1] or uint8, not {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(NOT_FINITE)
    if images.min() >= 0 and images.max() > 2:
        raise ValueError(f"expected float pictures in [-1, 1], not in [0, {images.max():g}]: give uint8 for 0 … 255")


def root_mean_square(images: Tensor) -> float:
    """√(mean of x²) over all numbers of uint8 pictures, read in [-1, 1], or of latents: EDM's `sigma_data`."""
    if images.is_floating_point():  # latents
        return round(float(images.double().square().mean().sqrt()), 4)
    values = torch.arange(256, dtype=torch.uint8)
    counts = torch.bincount(images.flatten(), minlength=256).double()
    return round(float((counts * to_float(values).double().square()).sum().div(counts.sum()).sqrt()), 4)
