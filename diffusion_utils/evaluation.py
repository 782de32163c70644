"""Measuring a denoiser: the error of its guess at each noise level, what is possible at best, and how
its pictures compare with real ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_utils import features
from diffusion_utils.data import to_float, to_uint8
from diffusion_utils.metrics import copy_rate, fid, kid, precision_recall
from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.prediction import PREDICTION_TYPES, Denoiser


@torch.no_grad()
def error_per_timestep(
    denoiser: Denoiser,
    images: Tensor,
    timesteps: Sequence[int],
    seed: int = 0,
    batch_size: int = 256,
    cond: Tensor | None = None,
) -> list[float]:
    """Mean squared error of x̂₀ at each timestep, as a share of the pictures' variance.

    0 is perfect, 1 is what the mean picture scores; more than 1 is worse than not looking at all.

    Args:
        images: uint8 (N, 3, H, W), or float latents, best ones the denoiser was not trained on.
        timesteps: which t to measure, each in [0, T-1].
        seed: of the noise, the same at every timestep.
        cond: what describes each picture, one row each; None: nothing is said.
    """
    device = next((p.device for p in denoiser.net.parameters()), torch.device("cpu"))
    # Variance around the mean picture: what is left to know once one has seen the whole set.
    pictures = to_float(images) if images.dtype == torch.uint8 else images
    variance = (pictures - pictures.mean(0)).square().mean().item()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(pictures.shape, generator=generator)
    errors = []
    for t in timesteps:
        total = 0.0
        told = [None] * len(pictures) if cond is None else cond.split(batch_size)
        for x0, epsilon, about in zip(pictures.split(batch_size), noise.split(batch_size), told):
            x0, epsilon = x0.to(device), epsilon.to(device)
            steps = torch.full((len(x0),), t, device=device)
            about = None if about is None else about.to(device)
            guess = denoiser(denoiser.schedule.add_noise(x0, epsilon, steps), steps, about)
            total += (guess - x0).square().sum().item()
        errors.append(total / pictures.numel() / variance)
    return errors


@torch.no_grad()
def reconstruction_quality(autoencoder: Autoencoder, images: Tensor, batch_size: int = 64) -> dict[str, float]:
    """How much of pictures is left after an autoencoder, by torchmetrics: {"psnr": in decibels, "ssim":
    at most 1}, each the more the better (SSIM: Wang et al. 2004).

    Args:
        images: uint8 (N, 3, H, W), best pictures the autoencoder was not trained on.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    device = next(autoencoder.parameters()).device
    answers = torch.cat([autoencoder(to_float(part).to(device))[0].float().cpu() for part in images.split(batch_size)])
    answers, total = to_uint8(answers), {"psnr": 0.0, "ssim": 0.0}
    for ours, true in zip(answers.split(batch_size), images.split(batch_size)):  # SSIM needs much memory
        ours, true = ours.float(), true.float()
        psnr = peak_signal_noise_ratio(ours, true, data_range=255.0, dim=(1, 2, 3), reduction="sum")
        total["psnr"] += psnr.item()
        total["ssim"] += structural_similarity_index_measure(ours, true, data_range=255.0, reduction="sum").item()
    return {"psnr": round(total["psnr"] / len(images), 2), "ssim": round(total["ssim"] / len(images), 4)}


def covariance_eigenvalues(images: Tensor) -> Tensor:
    """Eigenvalues of the pictures' covariance, falling, float64 (3·H·W,).

    Args:
        images: uint8 (N, 3, H, W).  With fewer pictures than numbers in one, the rest are 0.
    """
    flat = to_float(images).flatten(1).double()
    flat = flat - flat.mean(0)
    # The Gram matrix (N×N) has the same non-zero eigenvalues as the covariance (D×D) and one of
    # the two is always small enough for an exact answer.
    matrix = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
    values = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0) / len(flat)
    return torch.cat([values, values.new_zeros(flat.shape[1] - len(values))])


def linear_bottleneck_error(eigenvalues: Tensor, noise_to_signal: float, rank: int, prediction_type: str) -> float:
    """Error of x̂₀ of the best *linear* network through a bottleneck of `rank` numbers, exactly.

    As a share of the data's variance, like `error_per_timestep`.  x_t = α·x₀ + σ·ε has variance
    α²λ + σ² along a principal direction with eigenvalue λ.  The best linear answer there is c·x_t
    with c = cov(target, x_t)/var(x_t); passing a direction lowers the target's error by
    c²·var(x_t), so the network passes the `rank` directions where that is largest (reduced-rank
    regression, Izenman 1975) and answers 0 in the others.  What is left of the target's error
    becomes error of x̂₀ times (σ/α)² for ε, σ² for v, 1 for x₀, (σd/n)² for EDM (see `prediction`),
    whose sigma_data d is the pictures' own deviation: d² is the mean of the eigenvalues.

    Args:
        eigenvalues: from `covariance_eigenvalues`.
        noise_to_signal: σ/α > 0.
        rank: numbers the bottleneck passes, 0 … len(eigenvalues).
        prediction_type: "epsilon", "sample", "v_prediction" or "edm".
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction_type {prediction_type!r}: choose one of {', '.join(PREDICTION_TYPES)}")
    if noise_to_signal <= 0 or not 0 <= rank <= len(eigenvalues):
        raise ValueError(f"noise_to_signal must be above 0 and rank lie in [0, {len(eigenvalues)}]")
    lam = eigenvalues.double()
    alpha2 = 1 / (1 + noise_to_signal**2)
    alpha, sigma = alpha2**0.5, (1 - alpha2) ** 0.5
    variance_xt = alpha**2 * lam + sigma**2
    d2 = lam.mean()
    n2 = alpha**2 * d2 + sigma**2
    covariance, variance, factor = {
        "epsilon": (sigma + 0 * lam, 1 + 0 * lam, (sigma / alpha) ** 2),
        "sample": (alpha * lam, lam, 1.0),
        "v_prediction": (alpha * sigma * (1 - lam), alpha**2 + sigma**2 * lam, sigma**2),
        "edm": (
            alpha * sigma * (lam - d2) / (d2 * n2).sqrt(),
            (sigma**2 * lam / d2 + alpha**2 * d2) / n2,
            float(sigma**2 * d2 / n2),
        ),
    }[prediction_type]
    gain = covariance**2 / variance_xt
    passed = gain.sort(descending=True).values[:rank].sum()
    return float(factor * (variance.sum() - passed) / lam.sum())


class Reference:
    """Real pictures that generated ones are compared with; their features are computed once.

        reference = Reference(train, held_out)
        reference.evaluate(pictures)

    KID, FID, precision and recall compare with held-out pictures, which the network never saw;
    copies are looked for among the training pictures.  Every figure has a floor: what real pictures
    score in place of generated ones.  No network can be expected to do better.

    Args:
        train, held_out: uint8 (N, 3, H, W) and (M, 3, H, W).
        extractor: name for `features.extractor`.  Features are kept in the cache folder: 40
            evaluations, in one process or in many, wait for them once.
        flips: whether training mirrored its pictures; then the mirrored ones count as seen.
        seed: of KID's subsets.
    """

    def __init__(
        self, train: Tensor, held_out: Tensor, extractor: str = features.DEFAULT, flips: bool = True, seed: int = 0
    ):
        self.extractor, self.seed, self.num_train = extractor, seed, len(train)
        self.seen = torch.cat([train, train.flip(3)]) if flips else train
        self.held_out = held_out
        self.seen_features = features.cached(self.seen, extractor)
        self.held_out_features = features.cached(held_out, extractor)
        self._floors = {}

    def evaluate(self, pictures: Tensor) -> dict:
        """Scores of generated pictures beside their floor, as plain numbers, ready for JSON.

        Both are dictionaries of kid, kid_std, fid, precision, recall, copies_in_pixels and
        copies_in_features (shares of the pictures).

        Args:
            pictures: uint8 (N, 3, H, W), or float in [-1, 1], of the real pictures' size.

        Raises:
            ValueError: fewer than 4 pictures, or of another size.
        """
        shape, expected = tuple(pictures.shape[1:]), tuple(self.held_out.shape[1:])
        if shape != expected:
            raise ValueError(f"expected pictures of the real ones' shape, {expected}, not {shape}")
        pictures = to_uint8(pictures) if pictures.is_floating_point() else pictures
        rows = features.features(pictures, self.extractor)
        return {
            "extractor": self.extractor,
            "counts": {"generated": len(pictures), "held_out": len(self.held_out), "train": self.num_train},
            "generated": {**self._likeness(rows), **self._copies(pictures, rows)},
            "floor": self.floor(len(pictures)),
        }

    def floor(self, count: int) -> dict:
        """What real pictures score: `count` training pictures, evenly spaced in the order of their
        files, against the held-out ones (as many as there are generated ones, because FID, precision
        and recall depend on the count); and how many held-out pictures pass for copies."""
        if count not in self._floors:
            chosen = torch.linspace(0, self.num_train - 1, min(count, self.num_train)).round().long()
            self._floors[count] = {
                **self._likeness(self.seen_features[chosen]),
                **self._copies(self.held_out, self.held_out_features),
            }
        return self._floors[count]

    def _likeness(self, rows: Tensor) -> dict:
        mean, spread = kid(self.held_out_features, rows, seed=self.seed)
        precision, recall = precision_recall(self.held_out_features, rows)
        return {
            "kid": round(mean, 5),
            "kid_std": round(spread, 5),
            "fid": round(fid(self.held_out_features, rows), 3),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
        }

    def _copies(self, pictures: Tensor, rows: Tensor) -> dict:
        return {
            "copies_in_pixels": round(copy_rate(pictures, self.seen)[0], 4),
            "copies_in_features": round(copy_rate(rows, self.seen_features)[0], 4),
        }
