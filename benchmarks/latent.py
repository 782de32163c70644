"""Is it worth drawing latents instead of pixels?  What an autoencoder loses, and what the rest costs.

    STANFORD_CARS_ROOT=… OMP_NUM_THREADS=2 python benchmarks/latent.py runs/pixels runs/latents-4 runs/latents-8

First the autoencoders alone: what they keep of held-out photographs (PSNR, SSIM), and the KID of
training photographs that went through them, which no network that draws their latents can be
expected to beat.  Then every network: a picture for the caption of each held-out photograph, in
several ways (`prompts.py` measures likewise), what its training took, the autoencoder's included, and
how long 16 cars take, every network in turn, as a ratio to the first.

Weights are names or paths; a folder means the weights.safetensors in it.  What is measured already is
kept, so the command may be interrupted; --speed measures times only.  Writes
benchmarks/results/latent.json and latent-speed.json.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
from prompts import cars_judge, draw, name_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.data import stanford_cars, to_float, to_uint8
from diffusion_utils.evaluation import Reference, reconstruction_quality
from diffusion_utils.files import write_json
from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.networks.blocks import ResBlock
from diffusion_utils.pipeline import DEFAULT, UNCONDITIONAL, Drawing

RESULTS = Path(__file__).parent / "results"
MIDDLE = {"guidance_scale": 3, "guide_conditional": False, "skip_layers": "middle"}
WAYS = {
    "not guided": {},
    "not guided, time shift 30": {"time_shift": 30},
    "classifier-free, w = 2": {"guidance_scale": 2},
    "classifier-free, w = 4": {"guidance_scale": 4},
    "without middle and caption, w = 3": MIDDLE,
    "without middle and caption, w = 3, time shift 30": {**MIDDLE, "time_shift": 30},
}


def middle(net: nn.Module) -> list[str]:
    """The name of the last residual block before the picture is enlarged again."""
    blocks = [name for name, part in net.named_modules() if ".encoder." in name and isinstance(part, ResBlock)]
    if not blocks:
        raise ValueError(
            "a network without residual blocks cannot be drawn with without its middle: choose ways with --only"
        )
    return blocks[-1:]


def setting(weights: str, way: str) -> dict:
    """How weights draw in one of the `WAYS`, where it differs from `DEFAULT`."""
    how = WAYS[way]
    return how | {"skip_layers": middle(pretrained.load(weights).net)} if "skip_layers" in how else how


def cost(weights: str) -> dict:
    """What a network is, and what its training took; its autoencoder's, where it has one."""
    card, denoiser = pretrained.card(weights), pretrained.load(weights)
    about = {
        "parameters": card["parameters"],
        "macs": card["macs"],
        "images_seen": card["images_seen"],
        "seconds_of_training": card["seconds"],
    }
    encoder = denoiser.autoencoder
    if encoder is not None:
        shape = encoder.latent_shape(card["size"], card["size"])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder.decode(torch.zeros(1, *shape))
        before = pretrained.card(pretrained.autoencoder_of(weights))
        about |= {
            "latent": list(shape),
            "autoencoders_seconds": before["seconds"],
            "decoders_parameters": networks.count_parameters(encoder.decoder),
            "decoders_macs": counter.get_total_flops() // 2,
        }
    return about


def lost(encoder: Autoencoder, train: torch.Tensor, held_out: torch.Tensor, reference: Reference) -> dict:
    """What of photographs does not come back."""
    some = train[torch.linspace(0, len(train) - 1, len(held_out)).round().long()]
    again = encoder.from_latents(encoder.to_latents(to_float(some)))
    return {**reconstruction_quality(encoder, held_out), **reference.evaluate(to_uint8(again))}


def times(all_weights: list[str], rounds: int) -> dict:
    """Seconds for 16 cars, not guided, 20 steps, every network in turn; and ratios to the first."""
    seconds = {weights: [] for weights in all_weights}
    for _ in range(rounds + 1):
        for weights, taken in seconds.items():
            pipe = replace(pipeline.load(weights), drawing=DEFAULT)
            started = time.perf_counter()
            pipe(range(16), UNCONDITIONAL)
            taken.append(time.perf_counter() - started)
    first = seconds[all_weights[0]][1:]  # the first round warms up
    return {
        "pictures": 16,
        "steps": 20,
        "threads": torch.get_num_threads(),
        **pretrained.machine(),
        "networks": {
            name_of(weights): {
                "seconds": round(median(taken[1:]), 3),
                "ratio": round(median(each / other for each, other in zip(taken[1:], first)), 3),
            }
            for weights, taken in seconds.items()
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="of networks that take captions")
    parser.add_argument(
        "--autoencoders", nargs="*", default=["stanford-cars-autoencoder-4", "stanford-cars-autoencoder-8"]
    )
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="WAY", help=f"some of: {'; '.join(WAYS)}")
    parser.add_argument("--count", type=int, default=748, help="how many held-out captions")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring times")
    parser.add_argument("--speed", action="store_true", help="measure times only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    args.weights = [str(Path(w) / "weights.safetensors") if Path(w).is_dir() else w for w in args.weights]
    for weights in args.weights:
        if "prompts" not in pretrained.card(weights):
            raise ValueError(f"{weights} takes no prompts: train some with --condition caption")
    size, names = pretrained.card(args.weights[0])["size"], [name_of(weights) for weights in args.weights]
    if len(set(names)) < len(names) or {pretrained.card(weights)["size"] for weights in args.weights} != {size}:
        raise ValueError(
            "weights are kept by their names and drawn at one size: give weights of different names and one size"
        )
    if args.speed:
        found = times(args.weights, args.rounds)
        write_json(args.results / "latent-speed.json", found)
        for name, each in found["networks"].items():
            print(f"{name}: {each['seconds']:.2f} s, ratio {each['ratio']:.2f}")
        return
    path = args.results / "latent.json"
    found = json.loads(path.read_bytes()) if path.exists() else {"autoencoders": {}, "networks": []}
    cars = stanford_cars.load(size=size)
    train, held_out = cars.part(held_out=False).images, cars.part(held_out=True).images
    for name in args.autoencoders:
        known, seen = found["autoencoders"].get(name, {}), pretrained.card(name)["images_seen"]
        if (known.get("images_seen"), known.get("count")) != (seen, args.count):
            net = pretrained.load_autoencoder(name)
            row = lost(net, train, held_out[: args.count], Reference(train, held_out))
            about = {"latent": list(net.latent_shape(size, size)), "images_seen": seen, "count": args.count}
            found["autoencoders"][name] = {**about, **row, **pretrained.machine()}
            write_json(path, found)
        row = found["autoencoders"][name]
        print(
            f"{name}: {row['psnr']} dB, SSIM {row['ssim']}, KID × 1000 {1000 * row['generated']['kid']:.1f}", flush=True
        )
    texts, real, judge = cars_judge(args, size)
    for weights in args.weights:
        about, name = cost(weights), name_of(weights)
        for way in args.only or WAYS:
            if any(
                (row["weights"], row["way"], row["images_seen"], row["count"])
                == (name, way, about["images_seen"], len(texts))
                for row in found["networks"]
            ):
                continue
            how = setting(weights, way)
            row = {
                "way": way,
                "weights": name,
                **about,
                **asdict(Drawing(**how).over(DEFAULT)),
                "count": len(texts),
                **pretrained.machine(),
                "real": real,
                **judge(draw(weights, texts, how)),
            }
            found["networks"].append(row)
            write_json(path, found)
            scores = row["generated"]
            shown = {key: round(scores[key], 3) for key in ("precision", "recall")}
            shown |= {key: row[key] for key in ("vivid colour", "body")}
            print(f"{name}, {way}: KID × 1000 {1000 * scores['kid']:.0f}, {shown}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
