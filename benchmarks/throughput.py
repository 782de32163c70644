"""The share of the machine's own matrix-multiply rate that training and sampling reach.

    OMP_NUM_THREADS=2 python benchmarks/throughput.py
    OMP_NUM_THREADS=2 python benchmarks/throughput.py --networks cars --precisions no --seconds 20

Seconds say as much about the machine, and about who else uses it, as about the code.  So every
measurement stands between two timings of large square matrix products, in the same precision and on
the same threads, and only the ratio counts: of each round the better product (a disturbed one would
flatter the network), of all rounds the median.

A picture costs 2 × MACs forward and, as is usual, twice that backward: 6 × MACs in training.  What
no matrix product does (norms, activations, optimizer, making the batch) counts as time but not as
work.  Writes benchmarks/results/throughput.json.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from diffusion_utils import networks, pretrained
from diffusion_utils.files import write_json
from diffusion_utils.networks.presets import CARS
from diffusion_utils.prediction import Denoiser
from diffusion_utils.training import TrainConfig, train

RESULT = Path(__file__).parent / "results" / "throughput.json"
# One line per network: a name for --networks and what `networks.build` needs.
NETWORKS = {
    "cars": CARS,
    "cars-add": {**CARS, "skip": "add"},
    "segnet": {"name": "segnet", "channels": [24, 48, 112], "depth": 2, "embedding_dim": 64},
    "unet": {"name": "unet", "channels": [16, 32, 64], "depth": 1, "embedding_dim": 64},
}
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}  # as TrainConfig.mixed_precision names them
SIZE, TRAIN_BATCH, SAMPLE_BATCHES = 64, 64, (16, 64)


def matmul_gflops(dtype: torch.dtype, device: torch.device, tries: int = 4) -> float:
    """Best of several products of two n×n matrices; a GPU needs larger ones to be busy."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    a @ b  # the first one also sets things up
    return 2e-9 * n**3 / min(seconds_for(lambda: a @ b, device) for _ in range(tries))


def seconds_for(work: Callable, device: torch.device) -> float:
    """How long `work` takes, the device's queue included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def measure(
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
    return {
        "images_per_second": round(median(rounds), 1),
        "gflops": round(1e-9 * median(rounds) * flops, 1),
        "matmul_gflops": round(median(probes), 1),
        "share": round(median(shares), 3),
        "share_lowest_highest": [round(min(shares), 3), round(max(shares), 3)],
        "rounds": len(rounds),
    }


def measure_network(network: dict, precision: str, images: Tensor, seconds: float) -> dict:
    """Training and sampling of one network in one precision."""
    steps_per_round = 4
    config = TrainConfig(
        network=network,
        steps=10**6,
        batch_size=TRAIN_BATCH,
        mixed_precision=precision,
        log_every=steps_per_round,
        checkpoint_every=10**6,
    )
    run = train(config, images)
    net = next(run).denoiser.net
    device, dtype = next(net.parameters()).device, PRECISIONS[precision]
    macs = networks.count_macs(net, (3, SIZE, SIZE))
    results = {"parameters": networks.count_parameters(net), "macs": macs}

    def steps():
        if next(run).stopped:  # Ctrl-C: `train` ends in an orderly way, and so nothing is to be measured
            raise KeyboardInterrupt

    results["training"] = measure(steps, steps_per_round * TRAIN_BATCH, 6 * macs, dtype, device, seconds)
    denoiser = next(run).denoiser
    run.close()
    for batch in SAMPLE_BATCHES:
        calls = max(1, 256 // batch)
        work = sampling_work(denoiser, batch, calls, precision, device)
        results[f"sampling_batch_{batch}"] = measure(work, calls * batch, 2 * macs, dtype, device, seconds)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=list(NETWORKS),
        metavar="NAME",
        help=f"out of {', '.join(NETWORKS)} (default: all)",
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=15, help="per measurement (default: 15)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write")
    arguments = parser.parse_args()

    images = torch.randint(256, (512, 3, SIZE, SIZE), dtype=torch.uint8)  # what they show costs nothing
    results = {
        **pretrained.machine(),
        "threads": torch.get_num_threads(),
        "size": SIZE,
        "train_batch": TRAIN_BATCH,
        "flops": "training 6 × MACs, sampling 2 × MACs per picture",
        "networks": {},
    }
    print("network     precision  what                images/s  GFLOP/s  matmul  share")
    for name in arguments.networks:
        entry = results["networks"][name] = {"network": NETWORKS[name]}
        for precision in arguments.precisions:
            measured = measure_network(NETWORKS[name], precision, images, arguments.seconds)
            entry |= {key: measured.pop(key) for key in ("parameters", "macs")}
            entry[precision] = measured
            for what, m in measured.items():
                print(
                    f"{name:11} {precision:10} {what:18} {m['images_per_second']:9.1f} {m['gflops']:8.1f} "
                    f"{m['matmul_gflops']:7.0f} {m['share']:6.1%}",
                    flush=True,
                )
        print(f"{name:11} {entry['parameters']:,} parameters, {entry['macs'] / 1e6:.1f} million MACs")
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()
