"""Guidance: follow a good guess, and walk away from a worse one.

Every kind of guidance takes two guesses of the same picture and goes beyond the better one, away
from the worse:

    x̂₀ = worse + w·(better - worse)        w = 1: the better guess alone

What the worse guess lacks is what sets the better one apart, so w > 1 draws clearer pictures, often of
less variety.  Where the two come from makes the kind:

    classifier-free guidance   conditional and unconditional      Ho & Salimans 2022 (2207.12598), eq. 6
    autoguidance               the network and a smaller or less trained one, with the same
                               condition   Karras et al. 2024 (2406.02507), eq. 2
    skip-layer guidance        the network and itself without some of its layers, with the same
                               condition   Hyung et al. 2024 (2411.18664)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.checks import suggestions
from diffusion_utils.networks import Both, without
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import checked_seeds, stream
from diffusion_utils.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Guided:
    """A denoiser with a condition, or with guidance, or both; any sampler takes it in place of the denoiser.

        Guided(denoiser, cond)                                  conditional, not guided
        Guided(denoiser, cond, guidance_scale=2)                classifier-free guidance
        Guided(denoiser, guide=weaker, guidance_scale=2)        autoguidance, unconditional
        Guided(denoiser, cond, weaker, guidance_scale=2)        autoguidance, both conditional

    For skip-layer guidance `weaker` is `skip_layers(denoiser, ["encoder.7"])`; where both get the same
    condition, what comes before the first of these layers is computed once.

    Attributes:
        denoiser: gives the better guess.
        cond: (N, *net.cond_shape), the condition of each of the N pictures; None: unconditional.
        guide: gives the worse guess; None: the denoiser itself, unconditional.
        guidance_scale: w above; 1 asks the denoiser alone, and costs half.
        interval: (lowest, highest) timestep at which to guide; outside it the better guess is taken
            as it is, which costs less and keeps variety (Kynkäänniemi et al. 2024, 2404.07724).
            None: at all.
        time_shift: ask about a timestep so much later (noisier) than the sampler says.  A picture that
            is being drawn holds the network's own mistakes besides the noise that belongs to its
            timestep; asked about more noise, the network removes them, too.  0: as the sampler says; too
            much blurs (Li et al. 2024, 2305.15583, who search for the right shift at every step).
        guide_conditional: whether the guide gets cond, too.  If not, it is worse in two ways, and
            guidance goes away from both: from the mistakes of a weaker network, and from pictures that
            show something else.
        guidance_rescale: guidance exaggerates contrast; bring this share of the way, 0 to 1, each picture's deviation
            back to that of its better guess (Lin et al. 2023, 2305.08891, eq. 15 and 16).

    Raises:
        ValueError: a scale other than 1 with neither a cond nor a guide: there is no worse guess; or a
            guide with another noise schedule, which would be asked about another noise level, or that takes
            other conditions; an interval or a time shift beyond the timesteps, a share outside [0, 1].
    """

    denoiser: Denoiser
    cond: Tensor | None = None
    guide: Denoiser | None = None
    guidance_scale: float = 1.0
    interval: tuple[int, int] | None = None
    time_shift: int = 0
    guide_conditional: bool = True
    guidance_rescale: float = 0.0

    def __post_init__(self):
        T = self.schedule.num_train_timesteps
        if self.guidance_scale != 1 and self.cond is None and self.guide is None:
            raise ValueError(
                f"guidance_scale {self.guidance_scale} needs a worse guess to walk away from: give a condition "
                "(classifier-free guidance), a guide (autoguidance) or layers to skip"
            )
        if not abs(self.guidance_scale) < math.inf:
            raise ValueError(f"guidance_scale must be a finite number, not {self.guidance_scale}")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale must lie in [0, 1], not {self.guidance_rescale}")
        if self.interval and not 0 <= self.interval[0] <= self.interval[1] < T:
            raise ValueError(f"interval must hold timesteps of 0 … {T - 1}, the lowest first, not {self.interval}")
        if not abs(self.time_shift) < T:
            raise ValueError(f"time_shift must lie in [{1 - T}, {T - 1}], not {self.time_shift}")
        if self.guide is None:
            return
        mine, theirs = self.schedule.alphas_cumprod, self.guide.schedule.alphas_cumprod
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs):
            raise ValueError("the guide was trained with another noise schedule: choose one with the same")
        if not _same(self.autoencoder, self.guide.autoencoder):
            raise ValueError("the guide draws pixels, or another autoencoder's latents: choose one that draws the same")
        mine, theirs = (getattr(d.net, "cond_shape", None) for d in (self.denoiser, self.guide))
        if self.cond is not None and self.guide_conditional and mine != theirs:
            raise ValueError("the guide takes other conditions: choose another, or set guide_conditional to False")

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def autoencoder(self) -> nn.Module | None:
        return self.denoiser.autoencoder

    def part(self, which: slice) -> "Guided":
        """The same for some of the pictures."""
        return self if self.cond is None else replace(self, cond=self.cond[which])

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₀ (N, C, H, W) for x_t (N, C, H, W) and t int64 (N,), the same for all."""
        guided = self.guidance_scale != 1 and self._within(t)
        t = (t + self.time_shift).clamp(0, self.schedule.num_train_timesteps - 1)
        if not guided:
            return self.denoiser(x_t, t, self.cond)
        if self.guide is None:  # one network, two questions: asked at once, as one batch of 2N
            cond = torch.cat([self.cond, torch.zeros_like(self.cond)])
            better, worse = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), cond).chunk(2)
        elif self.both:
            better, worse = self.both(x_t, t, self.cond)
        else:
            better = self.denoiser(x_t, t, self.cond)
            worse = self.guide(x_t, t, self.cond if self.guide_conditional else None)
        x0 = worse + self.guidance_scale * (better - worse)
        if not self.guidance_rescale:
            return x0
        before, after = (guess.std((1, 2, 3), keepdim=True) for guess in (better, x0))
        return x0 * (1 + self.guidance_rescale * (before / after.clamp(min=1e-6) - 1))

    @cached_property
    def both(self) -> Denoiser | None:
        """Both guesses at once, (2, N, C, H, W), where the guide is the denoiser `without` some layers and gets the
        same condition: what comes before those layers is computed once."""
        if self.guide is None:
            return None
        mine, theirs = self.denoiser.net, self.guide.net
        weights = [[*map(id, net.parameters())] for net in (mine, theirs)]
        asked = [(type(d.net), d.prediction_type, d.sigma_data) for d in (self.denoiser, self.guide)]
        same = weights[0] == weights[1] and asked[0] == asked[1] and (self.cond is None or self.guide_conditional)
        return replace(self.denoiser, net=Both(mine, theirs)) if same and hasattr(type(mine), "both") else None

    def _within(self, t: Tensor) -> bool:
        """Whether to guide at t; reading t makes a GPU wait, so only where there is an interval."""
        return self.interval is None or self.interval[0] <= int(t[0]) <= self.interval[1]


def _same(first: nn.Module | None, second: nn.Module | None) -> bool:
    """Whether two autoencoders, or none, are one and the same."""
    if first is second or first is None or second is None:
        return first is second
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def skip_layers(denoiser: Denoiser, layers: Sequence[str]) -> Denoiser:
    """The same denoiser, its network without some residual blocks, attention layers or transformer blocks: a guide that
    makes the same kind of mistakes, and more of them, and needs no weights of its own.

    Args:
        layers: names of modules, such as "encoder.7".

    Raises:
        ValueError: the network has no such layer.
    """
    return replace(denoiser, net=without(denoiser.net, layers))


def conditions(shares: Mapping[str, float], seeds: Sequence[int], name: str | None = None) -> Tensor:
    """One-hot conditions (N, len(shares)), float32, for pictures that are to be drawn.

    Args:
        shares: every condition's name and its share of the training pictures, as on a model card.
        seeds: of the pictures.
        name: the condition of all of them; None: each has one of its own, drawn from the shares by
            its seed, so that many pictures show what the training pictures show, and as often.

    Raises:
        ValueError: `name` is not among the names.
    """
    names = list(shares)
    if name is not None and name not in names:
        raise ValueError(f"the network knows no condition {name!r}: choose one of {suggestions(name, names)}")
    chosen = chosen_by_seed([*shares.values()], seeds) if name is None else torch.full((len(seeds),), names.index(name))
    return F.one_hot(chosen, len(names)).float()


def chosen_by_seed(weights: Sequence[float], seeds: Sequence[int]) -> Tensor:
    """One of several things for each seed, int64 (N,), drawn with probabilities proportional to `weights`."""
    # The picture's own seed drives its noise; another stream decides what it shows.
    generators = [torch.Generator().manual_seed(stream(seed, 1)) for seed in checked_seeds(seeds)]
    return torch.cat(
        [torch.multinomial(torch.tensor(weights, dtype=torch.float32), 1, generator=g) for g in generators]
    )
