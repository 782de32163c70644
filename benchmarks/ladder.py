"""The ladder of notebook 05: one change at a time, from the network that failed to the best one.

    STANFORD_CARS_ROOT=… python benchmarks/ladder.py                    # every row that is not done yet
    STANFORD_CARS_ROOT=… python benchmarks/ladder.py none-sample --seed 1
    python benchmarks/ladder.py --list

Every row trains on the same real cars (32×32) in the same order, sees the same number of them with
the same batch size, and is measured in the same way; only what `ROWS` says differs.  A row that is
interrupted goes on from its checkpoint; a row that is done is left alone; several of these commands
may run at once and share the rows out among themselves.  Each row leaves a JSON file under
benchmarks/results/ladder/ (committed), and its weights under runs/ladder/ (not committed).
"""

import argparse
import fcntl
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.data import root_mean_square, stanford_cars
from diffusion_utils.data.sets import NON_COMMERCIAL
from diffusion_utils.evaluation import Reference, error_per_timestep
from diffusion_utils.files import write_json
from diffusion_utils.prediction import Denoiser
from diffusion_utils.training import TrainConfig, load_checkpoint, train

SIZE, IMAGES, BATCH = 32, 76_800, 64
TIMESTEPS = (49, 99, 199, 299, 399, 499, 599, 699, 799, 899, 949)  # where the error of x̂₀ is measured
COUNT, SAMPLER, STEPS = 748, "dpm_solver_pp", 20  # as many pictures as are held out
RESULTS = Path(__file__).parent / "results" / "ladder"

# About 0.6 million parameters each.  BASE: 2×2 patches, work at 16×16, 8×8 and 4×4, stride 8.
BASE = {"name": "resnet", "channels": [32, 64, 96], "decoder_depth": 1, "stem": 2, "embedding_dim": 64}
FIRST = {"name": "resnet", "channels": [16, 24, 32, 48, 64, 80], "embedding_dim": 64}
SEGNET = {"name": "segnet", "channels": [24, 48, 112], "depth": 2, "embedding_dim": 64}
UNET = {"name": "unet", "channels": [16, 32, 64], "depth": 1, "embedding_dim": 64}
SKIPS = ("none", "indices", "add", "concat")
MAIN, MAIN_ASKED = BASE, "sample"  # "none-sample", the best KID of all skips and questions at this budget


def row(about: str, prediction_type: str, network: dict, frame: str = "crop", **settings) -> dict:
    """One row: what it shows, which pictures it sees, and its settings for `TrainConfig`."""
    return {
        "about": about,
        "frame": frame,
        "settings": {"prediction_type": prediction_type, "network": network, **settings},
    }


def change(about: str, network: dict | None = None, **settings) -> dict:
    """A row that differs from MAIN in the options of its network or in settings of the training."""
    return row(about, MAIN_ASKED, {**MAIN, **(network or {})}, **settings)


ROWS = {
    # From the first version, one change a row, to BASE ("none-sample").
    "first-epsilon": row("the first version: stride 32, bare transposed convolutions, asked for ε", "epsilon", FIRST),
    "first-sample": row("the same network asked for x₀", "sample", FIRST),
    "stride-16": row("stride 16", "sample", {**FIRST, "channels": [16, 32, 48, 64, 88]}),
    "stride-8": row("stride 8", "sample", {**FIRST, "channels": [16, 32, 64, 112]}),
    "decoder-blocks": row(
        "residual blocks in the decoder", "sample", {**FIRST, "channels": [16, 32, 64, 96], "decoder_depth": 1}
    ),
    # Every way past the bottleneck, asked for everything.
    **{
        f"{skip}-{kind}": row(f"skips: {skip}, asked for {kind}", kind, {**BASE, "skip": skip})
        for kind in ("sample", "epsilon", "v_prediction", "edm")
        for skip in SKIPS
    },
    # Single changes to MAIN.  (With a full-resolution stem it is "decoder-blocks".)
    "no-timestep": change("blind to the timestep", {"timestep": False}),
    "up-transposed-k3": change("transposed convolutions with kernel 3", {"upsample": "transposed_k3"}),
    "up-nearest": change("nearest neighbour and convolution", {"upsample": "nearest"}),
    "up-pixel-shuffle": change("pixel shuffle", {"upsample": "pixel_shuffle"}),
    "stem-4": change("4×4 patches", {"stem": 4, "channels": [64, 96]}),
    "attention-8": change("attention at 8×8", {"attention": [4]}),
    "attention-16": change("attention at 16×16", {"attention": [2]}),
    "lognormal": change("log-normal noise levels", timestep_sampling="lognormal"),
    "min-snr": change("min-SNR weights, γ = 5", min_snr_gamma=5.0),
    "linear": change("linear schedule", schedule="linear"),
    "muon": change("Muon instead of AdamW", optimizer="muon"),
    "no-decay": change("constant learning rate, averaged weights", decay_fraction=0.0),
    "no-decay-raw": change("constant learning rate, last weights", decay_fraction=0.0),
    "full-frame": change("whole photographs instead of cut-out cars", frame="frame"),
    # The changes that helped, together.
    "best": change(
        "Muon, nearest neighbour, attention at 16×16", {"upsample": "nearest", "attention": [2]}, optimizer="muon"
    ),
    # Other networks of the same size.
    "segnet-epsilon": row("SegNet, asked for ε", "epsilon", SEGNET),
    "segnet-sample": row("SegNet, asked for x₀", "sample", SEGNET),
    "unet-sample": row("U-Net, asked for x₀", "sample", UNET),
    # Other sizes of MAIN.
    "size-0.25": change("0.25 million parameters", {"channels": [24, 40, 56]}),
    "size-1": change("1 million parameters", {"channels": [40, 80, 120]}),
    "size-2": change("2 million parameters", {"channels": [56, 120, 176]}),
    "size-4": change("4 million parameters", {"channels": [80, 168, 248]}),
}
# Rows whose averaged and last weights are both measured share one training.
SAME_RUN = {"no-decay-raw": "no-decay"}
TWICE = ["none-sample", "muon"]  # with two seeds: what the rest is compared with, and the closest call


def configuration(name: str, seed: int, sigma_data: float) -> TrainConfig:
    """The whole configuration of a row."""
    settings = {
        "images": IMAGES,
        "batch_size": BATCH,
        "warmup_steps": 100,
        "sigma_data": sigma_data,
        **ROWS[name]["settings"],
    }
    return TrainConfig(**settings, seed=seed, log_every=50, checkpoint_every=200)


def pictures(frame: str) -> stanford_cars.CarPictures:
    """The cars, cut out along their boxes ("crop") or the middle of the whole photograph ("frame")."""
    if frame == "crop":
        return stanford_cars.load(size=SIZE)
    sources, _ = stanford_cars.read_annotations(stanford_cars.find())
    return stanford_cars.load_folder(sources[0][0].parent, SIZE)


def train_row(name: str, seed: int, folder: Path) -> None:
    """Train a row to the end of its budget and store its weights with a card."""
    cars = pictures(ROWS[name]["frame"])
    images = cars.part(held_out=False).images
    config = configuration(name, seed, root_mean_square(images))
    bar = tqdm(total=config.images, desc=f"{name} seed {seed}", unit=" images", file=sys.stdout, mininterval=10)
    for record in train(config, images, folder, resume=True):
        bar.update(record.images - bar.n)
        bar.set_postfix_str(f"loss {record.loss:.4f}")
    bar.close()
    if record.stopped:
        sys.exit("stopped and saved; the same command goes on")
    card = {
        **{option: getattr(config, option) for option in (*pretrained.NEEDED, "sigma_data")},
        "size": SIZE,
        "parameters": networks.count_parameters(record.denoiser.net),
        "macs": networks.count_macs(record.denoiser.net, (3, SIZE, SIZE)),
        "images_seen": record.images,
        "steps": record.step,
        "seconds": round(record.seconds),
        "training_loss": round(record.loss, 5),
        **pretrained.machine(),
        "config": asdict(config),
    }
    pretrained.save(folder / "weights.safetensors", record.denoiser, card, dtype=torch.float32)
    if name in SAME_RUN.values():
        last = networks.build(**config.network)
        last.load_state_dict(load_checkpoint(folder / "checkpoint.pt")["net"])
        raw = Denoiser(last, record.denoiser.schedule, config.prediction_type, config.sigma_data)
        pretrained.save(folder / "last_weights.safetensors", raw, card, dtype=torch.float32)


def measure_row(name: str, seed: int, folder: Path, reference: Reference) -> dict:
    """Error per noise level on held-out cars, and `COUNT` drawn pictures against real ones."""
    weights = folder / ("last_weights.safetensors" if name in SAME_RUN else "weights.safetensors")
    about, pipe = ROWS[name], pipeline.load(weights)
    errors = error_per_timestep(pipe.denoiser, reference.held_out, TIMESTEPS)
    drawn = pipe(range(COUNT), sampler=SAMPLER, steps=STEPS)
    return {
        "row": name,
        "seed": seed,
        "about": about["about"],
        "frame": about["frame"],
        **pipe.card,
        "data": f"Stanford Cars train, {reference.num_train} at {SIZE}×{SIZE}",
        "licence": NON_COMMERCIAL,
        "held_out_error_of_x0_as_share_of_variance": {f"t={t}": round(e, 4) for t, e in zip(TIMESTEPS, errors)},
        "sampler": SAMPLER,
        "sampler_steps": STEPS,
        "sample_seeds": f"0 … {COUNT - 1}",
        **reference.evaluate(drawn),
    }


def ship(name: str, results: Path, runs: Path) -> Path:
    """Put a measured row's weights, in half precision, with all that was measured as their card,
    among those that come with the package."""
    card = json.loads((results / f"{name}-seed0.json").read_bytes())
    path = pretrained.FOLDER / f"cars32-{name}.safetensors"
    pretrained.save(path, pretrained.load(runs / f"{name}-seed0" / "weights.safetensors"), card)
    return path


def locked(folder: Path):
    """A file that only one process holds at a time, None where another has it; a process that dies
    lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="default: all of them, those that decide with two seeds")
    parser.add_argument("--seed", type=int, help="default: what is planned for the row")
    parser.add_argument("--list", action="store_true", help="say what there is and what is done")
    parser.add_argument("--ship", action="store_true", help="put the named rows' weights into the package")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        raise ValueError(f"no row named {unknown[0]!r}: --list shows them")
    if args.ship:
        for name in args.rows:
            print(ship(name, args.results, args.runs))
        return
    # The first seed of every row comes before the second of any.
    plan = [(name, seed) for seed in (0, 1) for name in args.rows or ROWS if seed == 0 or name in TWICE]
    if args.seed is not None:
        plan = [(name, args.seed) for name in args.rows or ROWS]
    references: dict[str, Reference] = {}
    for name, seed in plan:
        result = args.results / f"{name}-seed{seed}.json"
        folder = args.runs / f"{SAME_RUN.get(name, name)}-seed{seed}"
        if args.list:
            print(f"{name:24} seed {seed}  {'done' if result.exists() else '    '}  {ROWS[name]['about']}")
            continue
        if result.exists() or not (lock := locked(folder)):
            continue
        if not (folder / "weights.safetensors").exists():
            train_row(SAME_RUN.get(name, name), seed, folder)
        frame = ROWS[name]["frame"]
        if frame not in references:
            cars = pictures(frame)
            references[frame] = Reference(cars.part(held_out=False).images, cars.part(held_out=True).images)
        measured = measure_row(name, seed, folder, references[frame])
        write_json(result, measured)
        print(f"{name} seed {seed}: KID {measured['generated']['kid']}, floor {measured['floor']['kid']}", flush=True)
        lock.close()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
