"""Draw pictures from trained weights.

    python -m diffusion_utils.sample --weights stanford-cars-resnet --out grid.png
    python -m diffusion_utils.sample --weights runs/toy/weights.safetensors --out grid.png --count 16

Picture i of the grid depends on --seed + i alone: nothing is picked, and the same command draws the
same grid.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from diffusion_utils import pretrained
from diffusion_utils.plotting import save_grid
from diffusion_utils.sampling import SAMPLERS, SPACINGS, sample


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_utils.sample", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    shipped = ", ".join(pretrained.names()) or "none shipped"
    add("--weights", required=True, help=f"a name ({shipped}) or the path of a .safetensors file")
    add("--out", type=Path, required=True, help="the PNG to write")
    add("--count", type=int, default=64)
    add("--columns", type=int, default=8)
    add("--seed", type=int, default=0, help="of the first picture; the next has the next seed")
    add("--sampler", choices=SAMPLERS, default="dpm_solver_pp")
    add("--steps", type=int, default=20)
    add("--eta", type=float, help="fresh noise per step, 0 … 1 (ddim only)")
    add("--spacing", choices=SPACINGS, default="trailing")
    add("--no-clamp", action="store_true", help="do not clip the predicted picture to [-1, 1]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.count < 1 or args.columns < 1:
        raise ValueError("--count and --columns must be at least 1")
    if args.eta is not None and args.sampler != "ddim":
        raise ValueError("--eta belongs to --sampler ddim")
    denoiser = pretrained.load(args.weights, args.device)
    size = pretrained.card(args.weights).get("size", 64)
    options = {} if args.eta is None else {"eta": args.eta}
    started = time.perf_counter()
    pictures = sample(
        denoiser, range(args.seed, args.seed + args.count), (3, size, size), args.sampler, args.steps,
        args.device, clamp=not args.no_clamp, spacing=args.spacing, **options,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    save_grid(pictures, args.out, columns=args.columns)
    print(f"{args.count} pictures in {seconds:.1f} s ({args.steps} steps of {args.sampler}): {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, OSError) as error:
        sys.exit(f"error: {error}")
