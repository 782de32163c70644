"""Weights, and how to draw with them: what the commands `sample` and `evaluate` have in common.

A model card may say how its weights draw best, under "drawing": sampler, steps, and the guidance
("guidance_scale", "guide" or "skip_layers", "guide_described", "interval") and "time_shift".  The command line has the
last word.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import pretrained
from diffusion_utils.data import to_float, to_uint8
from diffusion_utils.guidance import Guided, chosen_by_seed, conditions, skip_layers
from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.networks.super_resolution import SuperResolution, low_resolution_cond
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import SAMPLERS, Noise, sample

BATCH = 64
DEFAULTS = {
    "sampler": "dpm_solver_pp",
    "steps": 20,
    "guidance_scale": 1.0,
    "guide": None,
    "skip_layers": None,
    "interval": None,
    "time_shift": 0,
    "guide_described": True,
}


def add_arguments(parser: argparse.ArgumentParser, weights: bool = True) -> None:
    """--weights (unless False), --seed, --device and all that decides what a seed becomes."""
    add = parser.add_argument
    if weights:
        shipped = ", ".join(pretrained.names()) or "none shipped"
        add("--weights", required=True, help=f"a name ({shipped}) or the path of a .safetensors file")
    add("--seed", type=int, default=0, help="of the first picture; the next has the next seed")
    add("--sampler", choices=SAMPLERS, help="default: what the model card advises, else dpm_solver_pp")
    add("--steps", type=int, help="default: what the model card advises, else 20")
    add(
        "--condition",
        "--prompt",
        help="what the pictures shall show: one of the conditions that the weights "
        "know (pickup), or words (a red pickup); none: whatever the network makes of not being told; default: "
        "each something of its own, as often as in training",
    )
    add("--guidance-scale", type=float, help="1: no guidance; default: what the model card advises, else 1")
    add(
        "--guide",
        help="weights of a weaker network to be guided by (autoguidance); none: by the network "
        "itself without the condition (classifier-free guidance)",
    )
    add(
        "--skip-layers",
        nargs="+",
        metavar="LAYER",
        help="be guided by the network itself without these residual "
        "blocks or attention layers, e.g. encoder.7 (skip-layer guidance); none: do not skip any",
    )
    add(
        "--interval",
        type=int,
        nargs=2,
        metavar=("LOWEST", "HIGHEST"),
        help="timesteps at which to guide, 0 999 for all; default: what the card advises, else all",
    )
    add(
        "--time-shift",
        type=int,
        help="ask the network about a timestep so much noisier than it is, which buries "
        "its earlier mistakes; default: what the card advises, else 0",
    )
    add(
        "--guide-described",
        action=argparse.BooleanOptionalAction,
        help="whether the worse guess is told the condition, too; default: what the card advises, else yes",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def advice(weights: str, condition: str | None = None) -> dict:
    """How weights are best drawn with, by their card, else by `DEFAULTS`: sampler, steps, guidance.

    For the condition "none" without classifier-free guidance: there is nothing to be told then.
    """
    how = {**DEFAULTS, **pretrained.card(weights).get("drawing", {})}
    if condition == "none" and not how["guide"] and not how["skip_layers"]:
        how["guidance_scale"] = 1.0
    return how


def settings(args: argparse.Namespace) -> dict:
    """What the command line asks for, and the card's advice where it asks for nothing.

    Raises:
        ValueError: both a guide and layers to skip: there can be one worse guess.
    """
    asked = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    if asked.get("guide") == "none":
        asked["guide"] = None
    if asked.get("skip_layers") == ["none"]:
        asked["skip_layers"] = None
    if asked.get("guide") and asked.get("skip_layers"):
        raise ValueError("--guide and --skip-layers both make the worse guess: choose one of them")
    chosen = advice(args.weights, args.condition)
    if "guide" in asked or "skip_layers" in asked:  # another worse guess than the card's
        chosen |= {"guide": None, "skip_layers": None}
    return {**chosen, **asked}


def load(
    weights: str,
    seeds: Sequence[int],
    condition: str | None = None,
    how: dict | None = None,
    device: torch.device | str = "cpu",
) -> Denoiser | Guided:
    """A denoiser that is guided as `how` says, and told what each picture shall show.

    Args:
        weights: a name or a path, as for `pretrained.load`.
        seeds: of the pictures; without a condition they decide what each shows.
        condition: what all pictures shall show, for a `TextToImage` in words; "none": the network is
            told nothing.
        how: from `settings`; default: `advice`.

    Raises:
        ValueError: a condition for weights that take none, guidance away from nothing, or layers to
            skip that the network does not have.
        FileNotFoundError: no such weights.
    """
    denoiser = pretrained.load(weights, device)
    if isinstance(denoiser.net, Autoencoder | SuperResolution):
        raise ValueError(f"{weights} cannot draw from nothing: an autoencoder, or a network that enlarges (--enlarge)")
    how = how or advice(weights, condition)
    card, cond = pretrained.card(weights), None
    shares, prompts = card.get("conditions"), card.get("prompts")
    if shares is None and prompts is None and condition not in (None, "none"):
        raise ValueError(f"{weights} takes no condition: leave --condition out")
    if shares is not None and condition != "none":
        cond = conditions(shares, seeds, condition).to(device)
    if prompts is not None and condition != "none":
        chosen = chosen_by_seed([1.0] * len(prompts), seeds).tolist()
        texts = [prompts[i] for i in chosen] if condition is None else [condition] * len(seeds)
        cond = denoiser.net.tokenizer.encode(texts).to(device)
    guide = pretrained.load(how["guide"], device) if how["guide"] else None
    if how["skip_layers"]:
        guide = skip_layers(denoiser, how["skip_layers"])
    if cond is None and guide is None and how["guidance_scale"] == 1 and not how["time_shift"]:
        return denoiser
    interval = how["interval"] and tuple(how["interval"])
    return Guided(denoiser, cond, guide, how["guidance_scale"], interval, how["time_shift"], how["guide_described"])


def draw(
    denoiser: Denoiser | Guided,
    seeds: Sequence[int],
    size: int,
    sampler: str,
    steps: int,
    device: torch.device | str = "cpu",
    **options,
) -> Tensor:
    """One uint8 picture per seed, (N, 3, size, size), drawn a batch at a time; options go to `sample`.

    Where the denoiser draws latents, its autoencoder makes pictures of them.
    """
    autoencoder, shape, drawn = getattr(denoiser, "autoencoder", None), (3, size, size), []
    if autoencoder is not None:
        shape, options = autoencoder.latent_shape(size, size), {**options, "clamp": False}
    for i in tqdm(range(0, len(seeds), BATCH), desc="drawing", leave=False, disable=len(seeds) <= BATCH):
        part = denoiser.part(slice(i, i + BATCH)) if isinstance(denoiser, Guided) else denoiser
        pictures = sample(part, seeds[i : i + BATCH], shape, sampler, steps, device, **options)
        if autoencoder is not None:
            pictures = autoencoder.from_latents(pictures)
        drawn.append(to_uint8(pictures).cpu())
    return torch.cat(drawn)


def check_enlarging(denoiser: Denoiser, noise_level: int) -> None:
    """Raise a ValueError if `enlarge` could not do it."""
    net = denoiser.net
    if not isinstance(net, SuperResolution):
        raise ValueError("these weights cannot enlarge pictures: train some with --condition low_resolution")
    if not 0 <= noise_level < net.max_noise:
        raise ValueError(f"noise_level must lie in [0, {net.max_noise - 1}], not {noise_level}")


def enlarge(
    denoiser: Denoiser,
    small: Tensor,
    seeds: Sequence[int],
    noise_level: int = 100,
    sampler: str = "dpm_solver_pp",
    steps: int = 20,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The last stage of a cascade: pictures drawn anew, larger, by a `SuperResolution` network.

    Args:
        denoiser: of such a network.
        small: uint8 (N, 3, h, w), or float in [-1, 1].
        seeds: one per picture; of the noise that each starts from, and of that put on the small one.
        noise_level: timestep whose noise is put on the small pictures first (conditioning augmentation):
            0 believes them to the last pixel, more lets the network mend what the first stage got wrong.

    Returns:
        uint8 (N, 3, scale·h, scale·w).

    Raises:
        ValueError: a noise level beyond what the network was trained with, or a denoiser of another kind.
    """
    check_enlarging(denoiser, noise_level)
    net = denoiser.net
    small = to_float(small) if small.dtype == torch.uint8 else small.float()
    # Another stream than the pictures' own; torch reads only 32 bits of a seed.
    noise = Noise([(int(seed) * 0x9E3779B1 + 2) % 2**32 for seed in seeds], small.shape[1:])()
    cond = low_resolution_cond(small, denoiser.schedule, torch.full((len(small),), noise_level), noise)
    return draw(Guided(denoiser, cond.to(device)), seeds, net.scale * small.shape[-1], sampler, steps, device)
