"""How long 16 cars take: precision, compilation and few steps, beside the peers' networks.

    OMP_NUM_THREADS=2 python benchmarks/drawing_speed.py --weights stanford-cars-resnet
    OMP_NUM_THREADS=2 python benchmarks/drawing_speed.py --weights NAME --student NAME --peers

Every way is timed in turn, several rounds of all, so that whatever else the machine does falls on all
alike; the ratio to the first (float32, as shipped) is what counts.  Peers draw with as many steps, from
random weights: how long a network takes does not depend on what it knows.  Writes
benchmarks/results/drawing_speed.json.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import peers
import torch
import tyro

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.commands.sample import DEVICE, Weights
from diffusion_utils.data import to_uint8
from diffusion_utils.files import write_json
from diffusion_utils.guidance import Guided
from diffusion_utils.pipeline import AS_ADVISED, Drawing, Pipeline
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample

RESULT = Path(__file__).parent / "results" / "drawing_speed.json"
SEEDS = range(16)


@dataclass
class Options:
    weights: Weights
    drawing: Drawing = AS_ADVISED  # How to draw; what is left out is as the card advises.
    condition: str | None = None  # As for the command sample.
    prompt: str | None = None  # The same in words, for weights that take words.
    student: str | None = None  # Weights of a few-step student.
    peers: bool = False  # Time the peers' networks, too.
    rounds: int = 5
    out: Path = RESULT
    device: str = DEVICE


def work(denoiser: Denoiser | Guided, pipe: Pipeline, how: Drawing, bf16: bool = False) -> Callable[[], None]:
    """A function that draws 16 pictures as the pipeline does, by a denoiser that is ready."""
    device, encoder, size = torch.device(pipe.device).type, pipe.denoiser.autoencoder, pipe.size
    shape = (3, size, size) if encoder is None else encoder.latent_shape(size, size)
    options = {"shape": shape, "device": pipe.device, "clip_sample": encoder is None}
    asked = {name: getattr(how, name) for name in ("sampler", "steps", "eta", "timestep_spacing", "clip_sample")}
    options |= {name: value for name, value in asked.items() if value is not None}

    def run():
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            drawn = sample(denoiser, SEEDS, **options)
            to_uint8(drawn if encoder is None else encoder.from_latents(drawn)).cpu()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def compiled(denoiser: Denoiser | Guided) -> Denoiser | Guided:
    """The same with its networks compiled."""
    if isinstance(denoiser, Guided):
        guide = denoiser.guide and compiled(denoiser.guide)
        return replace(denoiser, denoiser=compiled(denoiser.denoiser), guide=guide)
    return replace(denoiser, net=torch.compile(denoiser.net))


def main(arguments: list[str] | None = None) -> None:
    args = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    pipe = pipeline.load(args.weights, args.device)
    how, alone = pipe.settled(args.condition, **vars(args.drawing)), pipe.denoiser
    denoiser = pipe.guided(SEEDS, args.condition, args.prompt, **vars(args.drawing))
    ways = {
        "as advised": (work(denoiser, pipe, how), alone.net, how.steps),
        "bf16": (work(denoiser, pipe, how, bf16=True), alone.net, how.steps),
        "compiled": (work(compiled(denoiser), pipe, how), alone.net, how.steps),
        "not guided": (work(alone, pipe, how), alone.net, how.steps),
    }
    for divisor in (2, 4):
        fewer = max(1, how.steps // divisor)
        ways[f"{fewer} steps"] = (work(denoiser, pipe, replace(how, steps=fewer)), alone.net, fewer)
    if args.student:
        student = pipeline.load(args.student, args.device)
        for few in (1, 2, 4):
            fast = Drawing("consistency", few)
            ways[f"student, {few}"] = (work(student.denoiser, student, fast), student.denoiser.net, few)
    if args.peers:
        for name, peer in peers.PEERS.items():
            if name != "ours":
                other = Denoiser(peer.build(pipe.size).eval().to(args.device), peer.schedule(), peer.prediction_type)
                ways[name] = (work(other, Pipeline(other, pipe.card, device=args.device), how), other.net, how.steps)
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
        **asdict(how),
        "size": pipe.size,
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
    write_json(args.out, results)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as missing:
        sys.exit(f"error: {missing}: pip install denoising-diffusion-pytorch smalldiffusion diffusers")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
