"""The pictures under images/, each made from the data or from shipped weights.

    STANFORD_CARS_ROOT=… python -m diffusion_utils.figures            # all of them
    python -m diffusion_utils.figures samples --out images            # one

Nothing is picked: examples are the first held-out files by name, samples have seeds 0 … 63.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffusion_utils import pretrained
from diffusion_utils.data import stanford_cars, toy_cars
from diffusion_utils.files import write_atomically
from diffusion_utils.networks import build, stages
from diffusion_utils.plotting import network_drawing, save_grid
from diffusion_utils.sampling import sample
from diffusion_utils.train import CARS


def write_png(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", optimize=True))


def examples(out: Path) -> Path:
    """Eight real car crops, 64×64 each and side by side, for notebook 01 to put noise on."""
    cars = stanford_cars.load().part(held_out=True)
    path = out / "stanford_cars_examples.png"
    write_png(Image.fromarray(np.concatenate(list(cars.images[:8].permute(0, 2, 3, 1).numpy()), axis=1)), path)
    return path


def crops(out: Path) -> Path:
    """Four whole frames with the annotated box and the 4:3 window, above what the network sees."""
    root = stanford_cars.find()
    if root is None:
        raise FileNotFoundError(f"Stanford Cars was not found. {stanford_cars.GET_IT}")
    sources, _ = stanford_cars.read_annotations(root, "train")
    height, width, gap = 168, 224, 8
    sheet = Image.new("RGB", (4 * (width + gap) - gap, 2 * height + gap), "white")
    held_out = [s for s in sources if stanford_cars.is_held_out(s[0].name)]
    for column, (file, box, _) in enumerate(held_out[:4]):
        frame = Image.open(file).convert("RGB")
        window = stanford_cars.window(box, frame.size)
        # Room for the part of the window that leaves the photograph.
        left, top = min(0, window[0]), min(0, window[1])
        all_width, all_height = max(frame.width, window[2]) - left, max(frame.height, window[3]) - top
        scale = min((width - 2) / all_width, (height - 2) / all_height)
        shown = Image.new("RGB", (width, height), "white")
        x, y = round(-left * scale), round(-top * scale)
        shown.paste(frame.resize((round(frame.width * scale), round(frame.height * scale))), (x, y))
        draw = ImageDraw.Draw(shown)
        for edges, colour in ((box, "#ffcc00"), (window, "#ff3355")):
            draw.rectangle([(v - o) * scale for v, o in zip(edges, (left, top) * 2)], outline=colour, width=2)
        x = column * (width + gap)
        sheet.paste(shown, (x, 0))
        seen = stanford_cars.crop(frame, box, 64).resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(seen, (x, height + gap))
    path = out / "stanford_cars_crops.png"
    write_png(sheet, path)
    return path


def samples(out: Path) -> Path:
    """The README's grid: 8×8 cars from noise, seeds 0 … 63, none left out."""
    path = out / "stanford_cars_samples.png"
    save_grid(sample(pretrained.load("stanford-cars-resnet"), range(64), (3, 64, 64), "ddpm", 100), path, scale=1.5)
    return path


def toy_samples(out: Path) -> Path:
    """Toy cars from noise, seeds 0 … 31."""
    path = out / "toy_cars_samples.png"
    save_grid(sample(pretrained.load("toy-cars-resnet"), range(32), (3, 32, 32), "ddpm", 100), path, scale=3)
    return path


def toy_examples(out: Path) -> Path:
    """The first 16 toy cars."""
    path = out / "toy_cars.png"
    save_grid(toy_cars.load(16, 64).images, path, scale=1.5)
    return path


def encoder_decoder(out: Path) -> Path:
    """The network of notebook 3 as a row of boxes."""
    path = out / "encoder_decoder.png"
    drawing = network_drawing(stages(build(**CARS)))
    write_atomically(path, lambda temporary: drawing.savefig(temporary, format="png", metadata={"Software": None}))
    return path


FIGURES = {f.__name__: f for f in (examples, crops, samples, toy_samples, toy_examples, encoder_decoder)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m diffusion_utils.figures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("figures", nargs="*", help=f"which ones ({', '.join(FIGURES)}); default: all")
    parser.add_argument("--out", type=Path, default=Path("images"))
    args = parser.parse_args(arguments)
    unknown = [name for name in args.figures if name not in FIGURES]
    if unknown:
        raise ValueError(f"no figure named {unknown[0]!r}: choose among {', '.join(FIGURES)}")
    for name in args.figures or FIGURES:
        print(FIGURES[name](args.out))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
