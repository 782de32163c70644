"""From the name of weights to pictures.

    pipe = pipeline.load("stanford-cars-1m")
    pictures = pipe(seeds=range(16))                                    # uint8 (16, 3, 64, 64)
    pictures = pipe(seeds=range(16), condition="pickup", steps=50)      # all pickups, in more steps
    pictures = pipeline.load("stanford-cars-text")(seeds=range(2), prompt=["a white van", "a red coupe"])

Size, conditions, autoencoder and the way of drawing that suits the weights best are read from their model
card; every option of `Drawing` can be given in its place.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import pretrained
from diffusion_utils.checks import check_kind, fits, suggestions
from diffusion_utils.data import as_float, to_uint8
from diffusion_utils.data.pictures import ratio
from diffusion_utils.guidance import Guided, chosen_by_seed, conditions, skip_layers
from diffusion_utils.networks import Autoencoder, SuperResolution
from diffusion_utils.networks.super_resolution import low_resolution_cond
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import (
    Noise,
    SamplerName,
    Step,
    TimestepSpacing,
    checked_seeds,
    sample,
    stream,
    timesteps,
    trajectory,
)
from diffusion_utils.training import arithmetic
from diffusion_utils.training.config import Precision

BATCH = 64  # pictures drawn at once
WALK = ("sampler", "steps", "eta", "timestep_spacing", "clip_sample")  # options of `Drawing` that samplers take
UNCONDITIONAL = "none"  # as a condition: none at all


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; what is left out is as the weights' model card advises."""

    # Default: what the card advises, else dpm_solver_pp; consistency is for weights that were tuned for it.
    sampler: SamplerName | None = None
    steps: int | None = None  # Of the sampler.  Default: what the card advises, else 20.
    # How far to go beyond the better guess, away from the worse one; 1: no guidance.  Default: what the card
    # advises, else 1.
    guidance_scale: float | None = None
    # Weights of a weaker network that makes the worse guess (autoguidance); "none": the network itself makes it,
    # without a condition (classifier-free guidance).
    guide: str | None = None
    # The worse guess is made by the network itself without these residual blocks or attention layers, such as
    # encoder.7 (skip-layer guidance); given without any layer: skip none.
    skip_layers: tuple[str, ...] | None = None
    # Lowest and highest timestep at which to guide, 0 999 for all.  Default: what the card advises, else all.
    interval: tuple[int, int] | None = None
    # Ask the network about a timestep so much noisier than it is, which buries its earlier mistakes.  Default: what
    # the card advises, else 0.
    time_shift: int | None = None
    # Whether the worse guess gets the condition, too.  Default: what the card advises, else yes.
    guide_conditional: bool | None = None
    # Bring contrast, which guidance exaggerates, so far back to that without guidance, 0 to 1.  Default: what the card
    # advises, else 0.
    guidance_rescale: float | None = None
    eta: float | None = None  # Fresh noise per step, 0 to 1, for the sampler ddim.  Default: 0.
    # Which of the trained timesteps are visited (Lin et al. 2023, 2305.08891, table 2).  Default: trailing.
    timestep_spacing: TimestepSpacing | None = None
    clip_sample: bool | None = None  # Clip the predicted picture to [-1, 1].  Default: yes, but for latents.

    def __post_init__(self):
        if isinstance(self.skip_layers, str):
            raise ValueError(f"skip_layers is a list of names, [{self.skip_layers!r}], not one name")
        for option in fields(self):
            if option.name != "interval":  # unknown names are refused where they are looked up
                hint = str | None if option.name in ("sampler", "timestep_spacing") else option.type
                check_kind(option.name, getattr(self, option.name), hint)
        if self.guide is not None and self.skip_layers:
            raise ValueError("guide and skip_layers both make the worse guess: choose one of them")
        if not fits(self.interval, tuple[int, int] | None) or self.interval and self.interval[0] > self.interval[1]:
            raise ValueError(f"interval is the lowest and the highest timestep, such as 100 900, not {self.interval}")
        for name in ("eta", "guidance_rescale"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
        if self.eta is not None and self.sampler not in (None, "ddim"):
            raise ValueError(f"eta belongs to the sampler ddim, not to {self.sampler}")

    def over(self, advice: "Drawing") -> "Drawing":
        """These options, and the advice where nothing is set."""
        if self.guide is not None or self.skip_layers is not None:  # another worse guess than the advice's
            advice = replace(advice, guide=None, skip_layers=None)
        if self.sampler not in (None, "ddim"):  # an advised eta belongs to an advised ddim
            advice = replace(advice, eta=None)
        mine = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(advice, **mine)

    @classmethod
    def from_card(cls, card: dict) -> "Drawing":
        """What a model card advises, and `DEFAULT` where it is silent.

        Raises:
            ValueError: the card advises something that does not exist.
        """
        advice = {name: tuple(v) if isinstance(v, list) else v for name, v in card.get("drawing", {}).items()}
        unknown = advice.keys() - {option.name for option in fields(cls)}
        if unknown:
            raise ValueError(f"the model card's drawing advice holds {', '.join(sorted(unknown))}, which is no option")
        return cls(**advice).over(DEFAULT)


OPTIONS = [option.name for option in fields(Drawing)]
AS_ADVISED = Drawing()
DEFAULT = Drawing("dpm_solver_pp", 20, 1.0, time_shift=0, guide_conditional=True)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Weights, ready to draw.

    Attributes:
        denoiser: the network, its schedule and, where it draws latents, its autoencoder.
        card: the model card, at least its size and, where there are any, its conditions or prompts.
        drawing: what the card advises, complete.
        name: of the weights, for messages.
        device: where to draw.
    """

    denoiser: Denoiser
    card: dict
    drawing: Drawing = DEFAULT
    name: str = "these weights"
    device: torch.device | str = "cpu"

    @property
    def size(self) -> int:
        """Height and width of its pictures in pixels."""
        return self.card.get("size", 64)

    @property
    def aspect(self) -> float:
        """Width over height at which its pictures are to be shown: cars at 4:3, others as their card says."""
        return ratio(self.card.get("aspect"))

    def __call__(
        self, seeds: Sequence[int], condition: str | None = None, prompt: str | Sequence[str] | None = None, **options
    ) -> Tensor:
        """One picture per seed, uint8 (N, 3, size, size), drawn a batch at a time.

        Args:
            seeds: picture i depends on seeds[i] alone.
            condition: what all pictures show, one of the card's conditions; "none": unconditional; None: each
                has one of its own, drawn by its seed as often as in training.
            prompt: the same in words, for weights that take words: one for all pictures, or one each.
            options: of `Drawing`, in place of the card's advice.

        Raises:
            ValueError: a condition that the weights do not take, guidance away from nothing, layers to
                skip that the network does not have, or weights that cannot draw from nothing.
        """
        return self._draw(seeds, *self._prepare(seeds, condition, prompt, options))

    def trajectory(
        self, seeds: Sequence[int], condition: str | None = None, prompt: str | Sequence[str] | None = None, **options
    ) -> Iterator[Step]:
        """Every step on the way (see `sampling.trajectory`), in the numbers that the sampler works on: pictures
        in [-1, 1], or latents.  Arguments and errors as for calling it."""
        denoiser, how = self._prepare(seeds, condition, prompt, options)
        yield from trajectory(denoiser, seeds, **how)

    def guided(
        self, seeds: Sequence[int], condition: str | None = None, prompt: str | Sequence[str] | None = None, **options
    ) -> Denoiser | Guided:
        """The denoiser for these pictures, with their conditions and guidance, as any sampler takes it.
        Arguments and errors as for calling it."""
        return self._prepare(seeds, condition, prompt, options)[0]

    def settled(self, condition: str | None = None, **options) -> Drawing:
        """How it draws with this condition and these options: complete, nothing is left to the card."""
        if unknown := [name for name in options if name not in OPTIONS]:
            known = suggestions(unknown[0], OPTIONS)
            raise ValueError(f"drawing has no option {unknown[0]!r}: choose one of {known}")
        asked = Drawing(**options)
        drawing = self._over_advice(asked)
        itself = drawing.guide in (None, "none") and not drawing.skip_layers
        if condition == UNCONDITIONAL and itself and asked.guidance_scale is None:
            drawing = replace(drawing, guidance_scale=1.0)  # there is no condition to go away from
        self._refuse_ignored(asked, drawing)
        return drawing

    def _over_advice(self, asked: Drawing) -> Drawing:
        """The options, and the card's advice where nothing is asked: at most as many steps as there are timesteps."""
        drawing = asked.over(self.drawing)
        most = self.denoiser.schedule.num_train_timesteps
        return drawing if asked.steps is not None else replace(drawing, steps=min(drawing.steps, most))

    def _refuse_ignored(self, asked: Drawing, drawing: Drawing) -> None:
        """Raise a ValueError for an option of guidance that would change nothing."""
        if drawing.guidance_scale == 1:
            for name in ("interval", "guide", "skip_layers", "guide_conditional", "guidance_rescale"):
                if getattr(asked, name) not in (None, "none", (), [], 0):
                    raise ValueError(f"{name} belongs to guidance: give guidance_scale, too, such as 2")
        if asked.guide_conditional is not None and drawing.guide in (None, "none") and not drawing.skip_layers:
            raise ValueError("guide_conditional is about another network's guess: give guide or skip_layers, too")
        visited = self._visited(drawing)
        if asked.interval is not None:
            if not any(asked.interval[0] <= t <= asked.interval[1] for t in visited):
                raise ValueError(
                    f"interval {asked.interval[0]} {asked.interval[1]} holds none of the timesteps that are visited, "
                    f"{visited[0]} … {visited[-1]}: nothing would be guided"
                )

    def _visited(self, drawing: Drawing) -> list[int]:
        """The timesteps of a walk."""
        spacing = drawing.timestep_spacing or "trailing"
        return timesteps(self.denoiser.schedule.num_train_timesteps, drawing.steps, spacing)

    def enlarge(self, images: Tensor, seeds: Sequence[int], noise_level: int = 100, **options) -> Tensor:
        """The last stage of a cascade: pictures drawn anew, larger, by a network for super-resolution.

        Args:
            images: uint8 (N, 3, h, w), or float in [-1, 1].
            seeds: one per picture; of the noise that each starts from, and of that put on the small one.
            noise_level: timestep whose noise is put on the small pictures first (conditioning augmentation):
                0 believes them to the last pixel, more lets the network mend what the first stage got wrong.
            options: of `Drawing`, those of the walk (`WALK`).

        Returns:
            uint8 (N, 3, scale·h, scale·w).

        Raises:
            ValueError: a noise level beyond what the network was trained with, weights of another kind, or
                options of guidance.
        """
        if other := options.keys() - {*WALK}:
            raise ValueError(f"enlarging takes {', '.join(WALK)}, not {', '.join(sorted(other))}")
        self.check_enlarging(noise_level)
        seeds = checked_seeds(seeds)
        small = as_float(images)
        if small.shape[1] != 3:
            raise ValueError(f"expected pictures of shape (N, 3, h, w), not {tuple(small.shape)}")
        if len(small) != len(seeds):
            raise ValueError(f"{len(seeds)} seeds for {len(small)} pictures: give one each")
        noise = Noise([stream(seed, 2) for seed in seeds], small.shape[1:])()  # another stream than the pictures' own
        cond = low_resolution_cond(small, self.denoiser.schedule, torch.full((len(small),), noise_level), noise)
        shape = (3, *(self.denoiser.net.scale * side for side in small.shape[2:]))
        how = self._sampling(self._over_advice(Drawing(**options)), shape)
        return self._draw(seeds, Guided(self.denoiser, cond.to(self.device)), how)

    def check_enlarging(self, noise_level: int) -> None:
        """Raise a ValueError if `enlarge` could not do it."""
        net = self.denoiser.net
        if not isinstance(net, SuperResolution):
            raise ValueError(f"{self.name} cannot enlarge pictures: train some with --condition low_resolution")
        check_kind("noise_level", noise_level, int)
        if not 0 <= noise_level < net.max_noise:
            raise ValueError(f"noise_level must lie in [0, {net.max_noise - 1}], not {noise_level}")

    def _draw(self, seeds: Sequence[int], denoiser: Denoiser | Guided, how: dict) -> Tensor:
        seeds = checked_seeds(seeds)
        drawn, autoencoder = [], self.denoiser.autoencoder
        for i in tqdm(range(0, len(seeds), BATCH), desc="drawing", leave=False, disable=len(seeds) <= BATCH):
            which = slice(i, i + BATCH)
            part = denoiser.part(which) if isinstance(denoiser, Guided) else denoiser
            pictures = sample(part, seeds[which], **how)
            drawn.append(to_uint8(pictures if autoencoder is None else autoencoder.from_latents(pictures)).cpu())
        return torch.cat(drawn).contiguous()

    def _prepare(
        self, seeds: Sequence[int], condition: str | None, prompt: str | Sequence[str] | None, options: dict
    ) -> tuple[Denoiser | Guided, dict]:
        """The denoiser for these pictures, and the arguments for `sampling.trajectory`."""
        if isinstance(self.denoiser.net, Autoencoder | SuperResolution):
            raise ValueError(f"{self.name} cannot draw from nothing: an autoencoder, or a network that enlarges")
        seeds = checked_seeds(seeds)
        cond, guide, drawing = self._cond(seeds, condition, prompt), None, self.settled(condition, **options)
        if drawing.skip_layers:
            guide = skip_layers(self.denoiser, drawing.skip_layers)
        elif drawing.guide not in (None, "none"):
            guide = self._guide(drawing, cond is not None)
        how, scale, shift = self._sampling(drawing), drawing.guidance_scale, drawing.time_shift
        if cond is None and guide is None and scale == 1 and not shift:
            return self.denoiser, how
        cond = None if cond is None else cond.to(self.device)
        more = drawing.interval, shift, drawing.guide_conditional, drawing.guidance_rescale or 0.0
        return Guided(self.denoiser, cond, guide, scale, *more), how

    def _guide(self, drawing: Drawing, conditional: bool) -> Denoiser:
        """The weaker network, which must draw what this one draws."""
        guide = load(drawing.guide, self.device)
        if isinstance(guide.denoiser.net, Autoencoder | SuperResolution) or guide.size != self.size:
            raise ValueError(f"the guide {guide.name} draws no pictures of {self.size}×{self.size}: choose another")
        if conditional and drawing.guide_conditional and guide._known != self._known:
            raise ValueError(
                f"the guide {guide.name} takes other conditions than {self.name}: choose another, "
                "or set guide_conditional to False"
            )
        return replace(guide.denoiser, dtype=self.denoiser.dtype)

    @property
    def _known(self) -> list[str]:
        """The conditions, or the words, that the network knows, in their order."""
        return list(self.card.get("conditions") or self.card.get("network", {}).get("words") or ())

    def _cond(self, seeds: Sequence[int], condition: str | None, prompt: str | Sequence[str] | None) -> Tensor | None:
        """The pictures' conditions as the network takes them, or None."""
        shares, prompts = self.card.get("conditions"), self.card.get("prompts")
        if prompt is not None and prompts is None:
            raise ValueError(f"{self.name} takes no prompt: leave it out")
        check_kind("condition", condition, str | None)
        if condition not in (None, UNCONDITIONAL) and shares is None:
            raise ValueError(f"{self.name} takes no condition: {'say it as a prompt' if prompts else 'leave it out'}")
        if prompt is not None and condition is not None:
            raise ValueError("give a condition or a prompt, not both")
        if condition == UNCONDITIONAL or shares is None and prompts is None:
            return None
        if shares is not None:
            return conditions(shares, seeds, condition)
        tokenizer = self.denoiser.net.tokenizer
        if prompt is None:
            return tokenizer.encode([prompts[i] for i in chosen_by_seed([1.0] * len(prompts), seeds).tolist()])
        check_kind("prompt", prompt, str | Sequence[str])
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if len(texts) not in (1, len(seeds)):
            how = "give one for all, or one each, in quotation marks"
            raise ValueError(f"{len(texts)} prompts for {len(seeds)} pictures: {how}")
        remarks = [f"{text!r}: {remark}" for text in dict.fromkeys(texts) if (remark := tokenizer.remark(text))]
        if remarks:
            more = f" … ({len(remarks)} prompts in all)" if len(remarks) > 3 else ""
            warnings.warn(" ".join(remarks[:3]) + more, stacklevel=4)
        return tokenizer.encode(texts * (len(seeds) // len(texts)))

    def _sampling(self, drawing: Drawing, shape: tuple[int, ...] | None = None) -> dict:
        """Arguments for `sampling.trajectory`."""
        autoencoder, size = self.denoiser.autoencoder, self.size
        if shape is None:
            shape = (3, size, size) if autoencoder is None else autoencoder.latent_shape(size, size)
        # Latents have no bounds.
        how = {"shape": shape, "device": self.device, "clip_sample": autoencoder is None}
        return how | {name: getattr(drawing, name) for name in WALK if getattr(drawing, name) is not None}


def load(weights: str, device: torch.device | str = "cpu", mixed_precision: Precision = "no") -> Pipeline:
    """Weights, ready to draw as their card advises.

    Args:
        weights: one of `pretrained.names()`, or the path of a .safetensors file with its card beside it.
        mixed_precision: "no": float32, in which the same seed draws the same picture on every machine, but for
            rounding.  "bf16", "fp16" or, for the better one of a device that gains by it, "auto": half precision,
            which is faster, and in which details of a picture differ.

    Raises:
        FileNotFoundError: no such weights; names those that are most like it.
        ValueError: weights or card are damaged, or a precision that there is not.
    """
    check_kind("mixed_precision", mixed_precision, Precision)
    card = pretrained.card(weights)
    if "size" not in card:
        raise ValueError(f"the model card of {weights} lacks size, the height and width of its pictures: add it")
    try:
        advice = Drawing.from_card(card)
    except ValueError as error:
        raise ValueError(f"the model card of {weights} advises a drawing that does not exist: {error}") from None
    denoiser = pretrained.load(weights, device, card)
    precision = arithmetic.precision_on(torch.device(device), mixed_precision)
    denoiser = replace(denoiser, dtype=arithmetic.DTYPES.get(precision))
    for net in filter(None, (denoiser.net, denoiser.autoencoder)):
        net.to(memory_format=torch.channels_last)  # as convolutions compute, which need not rearrange numbers then
    return Pipeline(denoiser, card, advice, str(weights), device)
