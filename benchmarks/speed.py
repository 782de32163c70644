"""How fast networks draw and train.

    OMP_NUM_THREADS=2 python benchmarks/speed.py drawing --weights stanford-cars-resnet
    OMP_NUM_THREADS=2 python benchmarks/speed.py drawing --weights NAME --student NAME --peers
    OMP_NUM_THREADS=2 python benchmarks/speed.py latent runs/pixels runs/latents-4 runs/latents-8
    OMP_NUM_THREADS=2 python benchmarks/speed.py throughput
    OMP_NUM_THREADS=2 python benchmarks/speed.py throughput --networks cars --precisions no --seconds 20

Seconds say as much about the machine, and about who else uses it, as about the code: what counts are ratios of
times that were measured in turn.  Each question has its own --help.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import peers
import torch
import tyro
from common import RESULTS, by_name, chosen, command
from torch import Tensor

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.commands.sample import DEVICE, Weights
from diffusion_utils.data import to_uint8
from diffusion_utils.files import write_json
from diffusion_utils.guidance import Guided
from diffusion_utils.networks.presets import CARS
from diffusion_utils.pipeline import AS_ADVISED, DEFAULT, UNCONDITIONAL, WALK, Drawing, Pipeline
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample
from diffusion_utils.training import TrainConfig, train

SEEDS = range(16)
# What throughput measures: a name for --networks and what `networks.build` needs.
NETWORKS = {
    "cars": CARS,
    "cars-add": {**CARS, "skip": "add"},
    "segnet": {"name": "segnet", "channels": [24, 48, 112], "depth": 2, "embedding_dim": 64},
    "unet": {"name": "unet", "channels": [16, 32, 64], "depth": 1, "embedding_dim": 64},
}
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}  # as TrainConfig.mixed_precision names them
SIZE, TRAIN_BATCH, SAMPLE_BATCHES = 64, 64, (16, 64)


def seconds_for(work: Callable, device: torch.device) -> float:
    """How long `work` takes, the device's queue included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def in_turn(ways: dict[str, Callable], rounds: int, device: torch.device) -> dict[str, dict]:
    """Median seconds of every way, each in its turn, and the median of its ratios to the first: whatever else the
    machine does falls on all alike."""
    for work in ways.values():
        work()  # memory, kernels, compilation
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds[name].append(seconds_for(work, device))
    first, *_ = seconds.values()
    ratios = {name: [a / b for a, b in zip(times, first)] for name, times in seconds.items()}
    return {
        name: {"seconds": round(median(times), 3), "ratio": round(median(ratios[name]), 3)}
        for name, times in seconds.items()
    }


def drawing_work(denoiser: Denoiser | Guided, pipe: Pipeline, how: Drawing) -> Callable[[], None]:
    """A function that draws 16 pictures as the pipeline does, by a denoiser that is ready."""
    encoder, size = pipe.denoiser.autoencoder, pipe.size
    shape = (3, size, size) if encoder is None else encoder.latent_shape(size, size)
    options = {"shape": shape, "device": pipe.device, "clip_sample": encoder is None}
    options |= {name: getattr(how, name) for name in WALK if getattr(how, name) is not None}

    def work():
        drawn = sample(denoiser, SEEDS, **options)
        to_uint8(drawn if encoder is None else encoder.from_latents(drawn)).cpu()

    return work


def compiled(denoiser: Denoiser | Guided) -> Denoiser | Guided:
    """The same with its networks compiled."""
    if isinstance(denoiser, Guided) and denoiser.both:
        denoiser = replace(denoiser)  # with networks of its own around the ones they share
        denoiser.both.net.compile()
        return denoiser
    if isinstance(denoiser, Guided):
        guide = denoiser.guide and compiled(denoiser.guide)
        return replace(denoiser, denoiser=compiled(denoiser.denoiser), guide=guide)
    return replace(denoiser, net=torch.compile(denoiser.net))


@dataclass
class DrawingSpeed:
    """How long 16 cars take: precision, compilation and few steps, beside the peers' networks.

    Every way is timed in turn, several rounds of all; the ratio to the first (float32, as shipped) is what counts.
    Peers draw with as many steps, from random weights: how long a network takes does not depend on what it knows.
    Writes benchmarks/results/drawing_speed.json.
    """

    weights: Weights
    drawing: Drawing = AS_ADVISED  # How to draw; what is left out is as the card advises.
    condition: str | None = None  # As for the command sample.
    prompt: str | None = None  # The same in words, for weights that take words.
    student: str | None = None  # Weights of a few-step student.
    peers: bool = False  # Time the peers' networks, too.
    rounds: int = 5  # How often every way is timed.
    out: Path = RESULTS / "drawing_speed.json"  # The JSON file to write.
    device: str = DEVICE  # Where to draw, such as cpu or cuda.

    def __call__(self) -> None:
        pipe = pipeline.load(self.weights, self.device)
        how, alone = pipe.settled(self.condition, **vars(self.drawing)), pipe.denoiser
        asked = SEEDS, self.condition, self.prompt
        denoiser, half = (
            pipeline.load(self.weights, self.device, precision).guided(*asked, **vars(self.drawing))
            for precision in PRECISIONS
        )
        ways = {  # what is timed, its network and its steps
            "as advised": (drawing_work(denoiser, pipe, how), alone.net, how.steps),
            "bf16": (drawing_work(half, pipe, how), alone.net, how.steps),
            "compiled": (drawing_work(compiled(denoiser), pipe, how), alone.net, how.steps),
            "not guided": (drawing_work(alone, pipe, how), alone.net, how.steps),
        }
        for divisor in (2, 4):
            fewer = max(1, how.steps // divisor)
            ways[f"{fewer} steps"] = (drawing_work(denoiser, pipe, replace(how, steps=fewer)), alone.net, fewer)
        if self.student:
            student = pipeline.load(self.student, self.device)
            for few in (1, 2, 4):
                work = drawing_work(student.denoiser, student, Drawing("consistency", few))
                ways[f"student, {few}"] = (work, student.denoiser.net, few)
        for name, peer in peers.PEERS.items():
            if self.peers and name != "ours":
                other = Denoiser(peer.build(pipe.size).eval().to(self.device), peer.schedule(), peer.prediction_type)
                work = drawing_work(other, Pipeline(other, pipe.card, device=self.device), how)
                ways[name] = (work, other.net, how.steps)
        times = in_turn({name: work for name, (work, _, _) in ways.items()}, self.rounds, torch.device(self.device))
        print(f"{'':28}  parameters  steps  seconds  ratio")
        for name, (_, net, steps) in ways.items():
            times[name] = row = {"parameters": networks.count_parameters(net), "steps": steps, **times[name]}
            print(f"{name:28}  {row['parameters']:10,}  {steps:5}  {row['seconds']:7.2f}  {row['ratio']:5.2f}")
        settings = {"weights": self.weights, **asdict(how), "size": pipe.size, "pictures": len(SEEDS)}
        machine = {"threads": torch.get_num_threads(), **pretrained.machine()}
        write_json(self.out, {**settings, **machine, "ways": times})


@dataclass
class LatentSpeed:
    """How long 16 cars take, not guided, 20 steps, every network in turn, as a ratio to the first.

    What the networks draw is scored by `ways.py latent`.  Writes benchmarks/results/latent-speed.json.
    """

    weights: tyro.conf.Positional[tuple[str, ...]]  # Names or paths; a folder means the weights.safetensors in it.
    rounds: int = 5  # How often every network is timed.
    results: Path = RESULTS  # The folder of the results.

    def __call__(self) -> None:
        ways = {
            name: partial(replace(pipeline.load(path), drawing=DEFAULT), SEEDS, UNCONDITIONAL)
            for name, path in by_name(self.weights).items()
        }
        times = in_turn(ways, self.rounds, torch.device("cpu"))
        for name, row in times.items():
            print(f"{name}: {row['seconds']:.2f} s, ratio {row['ratio']:.2f}")
        settings = {"pictures": len(SEEDS), "steps": DEFAULT.steps, "threads": torch.get_num_threads()}
        write_json(self.results / "latent-speed.json", {**settings, **pretrained.machine(), "networks": times})


def matmul_gflops(dtype: torch.dtype, device: torch.device, tries: int = 4) -> float:
    """Best of several products of two n×n matrices; a GPU needs larger ones to be busy."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    a @ b  # the first one also sets things up
    return 2e-9 * n**3 / min(seconds_for(lambda: a @ b, device) for _ in range(tries))


def share_of_matmul(
    work: Callable, images: int, flops: float, dtype: torch.dtype, device: torch.device, seconds: float
) -> dict:
    """Probe, work, probe, work, …, probe, for about `seconds`, at least 3 times.

    Args:
        work: called without arguments; handles `images` pictures.
        flops: floating-point operations for one picture.
    """
    work()  # warm-up: memory, kernels, compilation
    work()
    rounds, probes = [], [matmul_gflops(dtype, device)]
    started = time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() - started < seconds:
        rounds.append(images / seconds_for(work, device))
        probes.append(matmul_gflops(dtype, device))
    shares = [1e-9 * rate * flops / max(before, after) for rate, before, after in zip(rounds, probes, probes[1:])]
    rates = dict(images_per_second=round(median(rounds), 1), gflops=round(1e-9 * median(rounds) * flops, 1))
    rates |= dict(matmul_gflops=round(median(probes), 1), share=round(median(shares), 3))
    return rates | dict(share_lowest_highest=[round(min(shares), 3), round(max(shares), 3)], rounds=len(rounds))


def network_throughput(network: dict, precision: str, images: Tensor, seconds: float) -> dict:
    """Training and sampling of one network in one precision."""
    steps_per_round = 4
    often = {"log_every": steps_per_round, "checkpoint_every": 10**6}
    config = TrainConfig(network, steps=10**6, batch_size=TRAIN_BATCH, mixed_precision=precision, **often)
    training = train(config, images)
    net = next(training).denoiser.net
    device, dtype = next(net.parameters()).device, PRECISIONS[precision]
    macs = networks.count_macs(net, (3, SIZE, SIZE))
    results = {"parameters": networks.count_parameters(net), "macs": macs}

    def steps():
        if next(training).stopped:  # Ctrl-C: `train` ends in an orderly way, and so nothing is to be measured
            raise KeyboardInterrupt

    results["training"] = share_of_matmul(steps, steps_per_round * TRAIN_BATCH, 6 * macs, dtype, device, seconds)
    denoiser = next(training).denoiser
    training.close()
    for batch in SAMPLE_BATCHES:
        calls = max(1, 256 // batch)
        work = sampling_work(denoiser, batch, calls, precision, device)
        results[f"sampling_batch_{batch}"] = share_of_matmul(work, calls * batch, 2 * macs, dtype, device, seconds)
    return results


def sampling_work(
    denoiser: Denoiser, batch: int, calls: int, precision: str, device: torch.device
) -> Callable[[], None]:
    """What a sampler spends its time on: the denoiser, `calls` times on `batch` pictures."""
    x_t = torch.randn(batch, 3, SIZE, SIZE, device=device)
    t = torch.full((batch,), 500, device=device)

    @torch.no_grad()
    def work():
        with torch.autocast(device.type, PRECISIONS["bf16"], enabled=precision == "bf16"):
            for _ in range(calls):
                denoiser(x_t, t)

    return work


@dataclass
class Throughput:
    """The share of the machine's own matrix-multiply rate that training and sampling reach.

    Every measurement stands between two timings of large square matrix products, in the same precision and on
    the same threads, and only the ratio counts: of each round the better product (a disturbed one would
    flatter the network), of all rounds the median.

    A picture costs 2 × MACs forward and, as is usual, twice that backward: 6 × MACs in training.  What
    no matrix product does (norms, activations, optimizer, making the batch) counts as time but not as
    work.  Writes benchmarks/results/throughput.json.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)  # Which networks.
    precisions: tuple[str, ...] = tuple(PRECISIONS)  # In which precisions: float32 (no), bfloat16 (bf16).
    seconds: float = 15  # For each measurement.
    out: Path = RESULTS / "throughput.json"  # The JSON file to write.

    def __call__(self) -> None:
        names, precisions = chosen("network", self.networks, NETWORKS), chosen("precision", self.precisions, PRECISIONS)
        images = torch.randint(256, (512, 3, SIZE, SIZE), dtype=torch.uint8)  # what they show costs nothing
        settings = {"threads": torch.get_num_threads(), "size": SIZE, "train_batch": TRAIN_BATCH}
        flops = "training 6 × MACs, sampling 2 × MACs per picture"
        results = {**pretrained.machine(), **settings, "flops": flops, "networks": {}}
        for name in names:
            entry = results["networks"][name] = {"network": NETWORKS[name]}
            for precision in precisions:
                measured = network_throughput(NETWORKS[name], precision, images, self.seconds)
                entry |= {key: measured.pop(key) for key in ("parameters", "macs")}
                entry[precision] = measured
                for what, m in measured.items():
                    print(
                        f"{name}, {precision}, {what}: {m['images_per_second']} images/s, {m['share']:.1%}", flush=True
                    )
        write_json(self.out, results)


COMMANDS = {"drawing": DrawingSpeed, "latent": LatentSpeed, "throughput": Throughput}


main = command(COMMANDS, __doc__)

if __name__ == "__main__":
    main()
