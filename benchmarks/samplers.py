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
from pathlib import Path

from tqdm import tqdm

from diffusion_utils import pretrained
from diffusion_utils.datasets import load_data
from diffusion_utils.drawing import draw
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_atomically

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
    denoiser, size = pretrained.load(args.weights), pretrained.card(args.weights)["size"]
    train, held_out, description = load_data(args.data, size)
    reference = Reference(train, held_out)
    path = args.results / f"samplers-{Path(args.weights).stem}.json"
    results = json.loads(path.read_bytes()) if path.exists() else []
    done = {(r["sampler"], r["steps"]) for r in results}
    todo = [(sampler, steps) for steps in STEPS for sampler in SAMPLERS if (sampler, steps) not in done]
    for sampler, steps in tqdm(todo, file=sys.stdout):
        started = time.perf_counter()
        drawn = draw(denoiser, range(args.count), size, sampler, steps, "cpu")
        seconds = time.perf_counter() - started
        results.append(
            {
                "weights": args.weights,
                "data": description,
                "size": size,
                "sampler": sampler,
                "steps": steps,
                "sample_seeds": f"0 … {args.count - 1}",
                "seconds_of_drawing": round(seconds, 1),
                **pretrained.machine(),
                **reference.evaluate(drawn),
            }
        )
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        write_atomically(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
