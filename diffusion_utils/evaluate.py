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

from diffusion_utils import drawing, features, pretrained
from diffusion_utils.datasets import load_data, mirrors
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_atomically

LEAST = 4  # precision and recall look at the third nearest other picture


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_utils.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    drawing.add_arguments(parser)
    add("--data", required=True, help="what it was trained on: toy_cars, stanford_cars, or a folder")
    add("--count", type=int, default=1024, help="how many pictures to draw")
    add("--extractor", choices=features.EXTRACTORS, default=features.DEFAULT)
    add("--out", type=Path, help="a JSON file for the result")
    return parser.parse_args(arguments)


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
    seeds = range(args.seed, args.seed + args.count)
    card, how = pretrained.card(args.weights), drawing.settings(args)
    denoiser = drawing.load(args.weights, seeds, args.condition, how, args.device)
    features.extractor(args.extractor).to(args.device)
    size = card.get("size", 64)
    # Toy cars learnt by captions keep out kinds of car, not single pictures.
    told = ("caption",) if args.data == "toy_cars" and "prompts" in card else ()
    train, held_out, description = load_data(args.data, size, *told)
    if len(held_out) < LEAST or torch.equal(train, held_out):
        raise ValueError(f"{args.data} holds too few pictures to keep {LEAST} of them out of training")
    started = time.perf_counter()
    pictures = drawing.draw(denoiser, seeds, size, how["sampler"], how["steps"], args.device)
    seconds = time.perf_counter() - started
    flips = card.get("config", {}).get("flip", True)
    if card.get("autoencoder"):  # pictures were mirrored before they became latents
        flips = mirrors(args.data, *told)
    reference = Reference(train, held_out, args.extractor, flips=flips)
    result = {
        "weights": args.weights,
        "parameters": card["parameters"],
        "data": description,
        "size": size,
        **how,
        "condition": args.condition,
        "seed": args.seed,
        "seconds_of_drawing": round(seconds, 1),
        **pretrained.machine(),
        **reference.evaluate(pictures),
    }
    print(
        f"{args.count} pictures of {args.weights} ({how['steps']} steps of {how['sampler']}) against "
        f"{len(held_out)} held-out ones, by {args.extractor}"
    )
    print(table(result))
    if args.out:
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomically(args.out, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
