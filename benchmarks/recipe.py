"""The search for the network of at most a million parameters: candidates, equal minutes each.

    STANFORD_CARS_ROOT=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/recipe.py             # all
    STANFORD_CARS_ROOT=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/recipe.py coarse --seed 1

Minutes, not images: a network that costs half as much sees twice as many pictures, which is the
bargain to be struck.  What is compared is the error of x̂₀ on held-out cars, which a second seed moves
far less than KID.  What is measured already is kept, so the command may be interrupted.  The minutes
mean something only on a processor core that does nothing else, which is what taskset is for.  Writes
benchmarks/results/recipe.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from diffusion_utils import networks, pretrained
from diffusion_utils.data import root_mean_square, sets
from diffusion_utils.evaluation import error_per_timestep
from diffusion_utils.files import write_json
from diffusion_utils.networks.presets import CARS, CARS_1M
from diffusion_utils.training import TrainConfig, train

RESULT = Path(__file__).parent / "results" / "recipe.json"
SIZE, TIMESTEPS, HELD_OUT = 64, (19, 99, 299, 499, 699, 899), 512
COARSE = {
    "name": "resnet",
    "channels": [64, 96],
    "depth": [2, 2],
    "decoder_depth": 2,
    "stem": 4,
    "skip": "add",
    "upsample": "nearest",
    "patch_head": True,
    "attention": [8],
    "embedding_dim": 64,
}
# One line per candidate: what it is, its network, and what differs in its training.
CANDIDATES = {
    "chosen": ("4 resolutions, 2×2 patches, learning rate 0.002", CARS_1M, {"learning_rate": 2e-3}),
    "slower": ("the same, learning rate 0.001", CARS_1M, {}),
    "weighted": (
        "as chosen, errors weighted by the SNR, from 1 to 5",
        CARS_1M,
        {"learning_rate": 2e-3, "min_snr_gamma": 5.0, "snr_floor": 1.0},
    ),
    "min-SNR": (
        "as chosen, errors weighted by the SNR, up to 5",
        CARS_1M,
        {"learning_rate": 2e-3, "min_snr_gamma": 5.0},
    ),
    "no attention": ("as slower, without attention", {**CARS_1M, "attention": []}, {}),
    "shallow": (
        "3 resolutions, 2×2 patches",
        {**CARS_1M, "channels": [32, 64, 112], "depth": [1, 1, 2], "attention": [8]},
        {},
    ),
    "fast": ("3 resolutions, 4×4 patches", {**CARS_1M, "channels": [64, 80, 96], "stem": 4}, {}),
    "coarse": ("2 resolutions, 4×4 patches", COARSE, {}),
    "coarse, EDM": ("the same, asked as EDM asks", COARSE, {"prediction_type": "edm"}),
    "coarse, v": ("the same, asked for v", COARSE, {"prediction_type": "v_prediction"}),
    "coarse, no skips": ("the same without skips", {**COARSE, "skip": "none"}, {}),
    "coarse, attention 16": ("the same with attention at 16×16 as well", {**COARSE, "attention": [4, 8]}, {}),
    "first": ("the network of notebooks 02 and 03", CARS, {}),
}
TWICE = ("chosen", "slower", "weighted", "fast", "coarse")  # what decided


def configuration(name: str, seed: int, minutes: float, sigma_data: float) -> TrainConfig:
    _, network, changes = CANDIDATES[name]
    return TrainConfig(
        **{
            "network": network,
            "minutes": minutes,
            "seed": seed,
            "optimizer": "muon",
            "warmup_steps": 100,
            "sigma_data": sigma_data,
            "log_every": 50,
            **changes,
        }
    )


def measure(name: str, seed: int, minutes: float) -> dict:
    """Train one candidate and take its error at each noise level."""
    pictures = sets.load("stanford_cars", SIZE)
    config = configuration(name, seed, minutes, root_mean_square(pictures.images))
    bar = tqdm(desc=f"{name}, seed {seed}", unit=" images", file=sys.stdout, mininterval=10)
    for record in train(config, pictures.images):
        bar.update(record.images - bar.n)
    bar.close()
    if record.stopped:
        sys.exit("stopped: the same command starts this candidate again")
    errors = error_per_timestep(record.denoiser, pictures.held_out[:HELD_OUT], TIMESTEPS)
    net = record.denoiser.net
    return {
        "candidate": name,
        "about": CANDIDATES[name][0],
        "seed": seed,
        "minutes": minutes,
        "parameters": networks.count_parameters(net),
        "macs": networks.count_macs(net, (3, SIZE, SIZE)),
        "images_seen": record.images,
        "training_loss": round(record.loss, 5),
        "held_out_error_of_x0_as_share_of_variance": {f"t={t}": round(e, 4) for t, e in zip(TIMESTEPS, errors)},
        "data": pictures.description,
        **pretrained.machine(),
        "config": asdict(config),
    }


def table(results: list[dict]) -> str:
    """All candidates as a Markdown table, seeds averaged."""
    lines = [
        "| | parameters | million MACs | images seen | " + " | ".join(f"t = {t}" for t in TIMESTEPS) + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(TIMESTEPS),
    ]
    for name in dict.fromkeys(r["candidate"] for r in results):
        rows = [r for r in results if r["candidate"] == name]
        errors = [
            sum(r["held_out_error_of_x0_as_share_of_variance"][f"t={t}"] for r in rows) / len(rows) for t in TIMESTEPS
        ]
        images = sum(r["images_seen"] for r in rows) // len(rows)
        lines.append(
            f"| {name}: {rows[0]['about']} | {rows[0]['parameters']:,} | {rows[0]['macs'] / 1e6:.0f} | {images:,} | "
            + " | ".join(f"{e:.4f}" for e in errors)
            + " |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", nargs="*", help=f"default: all of {', '.join(CANDIDATES)}")
    parser.add_argument("--seed", type=int, help="default: 0, and 1 for those that decided")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(arguments)
    unknown = [name for name in args.candidates if name not in CANDIDATES]
    if unknown:
        raise ValueError(f"no candidate named {unknown[0]!r}: choose out of {', '.join(CANDIDATES)}")
    chosen, seeds = args.candidates or list(CANDIDATES), (0, 1) if args.seed is None else (args.seed,)
    results = json.loads(args.out.read_bytes()) if args.out.exists() else []
    done = {(r["candidate"], r["seed"], r["minutes"]) for r in results}
    for seed in seeds:
        for name in chosen:
            if (name, seed, args.minutes) in done or (args.seed is None and seed and name not in TWICE):
                continue
            results.append(measure(name, seed, args.minutes))
            write_json(args.out, results)
    print(table([r for r in results if r["minutes"] == args.minutes]))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
