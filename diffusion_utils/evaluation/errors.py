"""Measuring a network on real pictures: the error of its guess at each noise level, and what is possible at best."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_utils.data import as_float, to_float, to_uint8
from diffusion_utils.networks import Autoencoder
from diffusion_utils.prediction import Denoiser, check_prediction_type
from diffusion_utils.sampling import generator


def _device(denoiser: Denoiser) -> torch.device:
    return next((p.device for p in denoiser.net.parameters()), torch.device("cpu"))


def _check_timesteps(denoiser: Denoiser, timesteps: Sequence[int]) -> None:
    last = denoiser.schedule.num_train_timesteps - 1
    if unknown := [t for t in timesteps if not 0 <= t <= last]:
        raise ValueError(f"timesteps must lie in [0, {last}], not {unknown[0]}")


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
        cond: the condition of each picture, one row each; None: unconditional.

    Raises:
        ValueError: pictures that do not differ, conditions that are not as many, or a timestep that there is not.
        FloatingPointError: an error that is not finite.
    """
    device = _device(denoiser)
    _check_timesteps(denoiser, timesteps)
    if cond is not None and len(cond) != len(images):
        raise ValueError(f"there are {len(images)} pictures and {len(cond)} conditions: give one for each")
    # Variance around the mean picture: what is left to know once one has seen the whole set.
    pictures = as_float(images)
    variance = (pictures - pictures.mean(0)).square().mean().item()
    if not variance:
        raise ValueError("the pictures do not differ, so there is no variance to compare with: give several")
    noise = torch.randn(pictures.shape, generator=generator(seed))
    errors = []
    for t in timesteps:
        total = 0.0
        conds = [None] * len(pictures) if cond is None else cond.to(device).split(batch_size)
        for x0, epsilon, rows in zip(pictures.split(batch_size), noise.split(batch_size), conds):
            x0, epsilon = x0.to(device), epsilon.to(device)
            steps = torch.full((len(x0),), t, device=device)
            guess = denoiser(denoiser.schedule.add_noise(x0, epsilon, steps), steps, rows)
            total += (guess - x0).square().sum().item()
        if not math.isfinite(total):
            raise FloatingPointError(f"the error at timestep {t} is not finite: weights or pictures are damaged")
        errors.append(total / pictures.numel() / variance)
    return errors


@torch.enable_grad()
def reach(denoiser: Denoiser, images: Tensor, t: int, seed: int = 0) -> Tensor:
    """How far a pixel of x̂₀ looks: the share of its sensitivity that lies within each distance.

    Small independent changes of all pixels of x_t move one number of x̂₀ with a variance that is proportional to the
    sum of its squared derivatives; the share of a place is what of it comes from there (the effective receptive
    field, Luo et al. 2016, 1701.04128, who take the derivatives themselves).  In each picture one number of x̂₀ is
    looked at, at a random pixel of a random channel.

    Args:
        images: uint8 (N, 3, H, W), or float in [-1, 1].
        t: timestep, in [0, T-1].
        seed: of the noise and the places.

    Returns:
        (max(H, W),), means over the pictures: the share within 0, 1, 2 … pixels, counted along rows or along
        columns, whichever are more.

    Raises:
        ValueError: a number of x̂₀ that does not depend on x_t, or a timestep that there is not.
    """
    _check_timesteps(denoiser, [t])
    device, random = _device(denoiser), generator(seed)
    x0 = as_float(images).to(device)
    count, channels, height, width = x0.shape
    places = [torch.randint(n, (count, 1, 1), generator=random) for n in (channels, height, width)]
    steps, noise = torch.full((count,), t, device=device), torch.randn(x0.shape, generator=random).to(device)
    x_t = denoiser.schedule.add_noise(x0, noise, steps).requires_grad_()
    channel, row, column = (place.to(device) for place in places)
    numbers = torch.arange(count, device=device)
    answers = denoiser(x_t, steps)[numbers, channel.flatten(), row.flatten(), column.flatten()]
    (gradient,) = torch.autograd.grad(answers.sum(), x_t)
    sensitivity = gradient.square().sum(1)
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    distance = torch.maximum((rows - row).abs(), (columns - column).abs())
    total = sensitivity.sum((1, 2), keepdim=True)
    if not (total.isfinite() & (total > 0)).all():
        raise ValueError("x̂₀ does not depend on x_t, at least in one picture: the network is untrained, or damaged")
    sensitivity = sensitivity / total
    return torch.stack([(sensitivity * (distance <= far)).sum((1, 2)).mean() for far in range(max(height, width))])


@torch.no_grad()
def reconstruction_quality(autoencoder: Autoencoder, images: Tensor, batch_size: int = 64) -> dict[str, float]:
    """How much of pictures is left after an autoencoder, by torchmetrics: {"psnr": in decibels, "ssim":
    at most 1}, each the more the better (SSIM: Wang et al. 2004).

    Args:
        images: uint8 (N, 3, H, W), best pictures the autoencoder was not trained on.
    """
    # Here and not above: importing torchmetrics takes seconds.
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
    whose sigma_data d is the pictures' own deviation: d² is the mean of the eigenvalues, and (σ/(α+σ))² for u.

    Args:
        eigenvalues: from `covariance_eigenvalues`.
        noise_to_signal: σ/α > 0.
        rank: numbers the bottleneck passes, 0 … len(eigenvalues).
        prediction_type: one of `prediction.PREDICTION_TYPES`.
    """
    check_prediction_type(prediction_type)
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
        "flow_prediction": (sigma - alpha * lam, 1 + lam, (sigma / (alpha + sigma)) ** 2),
    }[prediction_type]
    gain = covariance**2 / variance_xt
    passed = gain.sort(descending=True).values[:rank].sum()
    return float(factor * (variance.sum() - passed) / lam.sum())
