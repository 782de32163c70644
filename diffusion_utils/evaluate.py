"""Draw pictures from trained weights and compare them with real ones.

    python -m diffusion_utils.evaluate --weights stanford-cars-resnet --data stanford_cars
    python -m diffusion_utils.evaluate --weights toy-cars-resnet --data toy_cars --count 256 --out toy.json

Beside every figure stands its floor, what as many real pictures score.  The features of the real
pictures take minutes the first time and are then kept in the cache folder.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import features, pretrained
from diffusion_utils.data import to_uint8
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_atomically
from diffusion_utils.networks import count_parameters
from diffusion_utils.sampling import SAMPLERS, sample
from diffusion_utils.train import load_data

BATCH = 64
LEAST = 4  # precision and recall look at the third nearest other picture


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_utils.evaluate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    shipped = ", ".join(pretrained.names()) or "none shipped"
    add("--weights", required=True, help=f"a name ({shipped}) or the path of a .safetensors file")
    add("--data", required=True, help="what it was trained on: toy_cars, stanford_cars, or a folder")
    add("--count", type=int, default=1024, help="how many pictures to draw")
    add("--seed", type=int, default=0, help="of the first picture; the next has the next seed")
    add("--sampler", choices=SAMPLERS, default="dpm_solver_pp")
    add("--steps", type=int, default=20)
    add("--extractor", choices=features.EXTRACTORS, default=features.DEFAULT)
    add("--out", type=Path, help="a JSON file for the result")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def draw(denoiser, seeds: range, size: int, sampler: str, steps: int, device: str) -> Tensor:
    """One uint8 picture per seed, (N, 3, size, size), a batch at a time."""
    batches = tqdm([seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)], desc="drawing", leave=False)
    return torch.cat([
        to_uint8(sample(denoiser, batch, (3, size, size), sampler, steps, device)).cpu() for batch in batches
    ])  # fmt: skip


def table(result: dict) -> str:
    """The figures and their floors, one line each."""
    lines = [f"{'':18}  {'generated':>10}  {'floor':>10}"]
    for name, value in result["generated"].items():
        lines.append(f"{name.replace('_', ' '):18}  {value:10g}  {result['floor'][name]:10g}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.count < LEAST:
        raise ValueError(f"--count must be at least {LEAST}")
    if args.out and args.out.is_dir():
        raise ValueError(f"--out {args.out} is a folder: give the name of a file")
    # What can go wrong goes wrong here, before the minutes of drawing.
    denoiser, card = pretrained.load(args.weights, args.device), pretrained.card(args.weights)
    features.extractor(args.extractor).to(args.device)
    size = card.get("size", 64)
    train, held_out, description = load_data(args.data, size)
    if len(held_out) < LEAST or torch.equal(train, held_out):
        raise ValueError(f"{args.data} holds too few pictures to keep {LEAST} of them out of training")
    started = time.perf_counter()
    seeds = range(args.seed, args.seed + args.count)
    pictures = draw(denoiser, seeds, size, args.sampler, args.steps, args.device)
    seconds = time.perf_counter() - started
    reference = Reference(train, held_out, args.extractor, flips=card.get("config", {}).get("flip", True))
    result = {
        "weights": args.weights, "parameters": count_parameters(denoiser.net), "data": description,
        "size": size, "sampler": args.sampler, "steps": args.steps, "seed": args.seed,
        "seconds_of_drawing": round(seconds, 1), **pretrained.machine(), **reference.evaluate(pictures),
    }  # fmt: skip
    print(f"{args.count} pictures of {args.weights} ({args.steps} steps of {args.sampler}) against "
          f"{len(held_out)} held-out ones, by {args.extractor}")  # fmt: skip
    print(table(result))
    if args.out:
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomically(args.out, lambda temporary: temporary.write_text(text))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
