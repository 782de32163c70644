"""Steps against quality for every sampler, with shipped weights.

    STANFORD_CARS_ROOT=… python benchmarks/samplers.py                      # cars32-none-sample
    STANFORD_CARS_ROOT=… python benchmarks/samplers.py --weights NAME

Every row draws the same seeds and is compared with the same held-out cars.  What is measured already
is kept, so the command may be interrupted.  Writes benchmarks/results/samplers-NAME.json.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from diffusion_utils import pipeline, pretrained
from diffusion_utils.data import sets
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_json

COUNT = 256
SAMPLERS = ("ddpm", "ddim", "dpm_solver_pp")
STEPS = (5, 10, 20, 50, 100)
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="cars32-none-sample")
    parser.add_argument("--data", default="stanford_cars")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    pipe = replace(pipeline.load(args.weights), drawing=pipeline.DEFAULT)
    pictures = sets.load(args.data, pipe.size)
    reference = Reference(pictures.images, pictures.held_out)
    path = args.results / f"samplers-{Path(args.weights).stem}.json"
    results = json.loads(path.read_bytes()) if path.exists() else []
    done = {(r["sampler"], r["steps"]) for r in results}
    todo = [(sampler, steps) for steps in STEPS for sampler in SAMPLERS if (sampler, steps) not in done]
    for sampler, steps in tqdm(todo, file=sys.stdout):
        started = time.perf_counter()
        drawn = pipe(range(args.count), pipeline.UNCONDITIONAL, sampler=sampler, steps=steps)
        seconds = time.perf_counter() - started
        results.append(
            {
                "weights": args.weights,
                "data": pictures.description,
                "size": pipe.size,
                "sampler": sampler,
                "steps": steps,
                "sample_seeds": f"0 … {args.count - 1}",
                "seconds_of_drawing": round(seconds, 1),
                **pretrained.machine(),
                **reference.evaluate(drawn),
            }
        )
        write_json(path, results)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
