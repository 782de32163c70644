"""The best denoisers that there can be, written down instead of trained.

If the training pictures x₀¹ … x₀ᴹ are all there is, Bayes' rule says how probable each is as the origin of
x_t = α·x₀ + σ·ε, and the mean of what it says is the x̂₀ of least squared error (notebook 08):

    wᵢ ∝ exp(-‖x_t - α·x₀ⁱ‖² / 2σ²),    x̂₀ = Σᵢ wᵢ·x₀ⁱ

No network has a lower training loss, and drawing with it gives training pictures back.  Confined to a patch
around each pixel it draws new pictures, mosaics of the old (Kamb & Ganguli 2024, 2412.20292).

All pictures here are float (N, C, H, W), in [-1, 1] where they are clean; alpha and sigma are numbers, or
tensors without dimensions, of one timestep.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_utils.schedule import Schedule


def weights(noisy: Tensor, clean: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """How probable each clean row is as the origin of each noisy one, (N, M); rows sum to 1.

    Args:
        noisy, clean: (N, D) and (M, D), pictures or patches as rows.
        sigma: above 0.
    """
    distances = torch.cdist(noisy, alpha * clean)
    return (-distances.square() / (2 * sigma**2)).softmax(1)


def whole(x_t: Tensor, pictures: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """x̂₀ of the ideal denoiser: the mean of all pictures (M, C, H, W), each with its weight."""
    w = weights(x_t.flatten(1), pictures.flatten(1), alpha, sigma)
    return (w @ pictures.flatten(1)).reshape(x_t.shape)


def patch_weights(x_t: Tensor, pictures: Tensor, alpha: float | Tensor, sigma: float | Tensor, patch: int) -> Tensor:
    """As `weights` for every pixel of one x_t (C, H, W) on its own, (M, H, W), by the patch×patch pixels around it.

    The same place of every picture is compared; at the edges a patch has fewer pixels.  What it costs does not
    depend on `patch`, an odd number: multiplying by a matrix of zeros and ones adds up neighbours.
    """
    squares = (x_t - alpha * pictures).square().sum(1)
    rows, columns = (_neighbours(side, patch).to(squares) for side in squares.shape[1:])
    distances = rows @ squares @ columns
    return (-distances / (2 * sigma**2)).softmax(0)


def patched(x_t: Tensor, pictures: Tensor, alpha: float | Tensor, sigma: float | Tensor, patch: int) -> Tensor:
    """x̂₀ where every pixel has weights of its own, see `patch_weights`."""
    guesses = [(patch_weights(x, pictures, alpha, sigma, patch)[:, None] * pictures).sum(0) for x in x_t]
    return torch.stack(guesses)


def anywhere(x_t: Tensor, pictures: Tensor, alpha: float | Tensor, sigma: float | Tensor, patch: int) -> Tensor:
    """As `patched`, but a patch may come from any place of any picture: the equivariant one, as convolutions are.

    Beyond the edges there are zeros, as for a convolution.  M pictures have M·H·W patches: meant for few.
    """
    keys, values = _patches(pictures, patch).flatten(0, 1), _patches(pictures, 1).flatten(0, 1)
    guesses = [(weights(noisy, keys, alpha, sigma) @ values).T for noisy in _patches(x_t, patch)]
    return torch.stack(guesses).reshape(x_t.shape)


def _neighbours(side: int, patch: int) -> Tensor:
    """(side, side), true where two places are in one patch."""
    places = torch.arange(side)
    return (places[:, None] - places).abs() <= patch // 2


def _patches(pictures: Tensor, patch: int) -> Tensor:
    """(N, H·W, C·patch²): what is around each pixel."""
    return F.unfold(pictures, patch, padding=patch // 2).transpose(1, 2)


def likeness(ours: Tensor, theirs: Tensor, mean: Tensor) -> float:
    """Correlation of two batches of pictures (N, C, H, W), in [-1, 1], without what the mean picture explains."""
    return F.cosine_similarity((ours - mean).flatten(), (theirs - mean).flatten(), dim=0).item()


def _check_pictures(pictures: Tensor) -> None:
    """Raise a ValueError for what are no pictures in [-1, 1]."""
    kind = f"{pictures.dtype} {tuple(pictures.shape)}"
    if pictures.dim() == 4 and pictures.is_floating_point() and len(pictures):
        low, high = pictures.min().item(), pictures.max().item()
        if -1.01 <= low and high <= 1.01:
            return
        kind = f"numbers from {low:.3g} to {high:.3g}"
    raise ValueError(f"expected float pictures (M, C, H, W) in [-1, 1], not {kind}: see data.to_float")


def _check_fit(x_t: Tensor, pictures: Tensor, places: bool = True) -> None:
    """Raise a ValueError for x_t of another shape than the pictures, or, without `places`, other channels."""
    ours, theirs = tuple(x_t.shape[1:]), tuple(pictures.shape[1:])
    if ours != theirs if places else ours[:1] != theirs[:1]:
        raise ValueError(f"x_t is {ours}, and the pictures known are {theirs}: give shape={theirs}")


@dataclass(frozen=True, eq=False)
class Ideal:
    """An ideal denoiser that every sampler takes in place of a network.

    Attributes:
        pictures: float (M, C, H, W) in [-1, 1], all that it knows.
        schedule: how much noise there is at each timestep.
        patch: None: weights for whole pictures; an odd number: for each pixel its own, by the pixels around it.
        anywhere: patches from any place, not only the same one.

    Raises:
        ValueError: pictures that are not float, or a patch that has no middle.
    """

    pictures: Tensor
    schedule: Schedule
    patch: int | None = None
    anywhere: bool = False

    def __post_init__(self):
        _check_pictures(self.pictures)
        if self.patch is None and self.anywhere:
            raise ValueError("whole pictures have one place only: give a patch, such as 5")
        if self.patch is not None and (self.patch < 1 or self.patch % 2 == 0):
            raise ValueError(f"patch must be odd, so that it has a pixel in its middle, not {self.patch}")

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₀ (N, C, H, W) for x_t of the same shape; t int64 (N,) in [0, T-1], one and the same for all."""
        if len(t.unique()) != 1:
            raise ValueError("an ideal denoiser takes one timestep for the whole batch")
        _check_fit(x_t, self.pictures, places=not self.anywhere)
        alpha, sigma = (level.reshape(()) for level in self.schedule.alpha_sigma(t[:1], like=x_t[:1]))
        if self.patch is None:
            return whole(x_t, self.pictures, alpha, sigma)
        make = anywhere if self.anywhere else patched
        return make(x_t, self.pictures, alpha, sigma, self.patch)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The ideal denoiser for a normal distribution that has the pictures' mean and covariance: Wiener's filter.

    x̂₀ = μ + α·C·(α²C + σ²)⁻¹·(x_t - α·μ), along the eigenvectors of the covariance C.  It knows nothing else of the
    pictures, float (M, C, H, W), and is linear.  Called as `Ideal` is.
    """

    pictures: Tensor
    schedule: Schedule

    def __post_init__(self):
        _check_pictures(self.pictures)
        rows = self.pictures.flatten(1)
        _, singular, vectors = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        object.__setattr__(self, "mean", rows.mean(0))
        object.__setattr__(self, "eigenvalues", singular.square() / len(rows))
        object.__setattr__(self, "vectors", vectors)  # one a row

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₀ (N, C, H, W); t int64 (N,) in [0, T-1]."""
        _check_fit(x_t, self.pictures)
        alpha, sigma = self.schedule.alpha_sigma(t, like=x_t.flatten(1))
        along = (x_t.flatten(1) - alpha * self.mean) @ self.vectors.T
        shrunk = alpha * self.eigenvalues / (alpha**2 * self.eigenvalues + sigma**2) * along
        return (self.mean + shrunk @ self.vectors).reshape(x_t.shape)
