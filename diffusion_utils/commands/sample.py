"""Draw pictures from trained weights."""

import time
from pathlib import Path
from typing import Annotated

import torch
import tyro

from diffusion_utils import pipeline, pretrained
from diffusion_utils.checks import check_file
from diffusion_utils.pipeline import AS_ADVISED, Drawing
from diffusion_utils.plotting import picture_format, save_grid
from diffusion_utils.training.config import Precision

Weights = Annotated[
    str, tyro.conf.arg(help=f"One of {', '.join(pretrained.names())}; or the path of a .safetensors file.")
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sample(
    weights: Weights,
    out: Path,
    drawing: Drawing = AS_ADVISED,
    condition: str | None = None,
    prompt: tuple[str, ...] | None = None,
    seed: int = 0,
    count: int = 64,
    columns: int = 8,
    enlarge: str | None = None,
    noise_level: int | None = None,
    device: str = DEVICE,
    mixed_precision: Precision = "no",
) -> None:
    """Draw pictures from trained weights.

    Picture i of the grid depends on --seed + i alone: nothing is picked, and the same command draws the
    same grid.

    Args:
        weights: A shipped name, or the path of a .safetensors file.
        out: The picture to write: .png, .jpg, .webp, .gif or .tif.
        drawing: How to draw; what is left out is as the weights' model card advises.
        condition: What the pictures show, one of the conditions that the weights know, such as pickup; "none":
            unconditional; default: each has one of its own, as often as in training.
        prompt: The same in words, for weights that take words: one prompt for all pictures, or one each.
        seed: Of the first picture; the next has the next seed.
        count: How many pictures.
        columns: Pictures in a row of the grid.
        enlarge: Weights of a network for super-resolution, which draws the pictures again, larger.
        noise_level: With --enlarge, the timestep whose noise is put on the small pictures first, 0 to 499;
            default: 100.
        device: Where to draw, such as cpu or cuda.
        mixed_precision: bf16, fp16 or auto (the better one, where the device gains by it) draw faster, with other
            details; no, float32, draws the same pictures on every machine, but for rounding.
    """
    if count < 1 or columns < 1:
        raise ValueError("--count and --columns must be at least 1")
    if noise_level is not None and enlarge is None:
        raise ValueError("--noise-level is about enlarging: give --enlarge, too, or leave it out")
    check_file(out)
    picture_format(out)
    seeds, options = range(seed, seed + count), vars(drawing)
    pipe = pipeline.load(weights, device, mixed_precision)
    larger = None if enlarge is None else pipeline.load(enlarge, device, mixed_precision)
    if larger:
        noise_level = 100 if noise_level is None else noise_level
        larger.check_enlarging(noise_level)
    how = pipe.settled(condition, **options)
    started = time.perf_counter()
    pictures = pipe(seeds, condition, prompt, **options)
    if larger:
        pictures = larger.enlarge(pictures, seeds, noise_level)
    seconds = time.perf_counter() - started
    save_grid(pictures, out, columns, pipe.aspect)
    each = f", one for each of {len(prompt)} prompts," if prompt and len(prompt) > 1 else ""
    print(f"{count} pictures{each} in {seconds:.1f} s ({how.steps} steps of {how.sampler}): {out}")
