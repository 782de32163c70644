"""Draw pictures from trained weights.

    python -m diffusion_utils.sample --weights stanford-cars-resnet --out grid.png
    python -m diffusion_utils.sample --weights stanford-cars-text --prompt "a red 2012 BMW convertible" --out grid.png
    python -m diffusion_utils.sample --weights runs/toy/weights.safetensors --out grid.png --count 16

Picture i of the grid depends on --seed + i alone: nothing is picked, and the same command draws the
same grid.
"""

import argparse
import sys
import time
from pathlib import Path

from diffusion_utils import drawing, pretrained
from diffusion_utils.networks.text import Tokenizer
from diffusion_utils.plotting import save_grid
from diffusion_utils.sampling import SPACINGS


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_utils.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    drawing.add_arguments(parser)
    add("--out", type=Path, required=True, help="the picture to write, .png or .jpg")
    add("--count", type=int, default=64)
    add("--columns", type=int, default=8)
    add(
        "--enlarge", metavar="WEIGHTS", help="of a network for super-resolution, which draws the pictures again, larger"
    )
    add("--noise-level", type=int, default=100, help="with --enlarge: noise put on the small pictures first, 0 … 499")
    add("--eta", type=float, help="fresh noise per step, 0 … 1 (ddim only)")
    add("--spacing", choices=SPACINGS, default="trailing")
    add("--no-clamp", action="store_true", help="do not clip the predicted picture to [-1, 1]")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.count < 1 or args.columns < 1:
        raise ValueError("--count and --columns must be at least 1")
    seeds, how = range(args.seed, args.seed + args.count), drawing.settings(args)
    if args.eta is not None and how["sampler"] != "ddim":
        raise ValueError("--eta belongs to --sampler ddim")
    denoiser = drawing.load(args.weights, seeds, args.condition, how, args.device)
    larger = pretrained.load(args.enlarge, args.device) if args.enlarge else None
    if larger:
        drawing.check_enlarging(larger, args.noise_level)
    card = pretrained.card(args.weights)
    size = card.get("size", 64)
    if "prompts" in card and args.condition not in (None, "none"):
        network = card["network"]
        if remark := Tokenizer(network["words"], network["length"]).remark(args.condition):
            print(f"{args.condition!r}: {remark}", file=sys.stderr)
    options = {} if args.eta is None else {"eta": args.eta}
    started = time.perf_counter()
    pictures = drawing.draw(
        denoiser,
        seeds,
        size,
        how["sampler"],
        how["steps"],
        args.device,
        clamp=not args.no_clamp,
        spacing=args.spacing,
        **options,
    )
    if larger:
        pictures = drawing.enlarge(larger, pictures, seeds, args.noise_level, device=args.device)
    seconds = time.perf_counter() - started
    save_grid(pictures, args.out, columns=args.columns)
    print(f"{args.count} pictures in {seconds:.1f} s ({how['steps']} steps of {how['sampler']}): {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, OSError) as error:
        sys.exit(f"error: {error}")
