"""Weights, and how to draw with them: what the commands `sample` and `evaluate` have in common.

A model card may say how its weights draw best, under "drawing": sampler, steps, and the guidance
("guidance_scale", "guide" or "skip_layers", "interval") and "time_shift".  The command line has the
last word.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import pretrained
from diffusion_utils.data import to_uint8
from diffusion_utils.guidance import Guided, conditions, skip_layers
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import SAMPLERS, sample

BATCH = 64
DEFAULTS = {
    "sampler": "dpm_solver_pp", "steps": 20, "guidance_scale": 1.0, "guide": None, "skip_layers": None,
    "interval": None, "time_shift": 0,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, weights: bool = True) -> None:
    """--weights (unless False), --seed, --device and all that decides what a seed becomes."""
    add = parser.add_argument
    if weights:
        shipped = ", ".join(pretrained.names()) or "none shipped"
        add("--weights", required=True, help=f"a name ({shipped}) or the path of a .safetensors file")
    add("--seed", type=int, default=0, help="of the first picture; the next has the next seed")
    add("--sampler", choices=SAMPLERS, help="default: what the model card advises, else dpm_solver_pp")
    add("--steps", type=int, help="default: what the model card advises, else 20")
    add("--condition", help="what the pictures shall show, e.g. pickup; none: whatever the network makes of "
        "not being told; default: each something of its own, as often as in training")  # fmt: skip
    add("--guidance-scale", type=float, help="1: no guidance; default: what the model card advises, else 1")
    add("--guide", help="weights of a weaker network to be guided by (autoguidance); none: by the network "
        "itself without the condition (classifier-free guidance)")  # fmt: skip
    add("--skip-layers", nargs="+", metavar="LAYER", help="be guided by the network itself without these residual "
        "blocks or attention layers, e.g. encoder.7 (skip-layer guidance); none: do not skip any")  # fmt: skip
    add("--interval", type=int, nargs=2, metavar=("LOWEST", "HIGHEST"),
        help="timesteps at which to guide, 0 999 for all; default: what the card advises, else all")  # fmt: skip
    add("--time-shift", type=int, help="ask the network about a timestep so much noisier than it is, which buries "
        "its earlier mistakes; default: what the card advises, else 0")  # fmt: skip
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def advice(weights: str) -> dict:
    """How weights are best drawn with, by their card, else by `DEFAULTS`: sampler, steps, guidance."""
    return {**DEFAULTS, **pretrained.card(weights).get("drawing", {})}


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
    chosen = advice(args.weights)
    if "guide" in asked or "skip_layers" in asked:  # another worse guess than the card's
        chosen |= {"guide": None, "skip_layers": None}
    return {**chosen, **asked}


def load(
    weights: str, seeds: Sequence[int], condition: str | None = None, how: dict | None = None,
    device: torch.device | str = "cpu",
) -> Denoiser | Guided:  # fmt: skip
    """A denoiser that is guided as `how` says, and told what each picture shall show.

    Args:
        weights: a name or a path, as for `pretrained.load`.
        seeds: of the pictures; without a condition they decide what each shows.
        condition: what all pictures shall show; "none": the network is told nothing.
        how: from `settings`; default: `advice`.

    Raises:
        ValueError: a condition for weights that take none, guidance away from nothing, or layers to
            skip that the network does not have.
        FileNotFoundError: no such weights.
    """
    denoiser, how = pretrained.load(weights, device), how or advice(weights)
    shares, cond = pretrained.card(weights).get("conditions"), None
    if shares is None and condition not in (None, "none"):
        raise ValueError(f"{weights} takes no condition: leave --condition out")
    if shares is not None and condition != "none":
        cond = conditions(shares, seeds, condition).to(device)
    guide = pretrained.load(how["guide"], device) if how["guide"] else None
    if how["skip_layers"]:
        guide = skip_layers(denoiser, how["skip_layers"])
    if cond is None and guide is None and how["guidance_scale"] == 1 and not how["time_shift"]:
        return denoiser
    interval = how["interval"] and tuple(how["interval"])
    return Guided(denoiser, cond, guide, how["guidance_scale"], interval, how["time_shift"])


def draw(
    denoiser: Denoiser | Guided, seeds: Sequence[int], size: int, sampler: str, steps: int,
    device: torch.device | str = "cpu", **options,
) -> Tensor:  # fmt: skip
    """One uint8 picture per seed, (N, 3, size, size), drawn a batch at a time; options go to `sample`."""
    drawn = []
    for i in tqdm(range(0, len(seeds), BATCH), desc="drawing", leave=False, disable=len(seeds) <= BATCH):
        part = denoiser.part(slice(i, i + BATCH)) if isinstance(denoiser, Guided) else denoiser
        pictures = sample(part, seeds[i : i + BATCH], (3, size, size), sampler, steps, device, **options)
        drawn.append(to_uint8(pictures).cpu())
    return torch.cat(drawn)
