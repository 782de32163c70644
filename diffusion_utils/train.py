"""Train a denoiser from the command line.

    python -m diffusion_utils.train --data toy_cars --minutes 3 --out runs/toy
    python -m diffusion_utils.train --data stanford_cars --minutes 120 --out runs/cars
    python -m diffusion_utils.train --data stanford_cars --minutes 30 --out runs/student \
        --objective consistency --start runs/cars/weights.safetensors --learning-rate 1e-4
    accelerate launch -m diffusion_utils.train --data stanford_cars --minutes 15 --out runs/cars

The folder receives checkpoint.pt, log.jsonl, a grid of samples now and then, and at the end
weights.safetensors with its model card; with --snapshot-images the averaged weights on the way there
too, in snapshots/.  Ctrl-C saves and leaves; --resume goes on.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import pretrained
from diffusion_utils.config import BUDGET, FREE_ON_RESUME, TrainConfig
from diffusion_utils.data import root_mean_square, stanford_cars, toy_cars
from diffusion_utils.evaluation import error_per_timestep
from diffusion_utils.files import write_atomically
from diffusion_utils.networks import count_parameters
from diffusion_utils.plotting import save_grid
from diffusion_utils.sampling import sample
from diffusion_utils.training import train

# Both under a million parameters.  The first has no way around its bottleneck, and does its work at
# 16×16 and 8×8, where a CPU computes fastest; it is the network of notebooks 02 and 03.
CARS = {
    "name": "resnet", "channels": [64, 96], "depth": [1, 3], "decoder_channels": [64, 32],
    "decoder_depth": 1, "stem": 4, "embedding_dim": 64,
}  # fmt: skip
# What notebook 05 led to: twice as fine a stem, two more halvings, skips, attention at 8×8 and 4×4, and
# a head that answers whole patches.
CARS_1M = {
    "name": "resnet", "channels": [32, 64, 80, 96], "decoder_depth": 1, "stem": 2, "skip": "add",
    "upsample": "nearest", "patch_head": True, "attention": [8, 16], "embedding_dim": 48,
}  # fmt: skip
TOY = {"name": "resnet", "channels": [48, 64, 96], "decoder_channels": [64, 48], "decoder_depth": 1,
       "stem": 2, "embedding_dim": 64}  # fmt: skip
PRESETS = {
    "stanford_cars": {"network": CARS_1M, "size": 64},
    "toy_cars": {"network": TOY, "size": 32},
    "folder": {"network": CARS_1M, "size": 64},
}
CONSISTENCY_DRAWING = {"sampler": "consistency", "steps": 2}
COUNTED = ("images_seen", "steps", "seconds")  # of a model card, the start's included
NON_COMMERCIAL = "trained on Stanford Cars (Krause et al. 2013): for non-commercial research only"
LICENCES = {"stanford_cars": NON_COMMERCIAL, "toy_cars": "Apache-2.0, like the code"}


def load_data(data: str, size: int) -> tuple[Tensor, Tensor, str]:
    """Training pictures, held-out pictures and a description, by the name on the command line."""
    if data == "toy_cars":
        count, held_out = 8192, 512
        images = toy_cars.load(count + held_out, size).images
        return images[:count], images[count:], f"toy cars, {count} drawn at {size}×{size}"
    cars = stanford_cars.load(size=size) if data == "stanford_cars" else stanford_cars.load_folder(data, size)
    train_part, rest = cars.part(held_out=False), cars.part(held_out=True)
    if len(train_part.images) == 0 or len(rest.images) < 2:  # too few pictures to spare any
        train_part = rest = cars
    what = "Stanford Cars train" if data == "stanford_cars" else "own pictures"
    return train_part.images, rest.images, f"{what}, {len(train_part.images)} cropped to {size}×{size}"


def load_cond(data: str, size: int, condition: str) -> Tensor:
    """What describes each training picture of `load_data`: for "body_type" a one-hot row per picture,
    float32 (N, 9), in the order of `stanford_cars.BODY_TYPES`."""
    if data != "stanford_cars" or condition != "body_type":
        raise ValueError(f"no {condition!r} is known of {data}: --condition body_type goes with --data stanford_cars")
    labels = stanford_cars.load(size=size).part(held_out=False).body_types()
    return F.one_hot(labels, len(stanford_cars.BODY_TYPES)).float()


def model_card(
    config: TrainConfig, record, description: str, held_out: Tensor, run: dict, cond: Tensor | None = None
) -> dict:
    """What is known about a run, for `pretrained.save`; `run` as in `configure`."""
    measured = [int(f * (config.num_train_timesteps - 1)) for f in (0.1, 0.3, 0.5, 0.7, 0.9)]
    held_out = held_out[:512]
    varied = bool((held_out != held_out[:1]).any())  # one picture has no variance to compare with
    errors = error_per_timestep(record.denoiser, held_out, measured) if varied else []
    shares = {} if cond is None else {"conditions": dict(zip(stanford_cars.BODY_TYPES, cond.mean(0).tolist()))}
    how = {"drawing": CONSISTENCY_DRAWING} if config.objective == "consistency" else {}
    before = run["before"] or {}
    start = {"start": before} if before else {}
    size = run["size"]
    used = (record.images, record.step, round(record.seconds))
    return {
        "network": config.network,
        "prediction_type": config.prediction_type,
        "sigma_data": config.sigma_data,
        "schedule": config.schedule,
        "num_train_timesteps": config.num_train_timesteps,
        "zero_terminal_snr": config.zero_terminal_snr,
        "size": size,
        **shares,
        **how,
        **start,
        "parameters": count_parameters(record.denoiser.net),
        "macs": pretrained.count_macs(record.denoiser.net, (3, size, size)),
        "data": description,
        "licence": LICENCES.get(run["data"], "that of the pictures it was trained on"),
        # What the run began with has been trained, too: its pictures, steps and seconds count.
        **{name: done + before.get(name, 0) for name, done in zip(COUNTED, used)},
        **pretrained.machine(),
        "seed": config.seed,
        "training_loss": round(record.loss, 5),
        "held_out_error_of_x0_as_share_of_variance": {
            f"t={t}": round(error, 4) for t, error in zip(measured, errors)
        },
        "config": asdict(config),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    defaults = TrainConfig(steps=1)
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_utils.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--data", default="toy_cars", help="toy_cars, stanford_cars, or a folder of pictures")
    add("--out", type=Path, required=True, help="folder of the run")
    add("--resume", action="store_true", help="go on from the checkpoint in --out, with its settings")
    add("--steps", type=int)
    add("--images", type=int, help="stop after this many pictures")
    add("--minutes", type=float, help="stop after this much training time")
    add("--size", type=int, help="pixels; default 64, toy cars 32")
    add("--start", help="weights to begin with, a name or a path; network, schedule and question are theirs")
    add("--network", type=json.loads, help='JSON, e.g. \'{"name": "resnet", "stem": 4, "channels": [64, 96]}\'')
    for name in ("objective", "prediction_type", "schedule", "timestep_sampling", "optimizer",
                 "mixed_precision", "compile"):  # fmt: skip
        add(f"--{name.replace('_', '-')}", default=getattr(defaults, name))
    for name in ("num_train_timesteps", "batch_size", "warmup_steps", "seed"):
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    for name in ("log_every", "checkpoint_every"):
        add(f"--{name.replace('_', '-')}", type=int, help=f"steps; default {getattr(defaults, name)}")
    for name in ("learning_rate", "weight_decay", "decay_fraction", "ema_decay"):
        add(f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name))
    add("--min-snr-gamma", type=float, help="weigh errors of x̂₀ by the signal-to-noise ratio, up to this")
    add("--snr-floor", type=float, default=defaults.snr_floor, help="with --min-snr-gamma: the least weight")
    add("--sigma-data", type=float, help="for edm: the pictures' root mean square; default: measured")
    add("--zero-terminal-snr", action="store_true")
    add("--condition", choices=["body_type"], help="tell the network what kind of car each picture shows")
    add("--cond-dropout", type=float, default=defaults.cond_dropout, help="share of the pictures it is not told of")
    add("--sample-every", type=int, default=2000, help="draw a grid every so many steps; 0: only at the end")
    add("--snapshot-images", type=int, default=0, help="keep the averaged weights every so many pictures; 0: never")
    return parser.parse_args(arguments)


KEPT = ("data", "size", "condition", "start", "before", "sample_every", "snapshot_images")


def configure(args: argparse.Namespace) -> tuple[TrainConfig, dict]:
    """What to learn, and the rest of what a run is (`KEPT`): of the command line, or, to resume, of
    the run's own run.json."""
    stored = args.out / "run.json"
    if args.resume and stored.is_file():
        about = json.loads(stored.read_text())
        budget = {name: getattr(args, name) for name in BUDGET}
        asked = budget if any(value is not None for value in budget.values()) else {}
        asked |= {k: getattr(args, k) for k in FREE_ON_RESUME - {*BUDGET} if getattr(args, k) is not None}
        run = {name: about.get(name, getattr(args, name, None)) for name in KEPT}
        return TrainConfig(**{**about["config"], **asked}), run
    preset = PRESETS.get(args.data, PRESETS["folder"])
    defaults = asdict(TrainConfig(steps=1))
    options = {name: getattr(args, name) for name in defaults if hasattr(args, name)}
    options |= {name: defaults[name] for name in ("log_every", "checkpoint_every") if options[name] is None}
    options["network"] = dict(args.network or preset["network"])
    if args.condition:
        options["network"]["cond_dim"] = len(stanford_cars.BODY_TYPES)
    if args.sigma_data is None:
        del options["sigma_data"]
    run = {name: getattr(args, name, None) for name in KEPT} | {"size": args.size or preset["size"]}
    if args.start:
        own = ("network", "size", "condition", "sigma_data")
        own = [name for name in own if getattr(args, name)]
        own += [name for name in pretrained.NEEDED if name != "network" and options[name] != defaults[name]]
        if own:
            raise ValueError(f"--start brings its own {own[0]}: leave --{own[0].replace('_', '-')} out")
        about = pretrained.card(args.start)
        options |= {name: about[name] for name in (*pretrained.NEEDED, "sigma_data") if name in about}
        run |= {"size": about.get("size", run["size"]), "condition": "body_type" if "conditions" in about else None}
        run["before"] = {"name": Path(args.start).stem} | {k: about.get(k, 0) for k in COUNTED}
    return TrainConfig(**options), run


def write_run(out: Path, config: TrainConfig, run: dict) -> None:
    """What `--resume` needs beside the checkpoint."""
    text = json.dumps({**run, "config": asdict(config)}, indent=2) + "\n"
    write_atomically(out / "run.json", lambda path: path.write_text(text))


def keep_snapshot(out: Path, every: int, record, about: Callable[[], dict]) -> None:
    """The averaged weights, once for every `every` pictures seen; `about` makes their card."""
    reached = record.images // every * every
    path = out / "snapshots" / f"weights_{reached:09d}.safetensors"
    if reached and not path.with_suffix(".json").exists():  # the card is written last
        pretrained.save(path, record.denoiser, about())


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    config, run = configure(args)
    data, size = run["data"], run["size"]
    pictures, held_out, description = load_data(data, size)
    cond = load_cond(data, size, run["condition"]) if run["condition"] else None
    stored = args.resume and (args.out / "run.json").is_file()  # then it was measured already
    if config.prediction_type == "edm" and args.sigma_data is None and not stored and not args.start:
        config = replace(config, sigma_data=root_mean_square(pictures))
    is_main = Accelerator().is_main_process  # of several, one writes and talks
    columns, seeds = 8, range(32)
    how = CONSISTENCY_DRAWING if config.objective == "consistency" else {}
    begun = args.resume and (args.out / "checkpoint.pt").exists()
    start = pretrained.load(run["start"]).net if run["start"] and not begun else None
    bar = None
    for record in train(config, pictures, args.out, args.resume, cond, start):
        if not is_main:
            continue
        device = next(record.denoiser.net.parameters()).device
        if bar is None:
            write_run(args.out, config, run)
            bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
        bar.n = round(100 * config.progress(record.step, record.seconds), 2)
        bar.set_postfix_str(
            f"step {record.step}, loss {record.loss:.4f}, {record.images_per_second:.0f} images/s"
        )
        due = run["sample_every"] and record.step % run["sample_every"] < config.log_every
        if due and record.images_per_second:
            drawn = sample(record.denoiser, seeds, (3, size, size), device=device, **how)
            save_grid(drawn, args.out / f"samples_{record.step:07d}.png", columns)
        about = partial(model_card, config, record, description, held_out, run, cond)
        if run["snapshot_images"]:
            keep_snapshot(args.out, run["snapshot_images"], record, about)
    if not is_main:
        return
    bar.close()
    if not record.images_per_second:
        print(f"{args.out} had already used its budget: raise --steps, --images or --minutes to go on")
    if record.stopped:
        print(f"stopped at step {record.step} and saved; go on with --resume --out {args.out}")
        return
    card = about()
    pretrained.save(args.out / "weights.safetensors", record.denoiser, card)
    drawn = sample(record.denoiser, range(64), (3, size, size), device=device, **how)
    save_grid(drawn, args.out / "samples.png", columns)
    print(f"{card['parameters']:,} parameters, {record.images:,} images: {args.out}/weights.safetensors, samples.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        sys.exit(f"error: {error}")  # one clear sentence; a traceback would bury it
