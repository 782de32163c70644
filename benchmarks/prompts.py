"""Do pictures show what their prompts ask for?  Prompt accuracy per guidance scale.

    python benchmarks/prompts.py --weights toy-cars-text
    STANFORD_CARS_ROOT=… python benchmarks/prompts.py --weights stanford-cars-text

Toy cars: every one of the 288 kinds, the same number of times; body, colour, direction and time are
read back by a classifier that is trained on real toy cars first, and whose own accuracy comes first.  Kinds
that training never showed are counted apart.

Stanford Cars: the captions of the held-out photographs.  The colour is measured from the pixels, as for
the captions, and the body type is read from features by a linear map fitted to the training
photographs; what the photographs themselves score comes first.  KID says what guidance does to quality.

What is measured already is kept, so the command may be interrupted.  Writes
benchmarks/results/prompts-NAME.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion_utils import pipeline, pretrained
from diffusion_utils.data import stanford_cars, toy_cars
from diffusion_utils.data.captions import captions, colours
from diffusion_utils.evaluation import Reference, features
from diffusion_utils.evaluation.attributes import FeatureReader, accuracy, every_kind, train_reader
from diffusion_utils.files import write_json
from diffusion_utils.pipeline import DEFAULT, Drawing

RESULTS = Path(__file__).parent / "results"
SHIFT = {"time_shift": 30}
VIVID = ("red", "orange", "yellow", "green", "blue")  # the others run into each other, in photographs, too
MIDDLE = ["net.encoder.7"]
TOY_WAYS = {f"w = {scale:g}": {"guidance_scale": scale} for scale in (0, 1, 1.5, 2, 3, 4, 6, 8)} | {
    "w = 8, t ≥ 400 only": {"guidance_scale": 8, "interval": [400, 999]}
}
CARS_WAYS = {
    "not guided": SHIFT,
    **{f"classifier-free, w = {scale:g}": {**SHIFT, "guidance_scale": scale} for scale in (2, 4)},
    "without encoder.7, w = 3": {**SHIFT, "guidance_scale": 3, "skip_layers": MIDDLE},
    **{
        f"without encoder.7 and caption, w = {scale:g}": {
            **SHIFT,
            "guidance_scale": scale,
            "skip_layers": MIDDLE,
            "guide_conditional": False,
        }
        for scale in (2, 3, 4)
    },
}


def draw(weights: str, texts: list[str], way: dict) -> Tensor:
    """One picture for each text, its seed being its place in the list."""
    return replace(pipeline.load(weights), drawing=DEFAULT)(range(len(texts)), prompt=texts, **way)


def toy_judge(args: argparse.Namespace, size: int) -> tuple[list[str], dict, Callable[[Tensor], dict]]:
    """Prompts, what real pictures score, and a function that scores drawn ones."""
    reader = train_reader(toy_cars.load(4096, size, seed=1))  # every kind, and no picture of the denoiser's
    real = toy_cars.load(1024, size, seed=2)
    kinds = [every_kind(held_out) for held_out in (False, True)]
    texts = [text for captions, _ in kinds for text in captions * args.times]
    asked = [labels.repeat(args.times, 1) for _, labels in kinds]

    def judge(pictures: Tensor) -> dict:
        seen, held_out = reader.read(pictures).split([len(labels) for labels in asked])
        return {"seen": rounded(accuracy(seen, asked[0])), "held_out": rounded(accuracy(held_out, asked[1]))}

    return texts, rounded(accuracy(reader.read(real.images), real.labels)), judge


def cars_judge(args: argparse.Namespace, size: int) -> tuple[list[str], dict, Callable[[Tensor], dict]]:
    """As `toy_judge`, for photographs."""
    cars = stanford_cars.load(size=size)
    train, held_out = cars.part(held_out=False), cars.part(held_out=True)
    reference = Reference(train.images, held_out.images)
    reader = FeatureReader(reference.seen_features, train.body_types().repeat(2))  # mirrored ones, too
    few = slice(args.count)
    texts, bodies, paints = (
        [each[0] for each in captions(held_out)][few],
        held_out.body_types()[few],
        colours(held_out.images)[few],
    )

    def judge(pictures: Tensor, with_kid: bool = True) -> dict:
        rows = features.features(pictures)
        colour = torch.tensor([a == b for a, b in zip(colours(pictures), paints)])
        body = reader.read(rows) == bodies
        vivid = torch.tensor([paint in VIVID for paint in paints])
        right = {"colour": colour, "vivid colour": colour[vivid], "body": body, "all": colour & body}
        shares = rounded({name: part.double().mean().item() for name, part in right.items()})
        return {**shares, **(reference.evaluate(pictures) if with_kid else {})}

    return texts, judge(held_out.images[few], with_kid=False), judge


def name_of(weights: str) -> str:
    """Of shipped weights their own; of a run's weights or snapshots that of its folder."""
    path = Path(weights)
    if path.parent.name == "snapshots":
        return path.parent.parent.name
    return path.parent.name if path.stem == "weights" else path.stem


def rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--times", type=int, default=2, help="toy cars: pictures of each kind")
    parser.add_argument("--count", type=int, default=748, help="Stanford Cars: how many held-out captions")
    parser.add_argument("--only", nargs="+", help="names of some ways of drawing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    card = pretrained.card(args.weights)
    if "prompts" not in card:
        raise ValueError(f"{args.weights} takes no prompts: train some with --condition caption")
    toy = card["data"].startswith("toy cars")
    ways = TOY_WAYS if toy else CARS_WAYS
    unknown = [name for name in args.only or () if name not in ways]
    if unknown:
        raise ValueError(f"no way of drawing named {unknown[0]!r}: choose among {', '.join(ways)}")
    texts, real, judge = (toy_judge if toy else cars_judge)(args, card["size"])
    print(f"real pictures: {real}")
    name = name_of(args.weights)
    path = args.results / f"prompts-{name}.json"
    rows = json.loads(path.read_bytes()) if path.exists() else []
    known = {(row["way"], row["images_seen"], row["count"]) for row in rows}
    for way in args.only or ways:
        if (way, card["images_seen"], len(texts)) in known:
            continue
        started = time.perf_counter()
        pictures = draw(args.weights, texts, ways[way])
        row = {
            "way": way,
            "weights": name,
            "images_seen": card["images_seen"],
            "seconds_of_training": card["seconds"],
            **asdict(Drawing(**ways[way]).over(DEFAULT)),
            "count": len(texts),
            "seconds_of_drawing": round(time.perf_counter() - started, 1),
            **pretrained.machine(),
            "real": real,
            **judge(pictures),
        }
        rows.append(row)
        write_json(path, rows)
        shown = {key: row[key] for key in ("seen", "held_out", "colour", "vivid colour", "body", "all") if key in row}
        kid = f", KID × 1000 {1000 * row['generated']['kid']:.0f}" if "generated" in row else ""
        print(f"{way}: {shown}{kid}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
