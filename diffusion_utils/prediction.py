"""What the network predicts: the noise, the picture, or a mixture of both.

Given x_t = α·x₀ + σ·ε (α = √ᾱ_t, σ = √(1-ᾱ_t), so α² + σ² = 1), each of these determines the others:

    "epsilon"       ε                 DDPM, Ho et al. 2020
    "sample"        x₀                the clean picture
    "v_prediction"  v = α·ε - σ·x₀    Salimans & Ho 2022 (2202.00512), section 4
    "edm"           F = (σ·x₀/d - α·d·ε)/n    Karras et al. 2022 (2206.00364), eq. 7
    "flow_prediction"   u = ε - x₀    Lipman et al. 2022 (2210.02747); Liu et al. 2022 (2209.03003)

They are equal on paper and very different for a network: turning an ε into an x₀ multiplies the
network's error by σ/α, which grows without bound as the noise takes over.

EDM is written there as D(x; s) = c_skip(s)·x + c_out(s)·F(c_in(s)·x) for x = x₀ + s·ε.  With
s = σ/α and x_t = α·x that is, for d = sigma_data (the pictures' own standard deviation) and
n = √(α²d² + σ²) (that of x_t):

    x̂₀ = (α·d²/n²)·x_t + (σ·d/n)·F(x_t/n)

The network's input and its target both have variance 1 at every noise level.  For d = 1 this is
-v exactly: v takes the pictures to be as strong as the noise, EDM measures how strong they are.

Flow matching is written for y = (1-τ)·x₀ + τ·ε with τ from 0 to 1.  That is x_t in another scale: with
τ = σ/(α+σ), y = x_t/(α+σ).  The network's input is y, its target u = dy/dτ, and

    x̂₀ = y - τ·u = (x_t - σ·u)/(α+σ)        ε̂ = y + (1-τ)·u = (x_t + α·u)/(α+σ)

so that u = (α+σ)·v + (σ-α)·x_t.  It works on every schedule; `schedule.flow` spaces τ evenly, as the papers do.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffusion_utils.checks import check_kind, suggestions
from diffusion_utils.schedule import Schedule

PredictionType = Literal["epsilon", "sample", "v_prediction", "edm", "flow_prediction"]
PREDICTION_TYPES = get_args(PredictionType)


def target(
    prediction_type: str, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """What the network should answer for x_t = alpha·x0 + sigma·noise.

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        x0, noise: pictures in [-1, 1] and standard normal noise, both (N, C, H, W).
        alpha, sigma: from `Schedule.alpha_sigma`, broadcastable to x0.
        sigma_data: for "edm": the root mean square of the pictures (0.5 in the paper).

    Raises:
        ValueError: unknown prediction type.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * x0
    if prediction_type == "flow_prediction":
        return noise - x0
    return (sigma / sigma_data * x0 - alpha * sigma_data * noise) / _norm(alpha, sigma, sigma_data)


def network_input(prediction_type: str, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """What the network gets as its input: x_t; for "edm" x_t/n, which has variance 1 at every noise level; for
    "flow_prediction" x_t/(α+σ), which lies on the straight line from x₀ to ε."""
    check_prediction_type(prediction_type)
    if prediction_type == "flow_prediction":
        return x_t / (alpha + sigma)
    return x_t / _norm(alpha, sigma, sigma_data) if prediction_type == "edm" else x_t


def to_sample(
    prediction_type: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """x̂₀ from the network's output: (x_t - σε̂)/α, x̂₀ itself, α·x_t - σ·v̂, EDM's sum (above) or (x_t - σû)/(α+σ).

    For "epsilon" alpha must not be 0: where no signal is left, ε says nothing about the picture.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * output
    if prediction_type == "flow_prediction":
        return (x_t - sigma * output) / (alpha + sigma)
    n = _norm(alpha, sigma, sigma_data)
    return alpha * (sigma_data / n) ** 2 * x_t + sigma * sigma_data / n * output


def to_epsilon(
    prediction_type: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """ε̂ from the network's output: ε̂ itself, (x_t - αx̂₀)/σ, σ·x_t + α·v̂, σ/n²·x_t - (α·d/n)·F or (x_t + αû)/(α+σ).

    For "sample" sigma must not be 0: where there is no noise, x₀ says nothing about it.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "sample":
        return (x_t - alpha * output) / sigma
    if prediction_type == "v_prediction":
        return sigma * x_t + alpha * output
    if prediction_type == "flow_prediction":
        return (x_t + alpha * output) / (alpha + sigma)
    n = _norm(alpha, sigma, sigma_data)
    return sigma / n**2 * x_t - alpha * sigma_data / n * output


def convert(
    output: Tensor, from_type: str, to_type: str, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """The same prediction, expressed as another type (any of the five to any other)."""
    check_prediction_type(to_type)
    if from_type == to_type:  # no detour through x₀ and ε, which would divide by α or σ for nothing
        return output
    x0 = to_sample(from_type, output, x_t, alpha, sigma, sigma_data)
    noise = to_epsilon(from_type, output, x_t, alpha, sigma, sigma_data)
    return target(to_type, x0, noise, alpha, sigma, sigma_data)


def min_snr_weight(
    prediction_type: str, snr: Tensor, gamma: float = 5.0, sigma_data: float = 0.5, floor: float = 0.0
) -> Tensor:
    """Loss weight per timestep so that no noise level dominates the gradient.

    Min-SNR-γ (Hang et al. 2023, 2303.09556, section 3.4).  Measured on x₀ the weight is
    min(SNR, γ); an error in ε is an error in x₀ times √SNR, one in v times √(SNR+1), one in EDM's F
    times √(SNR + 1/d²), one in u times √SNR + 1, hence

        "sample": min(SNR, γ)      "v_prediction": min(SNR, γ)/(SNR+1)
        "epsilon": min(SNR, γ)/SNR      "edm": min(SNR, γ)/(SNR + 1/d²)
        "flow_prediction": min(SNR, γ)/(√SNR + 1)²

    With a floor, max(floor, min(SNR, γ)) stands for min(SNR, γ): nearly clean pictures count more, as
    in Min-SNR-γ, and nearly pure noise still counts (as in max(SNR, 1), the "truncated SNR" of Salimans
    & Ho 2022, 2202.00512, section 4).

    Args:
        snr: signal-to-noise ratios ≥ 0, any shape; 0 is allowed (for ε the limit, 1, is returned).
        gamma: the cut, 5 in the paper; > 0.
        sigma_data: d, for "edm".
        floor: in [0, γ]; above 0 the weight of ε has no limit where SNR is 0.
    """
    check_prediction_type(prediction_type)
    if gamma <= 0:
        raise ValueError(f"gamma must be greater than 0, not {gamma}")
    if not 0 <= floor <= gamma:
        raise ValueError(f"floor must lie in [0, gamma], not {floor}")
    on_x0 = snr.clamp(floor, gamma)
    if prediction_type == "epsilon":
        return on_x0 / snr if floor else gamma / snr.clamp(min=gamma)
    if prediction_type == "sample":
        return on_x0
    if prediction_type == "flow_prediction":
        return on_x0 / (snr.sqrt() + 1) ** 2
    return on_x0 / (snr + (1 if prediction_type == "v_prediction" else sigma_data**-2))


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network together with what it takes to train it and to read its answer as a picture.

    Calling it gives x̂₀, whatever the network predicts; every sampler needs just that:

        x0_hat = denoiser(x_t, t)             # x_t (N, C, H, W), t int64 (N,) in [0, T-1]
        loss = denoiser.loss(x0, noise, t)    # what training lowers

    Attributes:
        net: called as net(x, t), or net(x, t, cond) where a condition is given; see `networks`.
        schedule: how much noise there is at each timestep.
        prediction_type: what the network predicts, one of `PREDICTION_TYPES`.
        sigma_data: the root mean square of the pictures; counts for "edm" only.
        autoencoder: where there is one, the "pictures" here are its latents, and it makes pictures of them.
        dtype: what the network computes in, torch.bfloat16 or torch.float16; None: as its weights are, float32.
            Pictures go in and come out in float32.

    Raises:
        ValueError: unknown prediction type, ε on a schedule that leaves nothing of the picture, or a sigma_data that
            is no number above 0.
    """

    net: nn.Module
    schedule: Schedule
    prediction_type: str
    sigma_data: float = 0.5
    autoencoder: nn.Module | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self):
        check_prediction_type(self.prediction_type)
        check_kind("sigma_data", self.sigma_data, float)
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be greater than 0, not {self.sigma_data}")
        if self.prediction_type == "epsilon" and float(self.schedule.alphas_cumprod[-1]) == 0:
            raise ValueError(
                "epsilon prediction cannot work with a zero-terminal-SNR schedule, such as flow: at the last "
                "timestep nothing of the picture is left; use 'v_prediction' or 'sample'"
            )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x̂₀ (N, C, H, W); cond (N, *net.cond_shape), for networks that take a condition."""
        if cond is not None:
            self._check_cond(cond, len(x_t))
        return self.predict(x_t, t, *self.schedule.alpha_sigma(t, like=x_t), cond)

    def predict(self, x_t: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        """As calling it, where alpha and sigma of t are known already, from `Schedule.alpha_sigma`."""
        output = self._output(x_t, t, alpha, sigma, cond)
        return to_sample(self.prediction_type, output, x_t, alpha, sigma, self.sigma_data)

    def loss(
        self, x0: Tensor, noise: Tensor, t: Tensor, cond: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """Mean squared error between the network's output for x_t and its target (DDPM eq. 14), a scalar.

        Args:
            x0: pictures (N, C, H, W) in [-1, 1];  noise: standard normal, same shape.
            t: int64 (N,) in [0, T-1].
            cond: one condition per picture, (N, *net.cond_shape).
            weight: (N,), what each picture's error is multiplied with, such as `min_snr_weight`; None: 1.
        """
        if x0.shape != noise.shape or not (weight is None or weight.shape == x0.shape[:1]):
            shapes = [tuple(x0.shape), tuple(noise.shape), None if weight is None else tuple(weight.shape)]
            raise ValueError(f"x0, noise and weight must be (N, C, H, W) twice and (N,), not {shapes}")
        alpha, sigma = self.schedule.alpha_sigma(t, like=x0)  # once, for x_t as `Schedule.add_noise` makes it
        output = self._output(alpha * x0 + sigma * noise, t, alpha, sigma, cond).float()
        error = output - target(self.prediction_type, x0, noise, alpha, sigma, self.sigma_data)
        error = error.square().mean(dim=(1, 2, 3))
        return error.mean() if weight is None else (error * weight).mean()

    def _check_cond(self, cond: Tensor, count: int) -> None:
        """Raise a ValueError for conditions that the network does not take, or words that it does not know."""
        shape, tokenizer = getattr(self.net, "cond_shape", None), getattr(self.net, "tokenizer", None)
        if shape is None:
            return
        if not isinstance(cond, Tensor) or tuple(cond.shape) != (count, *shape):
            found = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
            raise ValueError(f"the network takes a cond of shape {(count, *shape)}, not {found}")
        if cond.is_floating_point() == (tokenizer is not None):
            raise ValueError(
                f"the network takes {'words as int64' if tokenizer else 'conditions as floats'}, not {cond.dtype}"
            )
        # On a GPU the check would make the host wait for the device; looking them up still fails there.
        if tokenizer and cond.device.type == "cpu" and not 0 <= cond.min() <= cond.max() <= len(tokenizer.words):
            raise ValueError(f"words are numbers in [0, {len(tokenizer.words)}]: make them with tokenizer.encode")

    def _output(self, x_t: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        """What the network answers, by its prediction type."""
        x = network_input(self.prediction_type, x_t, alpha, sigma, self.sigma_data)
        with torch.autocast(x.device.type, self.dtype) if self.dtype else nullcontext():
            answer = self.net(x, t) if cond is None else self.net(x, t, cond)
        if answer.shape[-3:] != x_t.shape[-3:]:
            raise ValueError(
                f"the network answers {tuple(answer.shape[-3:])} to pictures of {tuple(x_t.shape[1:])}: "
                "it must answer as many numbers as it reads"
            )
        return answer if self.dtype is None else answer.float()


def _norm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Standard deviation of x_t for pictures of standard deviation `sigma_data`."""
    return (alpha**2 * sigma_data**2 + sigma**2).sqrt()


def check_prediction_type(prediction_type: str) -> None:
    """Raise a ValueError for a prediction type that there is not."""
    if prediction_type not in PREDICTION_TYPES:
        known = suggestions(prediction_type, PREDICTION_TYPES)
        raise ValueError(f"unknown prediction_type {prediction_type!r}: choose one of {known}")
