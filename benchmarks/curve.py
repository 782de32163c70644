"""Quality against images seen: draw from every snapshot of a run and compare with held-out cars.

    python -m diffusion_utils.train --data stanford_cars … --snapshot-images 250000 --out runs/cars
    STANFORD_CARS_ROOT=… python benchmarks/curve.py runs/cars
    STANFORD_CARS_ROOT=… python benchmarks/curve.py runs/cars --only 1000000 --guidance-scale 2 \\
        --guide runs/cars/snapshots/weights_000500000.safetensors
    python benchmarks/curve.py runs/cars --only 1000000 --guidance-scale 2 \\
        --guide runs/cars/snapshots/weights_000500000.safetensors --ship stanford-cars-1m

Every row draws the same seeds.  What is measured already is kept, so the command may be interrupted,
and rows with other guidance can be added.  Writes benchmarks/results/curve-RUN.json.  With --ship the
weights of one measured row go into the package under that name (and those of its guide beside them),
with what was measured on their card and its way of drawing as the advice.
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from diffusion_utils import drawing, pretrained
from diffusion_utils.datasets import load_data
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_atomically

RESULTS = Path(__file__).parent / "results"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument(
        "--only",
        type=int,
        nargs="+",
        metavar="IMAGES",
        help="these snapshots, by the number in their name: the pictures of this run alone, without those of what "
        "it began with; default: all",
    )
    parser.add_argument(
        "--count", type=int, default=748, help="how many pictures to draw; default: as many as held out"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--ship", metavar="NAME", help="put this one snapshot's weights into the package")
    drawing.add_arguments(parser, weights=False)
    return parser.parse_args(arguments)


def snapshots(run: Path, only: list[int] | None) -> list[Path]:
    """The run's snapshots in the order of training."""
    found = sorted((run / "snapshots").glob("weights_*.safetensors"))
    chosen = [path for path in found if only is None or int(path.stem.split("_")[1]) in only]
    if not chosen:
        raise ValueError(f"{run} has no such snapshots: train with --snapshot-images, or name others in --only")
    return chosen


def ship(name: str, path: Path, row: dict, guide: str | None, folder: Path = pretrained.FOLDER) -> Path:
    """Put a measured snapshot, in half precision, among the weights that come with the package."""
    advice = {key: row[key] for key in drawing.DEFAULTS}
    measured = {key: row[key] for key in ("condition", "extractor", "counts", "generated", "floor")}
    if guide:
        advice["guide"] = f"{name}-guide"
        about = {**pretrained.card(guide), "about": f"guides {name}; from {row['guide']}"}
        pretrained.save(folder / f"{name}-guide.safetensors", pretrained.load(guide), about)
    seeds = f"{row['seed']} … {row['seed'] + row['count'] - 1}"
    about = {**pretrained.card(path), "drawing": advice, "sample_seeds": seeds, **measured}
    pretrained.save(folder / f"{name}.safetensors", pretrained.load(path), about)
    return folder / f"{name}.safetensors"


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    out = args.results / f"curve-{args.run.name}.json"
    rows = json.loads(out.read_bytes()) if out.exists() else []
    reference, paths = None, snapshots(args.run, args.only)
    if args.ship and len(paths) != 1:
        raise ValueError("--ship takes one snapshot: name it in --only")
    for path in tqdm(paths, file=sys.stdout):
        args.weights, seeds = str(path), range(args.seed, args.seed + args.count)
        card, how = pretrained.card(path), drawing.settings(args)
        asked = {
            "images_seen": card["images_seen"],
            **how,
            "guide": how["guide"] and "/".join(Path(how["guide"]).parts[-3:]),
            "condition": args.condition,
            "seed": args.seed,
            "count": args.count,
        }
        same = [
            row for row in rows if all(row.get(key, drawing.DEFAULTS.get(key)) == value for key, value in asked.items())
        ]
        if args.ship:
            if not same:
                raise ValueError(f"{path} was not measured like that yet: run the same command without --ship first")
            tqdm.write(str(ship(args.ship, path, same[0], how["guide"])))
        if same:
            continue
        if reference is None:
            train, held_out, _ = load_data("stanford_cars", card["size"])
            reference = Reference(train, held_out)
        denoiser = drawing.load(args.weights, seeds, args.condition, how, args.device)
        pictures = drawing.draw(denoiser, seeds, card["size"], how["sampler"], how["steps"], args.device)
        errors = "held_out_error_of_x0_as_share_of_variance"
        rows.append(
            {
                **asked,
                "parameters": card["parameters"],
                "seconds_of_training": card["seconds"],
                errors: card[errors],
                "trained_on": card["machine"],
                **pretrained.machine(),
                **reference.evaluate(pictures),
            }
        )
        text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
        write_atomically(out, lambda file, text=text: file.write_text(text, encoding="utf-8"))
        tqdm.write(f"{card['images_seen']:,} images: KID {rows[-1]['generated']['kid']}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
