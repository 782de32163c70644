"""Comparing two sets of pictures by their features, and finding copies.

All functions take matrices with one row per picture, as `features.features` makes them (`nearest`
and `copy_rate` take pictures as well).  KID and FID are torchmetrics'; the rest is a few lines.
"""

import warnings

import torch
from torch import Tensor, nn

from diffusion_utils.data import as_uint8
from diffusion_utils.sampling import checked_seeds


class _Identity(nn.Module):
    """torchmetrics wants a network that makes features; here they are made already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def kid(
    real: Tensor, generated: Tensor, subsets: int = 100, subset_size: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception Distance (Bińkowski et al. 2018, 1801.01401): mean and spread over subsets.

    The squared maximum mean discrepancy with the kernel (x·y/D + 1)³, in its unbiased form: 0 on
    average for two sets from one source, whatever their size, and thus sometimes a little below 0.

    Args:
        real, generated: features (N, D) and (M, D).
        subset_size: pictures of either set per subset; where a set has fewer, all of the smaller
            set are used.  The mean does not depend on it, the spread does.
        seed: which pictures get into which subset.

    Raises:
        ValueError: fewer than 2 pictures, or features that do not match.
    """
    real, generated = _matrices(real, generated, least=2)
    size = min(subset_size, len(real), len(generated))
    if size == len(real) == len(generated):
        subsets = 1  # each would be the whole set
    from torchmetrics.image.kid import KernelInceptionDistance  # here, because importing it takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that KID keeps all features, as it should
        metric = KernelInceptionDistance(_Identity(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(*checked_seeds([seed]))  # torch.manual_seed would reseed GPUs, too
        mean, spread = metric.compute()
    return mean.item(), spread.item()


def fid(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to the features (Heusel et al. 2017, 1706.08500).

    The published FID has Inception's features; with others the numbers are other ones.  Fewer
    pictures make it larger, also between two sets from one source: compare it at equal counts only.

    Args:
        real, generated: features (N, D) and (M, D).

    Raises:
        ValueError: fewer than 2 pictures, or features that do not match.
    """
    real, generated = _matrices(real, generated, least=2)
    from torchmetrics.image.fid import FrechetInceptionDistance  # here, because importing it takes seconds

    metric = FrechetInceptionDistance(_Identity(real.shape[1]))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute().item()


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of generated pictures that could be real, and of real ones that could be generated.

    Kynkäänniemi et al. 2019 (1904.06991): a set covers the balls around its points that reach as
    far as the k-th nearest other point.  Precision is the share of generated pictures in the real
    set's cover, recall the share of real ones in the generated set's.  Both depend on the counts.

    Args:
        real, generated: features (N, D) and (M, D).

    Raises:
        ValueError: k or fewer pictures, or features that do not match.
    """
    real, generated = _matrices(real, generated, least=k + 1)
    between = torch.cdist(real, generated)
    precision = (between <= _radii(real, k)[:, None]).any(0)
    recall = (between <= _radii(generated, k)[None, :]).any(1)
    return precision.double().mean().item(), recall.double().mean().item()


def contrast(images: Tensor) -> float:
    """How far the brightness (Rec. 601) spreads within a picture: its deviation, of black to white, averaged.

    Args:
        images: uint8 (N, 3, H, W), or float in [-1, 1].
    """
    brightness = torch.tensordot(_shares(images), torch.tensor([0.299, 0.587, 0.114]), dims=([1], [0]))
    return brightness.flatten(1).std(1, correction=0).mean().item()


def colour_spread(images: Tensor) -> float:
    """How far pictures differ in colour from one another: the root mean square distance of their mean colours from
    the mean of all, where the edge of the RGB cube has length 1.

    Args:
        images: uint8 (N, 3, H, W), or float in [-1, 1].
    """
    colours = _shares(images).mean((2, 3))
    return (colours - colours.mean(0)).square().sum(1).mean().sqrt().item()


def nearest(queries: Tensor, references: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """The nearest references of each query, by the length of the difference.

    Args:
        queries, references: (N, …) and (M, …), pictures or features.

    Returns:
        Distances, rising, float32 (N, count), and which references they are, int64 (N, count).

    Raises:
        ValueError: fewer than `count` references, or shapes that do not match.
    """
    _check_finite(queries, references)
    if queries.shape[1:] != references.shape[1:] or len(references) < count:
        raise ValueError(
            f"queries {tuple(queries.shape)} and references {tuple(references.shape)} must match, "
            f"with at least {count} references"
        )
    references = references.flatten(1)
    distances, indices = [], []
    for rows in queries.flatten(1).float().split(512):  # in parts, or the floats would fill the memory
        far = torch.cat([torch.cdist(rows, part.float()) for part in references.split(1024)], dim=1)
        found = far.topk(count, largest=False).indices
        # cdist multiplies matrices, which costs small distances their digits: measure these again.
        exact = torch.stack([(rows - references[column].float()).norm(dim=1) for column in found.T], dim=1)
        exact, order = exact.sort(dim=1)
        distances.append(exact)
        indices.append(found.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def copy_rate(queries: Tensor, references: Tensor, ratio: float = 1 / 3) -> tuple[float, Tensor]:
    """Share of the queries that copy a reference, and the ratio (N,) it is decided by.

    A copy is much nearer to one training picture than to any other: the distance to the nearest is
    below a third of that to the second nearest (Yoon et al. 2023, "Diffusion probabilistic models
    generalize when they fail to memorize").  A reference that is there twice hides its copies,
    except exact ones.

    Args:
        queries, references: (N, …) and (M ≥ 2, …), pictures or features.  Where training mirrors
            its pictures, the mirrored ones are references, too.
    """
    distances, _ = nearest(queries, references, 2)
    ratios = (distances[:, 0] / distances[:, 1]).nan_to_num(0)  # 0/0: a copy of one that is there twice
    return (ratios < ratio).double().mean().item(), ratios


def _shares(images: Tensor) -> Tensor:
    return as_uint8(images).float() / 255


def _radii(rows: Tensor, k: int) -> Tensor:
    return torch.cdist(rows, rows).kthvalue(k + 1).values  # the nearest of all is the point itself


def _check_finite(*rows: Tensor) -> None:
    for part in rows:
        if not isinstance(part, Tensor):
            raise TypeError(f"expected tensors of features or pictures, not {type(part).__name__}: torch.as_tensor")
        if part.is_floating_point() and not part.isfinite().all():
            raise ValueError("the features or pictures hold numbers that are not finite: nothing can be measured")


def _matrices(real: Tensor, generated: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both in float64, where differences of nearly equal numbers keep their digits."""
    _check_finite(real, generated)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(f"expected (N, D) and (M, D), not {tuple(real.shape)} and {tuple(generated.shape)}")
    if min(len(real), len(generated)) < least:
        raise ValueError(f"too few pictures: {len(real)} real, {len(generated)} generated, of at least {least} each")
    return real.double(), generated.double()
