"""Consistency tuning: teach a trained denoiser to reach in one or two steps what takes it twenty.

A denoiser's answer x̂₀ to pure noise is the mean of everything the noise could become: a blur.  Samplers
therefore go in small steps along a curve from noise to picture.  A consistency model (Song et al. 2023,
2303.01469) is asked for the *end* of the curve instead, from wherever on it.  It learns that from itself:
of two neighbouring points of one curve both answers must be the same, so the noisier one learns from
the cleaner one, and the cleanest from the picture.

Easy Consistency Tuning (Geng et al. 2024, 2406.14548) starts with a trained denoiser and with the two
points far apart.  With the picture itself as the cleaner point this is nothing but denoising; then the
two come closer in stages.
"""

import torch
from torch import Tensor

from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import to_device

BOUNDARY = 0.05  # noise to signal at which the answer is half what it was given, see `consistency_loss`
STAGES = 8  # of a run: the paper halves the distance every eighth of the budget


def cleaner_level(level: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """The noise level from which the given one learns (Geng et al. 2024, section 3.3).

    r = s·max(0, 1 - n(s)/q^(stage+1)) with n(s) = 1 + k·sigmoid(-b·s): half as far away with every
    stage (for q = 2), and farther for low noise, where steps matter less.

    Args:
        level: noise to signal s = σ/α ≥ 0, any shape.
        stage: 0, 1, 2, …
    """
    distance = (1 + k * torch.sigmoid(-b * level)) / q ** (stage + 1)
    return level * (1 - distance).clamp(min=0)


def consistency_loss(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, stage: int, cond: Tensor | None = None
) -> Tensor:
    """How much the answers to two points of one curve differ (Geng et al. 2024, eq. 10 with c = 0).

    The mean over pictures of |f(x_t) - f(x_r)| / (s_t - s_r), with the Euclidean distance |·| per number
    of the picture, and x_r on the same line from x₀ through the same noise.  f(x_r) is the teacher of
    this step and gets no gradient; where r is below the least noise there is, the picture itself is.

    f must return a clean picture unchanged, or answering every noise with the same grey would satisfy
    the rule just as well, and tuning does end there.  A network that predicts ε, v, u or EDM's F does so by
    construction; one that predicts x₀ need not.  So f = x̂₀ + b²/(s² + b²)·(x_t/α - x̂₀), as in Song et al.
    2023, eq. 5, with b = `BOUNDARY` so small that at the noise levels where samplers stop (s ≥ 0.3)
    f is x̂₀, and any sampler can do without it.

    Args:
        denoiser: of the network that is tuned.
        x0, noise, t, cond: as for `Denoiser.loss`.
        stage: see `cleaner_level`.
    """
    schedule = denoiser.schedule

    def answer(steps: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(steps, like=x0)
        x_t = alpha * x0 + sigma * noise
        x0_hat = denoiser.predict(x_t, steps, alpha, sigma, cond).float()
        kept = (BOUNDARY * alpha) ** 2 / (sigma**2 + (BOUNDARY * alpha) ** 2)
        return x0_hat + kept * (x_t / alpha - x0_hat)

    # Timesteps are whole numbers: r is the noisiest one that is not above the level asked for.
    levels = to_device(schedule.snr().pow(-0.5).float(), x0.device)
    r = torch.searchsorted(levels, cleaner_level(levels[t], stage), right=True) - 1
    r = torch.minimum(r, t - 1)
    is_picture = r < 0
    with torch.no_grad():
        teacher = torch.where(is_picture[:, None, None, None], x0, answer(r.clamp(min=0)))
    gap = levels[t] - torch.where(is_picture, 0.0, levels[r.clamp(min=0)])
    distance = (answer(t) - teacher).square().mean(dim=(1, 2, 3)).clamp(min=1e-12).sqrt()
    return (distance / gap.to(distance)).mean()
