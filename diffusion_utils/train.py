"""Train a denoiser from the command line.

    python -m diffusion_utils.train --data toy_cars --minutes 3 --out runs/toy
    python -m diffusion_utils.train --data stanford_cars --minutes 120 --out runs/cars
    python -m diffusion_utils.train --data stanford_cars --minutes 30 --out runs/student \
        --objective consistency --start runs/cars/weights.safetensors --learning-rate 1e-4
    accelerate launch -m diffusion_utils.train --data stanford_cars --minutes 15 --out runs/cars

The folder receives checkpoint.pt, log.jsonl, a grid of samples now and then, and at the end
weights.safetensors with its model card; with --snapshot-images the averaged weights on the way there
too, in snapshots/, and with --autoencoder a copy of that.  Ctrl-C saves and leaves; --resume goes on.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import drawing, pretrained
from diffusion_utils.config import BUDGET, FREE_ON_RESUME, TrainConfig
from diffusion_utils.data import root_mean_square, to_float
from diffusion_utils.datasets import (
    CONDITIONS,
    LICENCES,
    as_latents,
    conditioned,
    for_latents,
    load_cond,
    load_data,
    mirrors,
)
from diffusion_utils.evaluation import error_per_timestep, reconstruction_quality
from diffusion_utils.files import write_atomically
from diffusion_utils.guidance import Guided, chosen_by_seed
from diffusion_utils.networks import count_parameters
from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.networks.super_resolution import low_resolution_cond, shrink
from diffusion_utils.plotting import save_grid
from diffusion_utils.prediction import Denoiser
from diffusion_utils.presets import default_network, default_size
from diffusion_utils.sampling import sample
from diffusion_utils.training import train

CONSISTENCY_DRAWING = {"sampler": "consistency", "steps": 2}
TOLD_BY = {"body_type": "conditions", "caption": "prompts"}  # the entry of a model card that tells
OWN_AUTOENCODER = "autoencoder.safetensors"  # in the folder of a run that learns latents
COUNTED = ("images_seen", "steps", "seconds")  # of a model card, the start's included


def model_card(
    config: TrainConfig, record, description: str, held_out: Tensor, run: dict, described: dict | None = None
) -> dict:
    """What is known about a run, for `pretrained.save`; `run` as in `configure`, `described` what
    `load_cond` says."""
    measured = [int(f * (config.num_train_timesteps - 1)) for f in (0.1, 0.3, 0.5, 0.7, 0.9)]
    held_out = held_out[:512]
    varied = bool((held_out != held_out[:1]).any())  # one picture has no variance to compare with
    cond, quality = None, "held_out_error_of_x0_as_share_of_variance"
    if run["condition"] == "low_resolution":  # without noise; other networks are told nothing here
        small = shrink(to_float(held_out), record.denoiser.net.scale)
        level = torch.zeros(len(small), dtype=torch.int64)
        cond = low_resolution_cond(small, record.denoiser.schedule, level, torch.zeros_like(small))
    if config.objective == "autoencoder":
        errors = reconstruction_quality(record.denoiser.net, held_out)
        quality = "held_out_reconstruction"
    else:
        found = error_per_timestep(record.denoiser, held_out, measured, cond=cond) if varied else []
        errors = {f"t={t}": round(error, 4) for t, error in zip(measured, found)}
    how = {"drawing": CONSISTENCY_DRAWING} if config.objective == "consistency" else {}
    how |= {"autoencoder": run["autoencoder"]} if run["autoencoder"] else {}
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
        **(described or {}),
        **how,
        **start,
        "parameters": count_parameters(record.denoiser.net),
        "macs": pretrained.count_macs(record.denoiser.net, tuple(held_out.shape[1:])),
        "data": description,
        "licence": LICENCES.get(run["data"], "that of the pictures it was trained on"),
        # What the run began with has been trained, too: its pictures, steps and seconds count.
        **{name: done + before.get(name, 0) for name, done in zip(COUNTED, used)},
        **pretrained.machine(),
        "seed": config.seed,
        "training_loss": round(record.loss, 5),
        quality: errors,
        "config": asdict(config),
    }


@torch.no_grad()
def show(
    denoiser: Denoiser,
    count: int,
    config: TrainConfig,
    run: dict,
    described: dict,
    held_out: Tensor,
    autoencoder: Autoencoder | None,
) -> Tensor:
    """What the network can do by now, (count, 3, H, W): pictures from noise (seeds 0, 1, …), by the
    captions on the card where it takes captions; or held-out pictures, reconstructed or enlarged."""
    device = next(denoiser.net.parameters()).device
    seeds, some = range(count), held_out[:count]
    if config.objective == "autoencoder":
        return denoiser.net(to_float(some.to(device)))[0]
    if run["condition"] == "low_resolution":
        small = shrink(to_float(some), denoiser.net.scale)
        return drawing.enlarge(denoiser, small, range(len(some)), noise_level=0, device=device)
    if "prompts" in described:
        texts = [described["prompts"][i] for i in chosen_by_seed([1.0] * len(described["prompts"]), seeds)]
        denoiser = Guided(denoiser, denoiser.net.tokenizer.encode(texts).to(device))
    how = CONSISTENCY_DRAWING if config.objective == "consistency" else {}
    drawn = sample(denoiser, seeds, tuple(held_out.shape[1:]), device=device, clamp=autoencoder is None, **how)
    return drawn if autoencoder is None else autoencoder.to(device).from_latents(drawn)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    defaults = TrainConfig(steps=1)
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_utils.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="toy_cars", help="toy_cars, stanford_cars, or a folder of pictures")
    add("--out", type=Path, required=True, help="folder of the run")
    add("--resume", action="store_true", help="go on from the checkpoint in --out, with its settings")
    add("--steps", type=int)
    add("--images", type=int, help="stop after this many pictures")
    add("--minutes", type=float, help="stop after this much training time")
    add("--size", type=int, help="pixels; default 64, toy cars 32")
    add("--autoencoder", help="weights of one: learn its latents of the pictures instead of their pixels")
    add("--start", help="weights to begin with, a name or a path; network, schedule and question are theirs")
    add("--network", type=json.loads, help='JSON, e.g. \'{"name": "resnet", "stem": 4, "channels": [64, 96]}\'')
    for name in (
        "objective",
        "prediction_type",
        "schedule",
        "timestep_sampling",
        "optimizer",
        "mixed_precision",
        "compile",
    ):
        add(f"--{name.replace('_', '-')}", default=getattr(defaults, name))
    for name in ("num_train_timesteps", "batch_size", "warmup_steps", "seed"):
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    for name in ("log_every", "checkpoint_every"):
        add(f"--{name.replace('_', '-')}", type=int, help=f"steps; default {getattr(defaults, name)}")
    for name in ("learning_rate", "weight_decay", "decay_fraction", "ema_decay", "kl_weight"):
        add(f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name))
    add("--min-snr-gamma", type=float, help="weigh errors of x̂₀ by the signal-to-noise ratio, up to this")
    add("--snr-floor", type=float, default=defaults.snr_floor, help="with --min-snr-gamma: the least weight")
    add("--sigma-data", type=float, help="for edm: the pictures' root mean square; default: measured")
    add("--zero-terminal-snr", action="store_true")
    add(
        "--condition",
        choices=CONDITIONS,
        help="what the network is told of each picture: its body type, a caption "
        "in words (text to image), or the picture itself at half the size (super-resolution)",
    )
    add("--cond-dropout", type=float, default=defaults.cond_dropout, help="share of the pictures it is not told of")
    add("--sample-every", type=int, default=2000, help="draw a grid every so many steps; 0: only at the end")
    add("--snapshot-images", type=int, default=0, help="keep the averaged weights every so many pictures; 0: never")
    return parser.parse_args(arguments)


KEPT = ("data", "size", "condition", "autoencoder", "start", "before", "sample_every", "snapshot_images")


def configure(args: argparse.Namespace) -> tuple[TrainConfig, dict]:
    """What to learn, and the rest of what a run is (`KEPT`): of the command line, or, to resume, of
    the run's own run.json."""
    stored = args.out / "run.json"
    if args.resume and stored.is_file():
        about = json.loads(stored.read_bytes())
        budget = {name: getattr(args, name) for name in BUDGET}
        asked = budget if any(value is not None for value in budget.values()) else {}
        asked |= {k: getattr(args, k) for k in FREE_ON_RESUME - {*BUDGET} if getattr(args, k) is not None}
        run = {name: about.get(name, getattr(args, name, None)) for name in KEPT}
        if run["autoencoder"] == OWN_AUTOENCODER:
            run["autoencoder"] = str(args.out / OWN_AUTOENCODER)
        return TrainConfig(**{**about["config"], **asked}), run
    if args.objective == "autoencoder" and (args.condition or args.autoencoder):
        raise ValueError(
            "an autoencoder is told nothing and needs no other one: leave --condition and --autoencoder out"
        )
    if args.autoencoder and args.condition == "low_resolution":
        raise ValueError("super-resolution works on pixels here: leave --autoencoder out")
    defaults = asdict(TrainConfig(steps=1))
    options = {name: getattr(args, name) for name in defaults if hasattr(args, name)}
    options |= {name: defaults[name] for name in ("log_every", "checkpoint_every") if options[name] is None}
    size = args.size or default_size(args.data)
    autoencoder = pretrained.load_autoencoder(args.autoencoder) if args.autoencoder and not args.start else None
    network = args.network or default_network(args.data, args.condition, args.objective, autoencoder)
    if autoencoder:
        network = for_latents(network, autoencoder)
    if args.sigma_data is None:
        del options["sigma_data"]
    run = {name: getattr(args, name, None) for name in KEPT} | {"size": size}
    if args.start:
        own = ("network", "size", "sigma_data", "autoencoder") + ("condition",) * (args.condition != "caption")
        own = [name for name in own if getattr(args, name)]
        if own == ["autoencoder"] and not pretrained.autoencoder_of(args.start):
            raise ValueError(f"{args.start} draws pixels and cannot learn latents: leave --start or --autoencoder out")
        own += [name for name in pretrained.NEEDED if name != "network" and options[name] != defaults[name]]
        if own:
            raise ValueError(f"--start brings its own {own[0]}: leave --{own[0].replace('_', '-')} out")
        about = pretrained.card(args.start)
        options |= {name: about[name] for name in (*pretrained.NEEDED, "sigma_data") if name in about}
        network, size = about["network"], about.get("size", size)
        told = next((name for name, entry in TOLD_BY.items() if entry in about), None)
        if network["name"] == "super_resolution":
            told = "low_resolution"
        run |= {"size": size, "condition": args.condition or told, "autoencoder": pretrained.autoencoder_of(args.start)}
        run["before"] = {"name": Path(args.start).stem} | {k: about.get(k, 0) for k in COUNTED}
        options["network"] = (
            network if run["condition"] == told else conditioned(network, args.condition, args.data, size)
        )
    else:
        if network.get("name") == "super_resolution":
            run["condition"] = "low_resolution"
        options["network"] = conditioned(network, run["condition"], args.data, size)
    options["flip"] = (
        mirrors(run["data"], run["condition"]) and not run["autoencoder"]
    )  # latents are mirrored as pictures, before
    return TrainConfig(**options), run


def write_run(out: Path, config: TrainConfig, run: dict) -> dict:
    """What `--resume` needs beside the checkpoint; an autoencoder that does not ship with the package
    is copied there, so that the folder is complete.  Returns `run` with the autoencoder's new place."""
    inside, written = str(out / OWN_AUTOENCODER), dict(run)
    if run["autoencoder"] not in (None, *pretrained.names()):
        if run["autoencoder"] != inside:
            pretrained.copy(run["autoencoder"], inside)
        written["autoencoder"], run = OWN_AUTOENCODER, {**run, "autoencoder": inside}
    text = json.dumps({**written, "config": asdict(config)}, indent=2) + "\n"
    write_atomically(out / "run.json", lambda path: path.write_text(text, encoding="utf-8"))
    return run


def scaled(autoencoder: Autoencoder, pictures: Tensor, about: Callable[[], dict]) -> dict:
    """The card of an autoencoder, whose scale is set before it is saved with it."""
    some = pictures[:: max(1, len(pictures) // 1024)]
    autoencoder.set_scale(to_float(some).to(next(autoencoder.parameters()).device))
    return about()


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
    pictures, held_out, description = load_data(data, size, run["condition"])
    cond, described = load_cond(data, size, run["condition"], config.network) if run["condition"] else (None, {})
    autoencoder = pretrained.load_autoencoder(run["autoencoder"]) if run["autoencoder"] else None
    if autoencoder:
        pictures, cond = as_latents(autoencoder, pictures, cond, mirrors(data, run["condition"]))
        held_out, _ = as_latents(autoencoder, held_out)
        description += f", as latents of {autoencoder.latent_shape(size, size)}"
    stored = args.resume and (args.out / "run.json").is_file()  # then it was measured already
    if config.prediction_type == "edm" and args.sigma_data is None and not stored and not args.start:
        config = replace(config, sigma_data=root_mean_square(pictures))
    is_main = Accelerator().is_main_process  # of several, one writes and talks
    columns = 8
    begun = args.resume and (args.out / "checkpoint.pt").exists()
    start = pretrained.load(run["start"]).net if run["start"] and not begun else None
    bar = None
    for record in train(config, pictures, args.out, args.resume, cond, start):
        if not is_main:
            continue
        if bar is None:
            run = write_run(args.out, config, run)
            bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
        bar.n = round(100 * config.progress(record.step, record.seconds), 2)
        bar.set_postfix_str(f"step {record.step}, loss {record.loss:.4f}, {record.images_per_second:.0f} images/s")
        due = run["sample_every"] and record.step % run["sample_every"] < config.log_every
        if due and record.images_per_second:
            drawn = show(record.denoiser, 32, config, run, described, held_out, autoencoder)
            save_grid(drawn, args.out / f"samples_{record.step:07d}.png", columns)
        about = partial(model_card, config, record, description, held_out, run, described)
        if config.objective == "autoencoder":
            about = partial(scaled, record.denoiser.net, pictures, about)
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
    drawn = show(record.denoiser, 64, config, run, described, held_out, autoencoder)
    save_grid(drawn, args.out / "samples.png", columns)
    print(f"{card['parameters']:,} parameters, {record.images:,} images: {args.out}/weights.safetensors, samples.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        sys.exit(f"error: {error}")  # one clear sentence; a traceback would bury it
