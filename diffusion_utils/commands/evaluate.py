"""Compare pictures drawn from trained weights with real ones."""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from diffusion_utils import pipeline, pretrained
from diffusion_utils.checks import check_file
from diffusion_utils.commands.sample import DEVICE, Weights
from diffusion_utils.data import sets
from diffusion_utils.evaluation import Reference, features
from diffusion_utils.files import write_json
from diffusion_utils.networks import count_parameters
from diffusion_utils.pipeline import AS_ADVISED, Drawing
from diffusion_utils.training.config import Precision

LEAST = 4  # precision and recall look at the third nearest other picture


def evaluate(
    weights: Weights,
    data: str,
    drawing: Drawing = AS_ADVISED,
    condition: str | None = None,
    prompt: tuple[str, ...] | None = None,
    seed: int = 0,
    count: int = 1024,
    part: sets.Part = "test",
    extractor: features.ExtractorName = features.DEFAULT,
    out: Path | None = None,
    device: str = DEVICE,
    mixed_precision: Precision = "no",
) -> None:
    """Draw pictures from trained weights and compare them with real ones.

    Beside every figure stands its floor, what as many real pictures score.  The features of the real
    pictures take minutes the first time and are then kept in the cache folder.

    Args:
        weights: A shipped name, or the path of a .safetensors file.
        data: What it was trained on: toy_cars, letters, stanford_cars, or a folder of pictures.
        drawing: How to draw; what is left out is as the weights' model card advises.
        condition: As for `sample`.
        prompt: As for `sample`.
        seed: Of the first picture; the next has the next seed.
        count: How many pictures to draw, at least 4; twice as many as are held out, or more, are compared in groups
            of as many, which also says how far one group is from another.
        part: Which held-out pictures to compare with: those of "validation" to choose a way of drawing by, those of
            "test" to report what was chosen.
        extractor: The network whose features are compared.
        out: A JSON file for the result.
        device: Where to draw, such as cpu or cuda.
        mixed_precision: Of the drawing, as for `sample`.
    """
    if count < LEAST:
        raise ValueError(f"--count must be at least {LEAST}")
    if out is not None:
        check_file(out)
        if out.suffix.lower() != ".json":
            raise ValueError(f"--out {out}: the result is written as JSON, so let its name end in .json")
    # What can go wrong goes wrong here, before the minutes of drawing.
    seeds, options = range(seed, seed + count), vars(drawing)
    pipe = pipeline.load(weights, device, mixed_precision)
    pipe.guided(seeds, condition, prompt, **options)
    how = pipe.settled(condition, **options)
    features.extractor(extractor).to(device)
    pictures = sets.load_like(pipe.card, data)
    real = pictures.part(part)
    if len(real) < LEAST or torch.equal(pictures.images, pictures.held_out):
        raise ValueError(f"{data} holds too few pictures to keep {LEAST} of them out of training for {part}")
    started = time.perf_counter()
    drawn = pipe(seeds, condition, prompt, **options)
    seconds = time.perf_counter() - started
    # Latents are not mirrored, but the pictures were before they became latents.
    flip = pictures.flip if pipe.denoiser.autoencoder else pipe.card.get("config", {}).get("flip", True)
    reference = Reference(pictures.images, real, extractor, flips=flip)
    result = {
        "weights": weights,
        "parameters": count_parameters(pipe.denoiser.net),
        "data": pictures.description,
        "part": part,
        "size": pipe.size,
        **{name: value for name, value in asdict(how).items() if value is not None},
        "condition": condition,
        "prompt": prompt,
        "mixed_precision": mixed_precision,
        "seed": seed,
        "seconds_of_drawing": round(seconds, 1),
        **pretrained.machine(),
        **reference.evaluate(drawn),
    }
    print(
        f"{count} pictures of {weights} ({how.steps} steps of {how.sampler}) against "
        f"{len(real)} held-out ones ({part}), by {extractor}"
    )
    print(table(result))
    if out is not None:
        write_json(out, result)


def table(result: dict) -> str:
    """The figures and their floors, one line each, and of several groups how far one is from another."""
    deviation = result.get("deviation", {})
    lines = [f"{'':18}  {'generated':>10}  {'floor':>10}" + f"  {'deviation':>10}" * bool(deviation)]
    for name, value in result["generated"].items():
        spread = f"  {deviation[name]:10g}" if name in deviation else ""
        lines.append(f"{name.replace('_', ' '):18}  {value:10g}  {result['floor'][name]:10g}{spread}")
    return "\n".join(lines)
