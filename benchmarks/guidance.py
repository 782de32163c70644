"""What guidance buys, and which worse guess to walk away from: KID of the same seeds, drawn in many ways.

    STANFORD_CARS_ROOT=… python benchmarks/guidance.py                      # stanford-cars-1m
    STANFORD_CARS_ROOT=… python benchmarks/guidance.py --guide runs/headline/snapshots/weights_000250000.safetensors

With --guide the ways of autoguidance are measured, too.  What is measured already is kept, so the
command may be interrupted.  Writes benchmarks/results/guidance-NAME.json.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from diffusion_utils import pipeline, pretrained
from diffusion_utils.data import sets
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_json
from diffusion_utils.pipeline import DEFAULT, Drawing

COUNT = 256
RESULTS = Path(__file__).parent / "results"
SHIFT = {"time_shift": 30}
EARLY = {**SHIFT, "interval": [400, 999]}


def skipping(scale: float, *layers: str, **more) -> dict:
    return {**SHIFT, "guidance_scale": scale, "skip_layers": list(layers), **more}


# What differs from plain DPM-Solver++ with 20 steps.
WAYS = {
    "plain": {},
    "time shift": SHIFT,
    "classifier-free, w = 2": {**SHIFT, "guidance_scale": 2},
    "classifier-free, w = 4": {**SHIFT, "guidance_scale": 4},
    "without encoder.7, w = 1.5": skipping(1.5, "encoder.7"),
    "without encoder.7, w = 2": skipping(2, "encoder.7"),
    "without encoder.7, w = 3": skipping(3, "encoder.7"),
    "without encoder.7, w = 4": skipping(4, "encoder.7"),
    "without encoder.7, w = 3, no time shift": skipping(3, "encoder.7", time_shift=0),
    "without encoder.7, w = 3, t ≥ 400 only": skipping(3, "encoder.7", interval=[400, 999]),
    "without encoder.4, w = 2": skipping(2, "encoder.4"),
    "without decoder.1, w = 2": skipping(2, "decoder.1"),
    "without attention at 8×8, w = 2": skipping(2, "encoder.5", "decoder.2"),
    "without attention at 4×4, w = 2": skipping(2, "encoder.8"),
}
AUTOGUIDANCE = {
    "an earlier self, w = 2": {**SHIFT, "guidance_scale": 2},
    "an earlier self, w = 3, t ≥ 400 only": {**EARLY, "guidance_scale": 3},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="stanford-cars-1m")
    parser.add_argument("--guide", help="weights of a weaker network, for autoguidance")
    parser.add_argument("--data", default="stanford_cars")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    pipe = replace(pipeline.load(args.weights), drawing=DEFAULT)
    ways = WAYS | ({name: {**way, "guide": args.guide} for name, way in AUTOGUIDANCE.items()} if args.guide else {})
    real, images_seen = sets.load(args.data, pipe.size), pipe.card["images_seen"]
    reference = Reference(real.images, real.held_out)
    path = args.results / f"guidance-{Path(args.weights).stem}.json"
    rows = json.loads(path.read_bytes()) if path.exists() else []
    done = {row["way"] for row in rows if row["images_seen"] == images_seen and row["count"] == args.count}
    for name in tqdm([name for name in ways if name not in done], file=sys.stdout):
        how, started = asdict(Drawing(**ways[name]).over(DEFAULT)), time.perf_counter()
        pictures = pipe(range(args.count), **ways[name])
        rows.append(
            {
                "way": name,
                "weights": args.weights,
                "images_seen": images_seen,
                "data": real.description,
                **how,
                "guide": how["guide"] and "/".join(Path(how["guide"]).parts[-3:]),
                "count": args.count,
                "seconds_of_drawing": round(time.perf_counter() - started, 1),
                **pretrained.machine(),
                **reference.evaluate(pictures),
            }
        )
        write_json(path, rows)
        tqdm.write(f"{name}: KID × 1000 {1000 * rows[-1]['generated']['kid']:.0f}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
