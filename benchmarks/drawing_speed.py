"""How long 16 cars take: precision, compilation and few steps, beside the peers' networks.

    OMP_NUM_THREADS=2 python benchmarks/drawing_speed.py --weights stanford-cars-resnet
    OMP_NUM_THREADS=2 python benchmarks/drawing_speed.py --weights NAME --student NAME --peers

Every way is timed in turn, several rounds of all, so that whatever else the machine does falls on all
alike; the ratio to the first (float32, as shipped) is what counts.  Peers draw with as many steps, from
random weights: how long a network takes does not depend on what it knows.  Writes
benchmarks/results/drawing_speed.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median

import peers
import torch

from diffusion_utils import drawing, networks, pretrained
from diffusion_utils.files import write_atomically
from diffusion_utils.guidance import Guided
from diffusion_utils.prediction import Denoiser

RESULT = Path(__file__).parent / "results" / "drawing_speed.json"
SEEDS = range(16)


def work(
    denoiser: Denoiser | Guided, size: int, sampler: str, steps: int, device: str, bf16: bool = False
) -> Callable[[], None]:
    """A function that draws 16 pictures."""

    def run():
        with torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else nullcontext():
            drawing.draw(denoiser, SEEDS, size, sampler, steps, device)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    return run


def compiled(denoiser: Denoiser | Guided) -> Denoiser | Guided:
    """The same with its networks compiled."""
    if isinstance(denoiser, Guided):
        guide = denoiser.guide and compiled(denoiser.guide)
        return replace(denoiser, denoiser=compiled(denoiser.denoiser), guide=guide)
    return replace(denoiser, net=torch.compile(denoiser.net))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    drawing.add_arguments(parser)
    parser.add_argument("--student", help="weights of a few-step student")
    parser.add_argument("--peers", action="store_true", help="time the peers' networks, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(arguments)
    card, how, device = pretrained.card(args.weights), drawing.settings(args), args.device
    size, steps, sampler = card["size"], how["steps"], how["sampler"]
    denoiser = drawing.load(args.weights, SEEDS, args.condition, how, device)
    alone = pretrained.load(args.weights, device)
    ways = {
        "as advised": (work(denoiser, size, sampler, steps, device), alone.net, steps),
        "bf16": (work(denoiser, size, sampler, steps, device, bf16=True), alone.net, steps),
        "compiled": (work(compiled(denoiser), size, sampler, steps, device), alone.net, steps),
        "not guided": (work(alone, size, sampler, steps, device), alone.net, steps),
    }
    for divisor in (2, 4):
        fewer = max(1, steps // divisor)
        ways[f"{fewer} steps"] = (work(denoiser, size, sampler, fewer, device), alone.net, fewer)
    if args.student:
        student = pretrained.load(args.student, device)
        for few in (1, 2, 4):
            ways[f"student, {few}"] = (work(student, size, "consistency", few, device), student.net, few)
    if args.peers:
        for name, peer in peers.PEERS.items():
            if name != "ours":
                net = peer.build(size).eval().to(device)
                other = Denoiser(net, peer.schedule(), peer.prediction_type)
                ways[name] = (work(other, size, sampler, steps, device), net, steps)
    seconds = {name: [] for name in ways}
    for run, _, _ in ways.values():
        run()  # memory, kernels, compilation
    for _ in range(args.rounds):
        for name, (run, _, _) in ways.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    first = seconds["as advised"]
    results = {
        "weights": args.weights,
        **how,
        "size": size,
        "pictures": len(SEEDS),
        "threads": torch.get_num_threads(),
        **pretrained.machine(),
        "ways": {},
    }
    print(f"{'':28}  parameters  steps  seconds  ratio")
    for name, (_, net, taken) in ways.items():
        ratio = median(each / reference for each, reference in zip(seconds[name], first))
        results["ways"][name] = {
            "parameters": networks.count_parameters(net),
            "steps": taken,
            "seconds": round(median(seconds[name]), 3),
            "ratio": round(ratio, 3),
        }
        print(f"{name:28}  {networks.count_parameters(net):10,}  {taken:5}  {median(seconds[name]):7.2f}  {ratio:5.2f}")
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_atomically(args.out, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as missing:
        sys.exit(f"error: {missing}: pip install denoising-diffusion-pytorch smalldiffusion diffusers")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
