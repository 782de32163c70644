"""Quality against images seen: draw from every snapshot of a run and compare with held-out cars.

    python -m diffusion_utils train --data stanford_cars … --snapshot-images 250000 --out runs/cars
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

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from diffusion_utils import pipeline, pretrained
from diffusion_utils.commands.sample import DEVICE
from diffusion_utils.data import sets
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import write_json
from diffusion_utils.pipeline import AS_ADVISED, DEFAULT, Drawing

RESULTS = Path(__file__).parent / "results"


@dataclass
class Options:
    run: tyro.conf.Positional[Path]  # The run's folder.
    # These snapshots, by the number in their name: the pictures of this run alone, without those of what it began
    # with; default: all.
    only: tuple[int, ...] | None = None
    drawing: Drawing = AS_ADVISED  # How to draw; what is left out is as the card advises.
    condition: str | None = None  # As for the command sample.
    seed: int = 0  # Of the first picture; the next has the next seed.
    count: int = 748  # How many pictures to draw; default: as many as held out.
    results: Path = RESULTS
    ship: str | None = None  # Put this one snapshot's weights into the package, under this name.
    device: str = DEVICE


def snapshots(run: Path, only: tuple[int, ...] | None) -> list[Path]:
    """The run's snapshots in the order of training."""
    found = sorted((run / "snapshots").glob("weights_*.safetensors"))
    chosen = [path for path in found if only is None or int(path.stem.split("_")[1]) in only]
    if not chosen:
        raise ValueError(f"{run} has no such snapshots: train with --snapshot-images, or name others in --only")
    return chosen


def ship(name: str, path: Path, row: dict, guide: str | None, folder: Path = pretrained.FOLDER) -> Path:
    """Put a measured snapshot, in half precision, among the weights that come with the package."""
    advice = {key: row[key] for key in asdict(DEFAULT) if row.get(key) is not None}
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
    args = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    out = args.results / f"curve-{args.run.name}.json"
    rows = json.loads(out.read_bytes()) if out.exists() else []
    reference, paths = None, snapshots(args.run, args.only)
    if args.ship and len(paths) != 1:
        raise ValueError("--ship takes one snapshot: name it in --only")
    for path in tqdm(paths, file=sys.stdout):
        pipe = pipeline.load(str(path), args.device)
        card, how = pipe.card, pipe.settled(args.condition, **vars(args.drawing))
        guide = None if how.guide == "none" else how.guide
        asked = {
            "images_seen": card["images_seen"],
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(how).items()},
            "guide": guide and "/".join(Path(guide).parts[-3:]),
            "condition": args.condition,
            "seed": args.seed,
            "count": args.count,
        }
        before = asdict(DEFAULT)  # what rows of earlier versions do not say
        same = [row for row in rows if all(row.get(key, before.get(key)) == value for key, value in asked.items())]
        if args.ship:
            if not same:
                raise ValueError(f"{path} was not measured like that yet: run the same command without --ship first")
            tqdm.write(str(ship(args.ship, path, same[0], guide)))
        if same:
            continue
        if reference is None:
            real = sets.load("stanford_cars", card["size"])
            reference = Reference(real.images, real.held_out)
        pictures = pipe(range(args.seed, args.seed + args.count), args.condition, **vars(args.drawing))
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
        write_json(out, rows)
        tqdm.write(f"{card['images_seen']:,} images: KID {rows[-1]['generated']['kid']}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
