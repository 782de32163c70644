"""Letters: an endless set of small coloured pictures that are not cars, each drawn by code from two numbers.

Nothing is downloaded: the fonts are those that matplotlib brings.  Picture `index` of set `seed` shows one of the 26
small letters, its class, in one of several fonts and any colour, on a background that goes from one colour to another.
Place, size and slant vary a little.

A set to learn from must not be mirrored: a mirrored b is a d, and most other letters become none at all.
"""

import colorsys
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_utils.checks import whole

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneralBol")
FONTS += ("STIXGeneralItalic", "cmr10", "cmss10", "cmtt10")
_CANVAS = 4  # times the size: Pillow's edges become soft on resizing


class Letters(NamedTuple):
    """A set of N letters, as made by `load`."""

    images: Tensor  # uint8 [N, 3, size, size], red-green-blue, 0 to 255; show at 1:1
    labels: Tensor  # int64 [N], places in LETTERS


def draw(index: int, seed: int = 0, size: int = 32) -> tuple[Tensor, int]:
    """Picture `index` of set `seed`, uint8 [3, size, size], and its letter's place in `LETTERS`.

    Raises ValueError if `index` or `seed` is not a whole number of at least 0, or `size` of at least 16.
    """
    side = _CANVAS * whole("size", size, 16)
    random = np.random.default_rng([whole("seed", seed, 0), whole("index", index, 0)])
    label, font = (int(random.integers(len(names))) for names in (LETTERS, FONTS))
    hue, light = random.uniform(), random.uniform() < 0.6  # is the ground light, and the letter dark?
    ink = _colour(hue, random.uniform(*((0.12, 0.35) if light else (0.75, 0.95))))
    ground = [_colour(hue + random.uniform(0.2, 0.8), random.uniform(0.7, 0.92)) for _ in range(2)]
    picture = _ground(size, *(ground if light else (0.4 * colour for colour in ground)), random.uniform(0, 2 * np.pi))

    face, shape = _font(font, round(side * random.uniform(0.85, 1.05))), Image.new("L", (side, side))
    left, top, right, bottom = face.getbbox(LETTERS[label])
    x, y = side * random.uniform(0.44, 0.56, 2)  # where its middle is, whatever reaches above or below the line
    ImageDraw.Draw(shape).text((x - (left + right) / 2, y - (top + bottom) / 2), LETTERS[label], 255, face)
    shape = shape.rotate(random.uniform(-8, 8), Image.Resampling.BILINEAR)
    share = np.asarray(shape.resize((size, size), Image.Resampling.HAMMING))[..., None] / 255
    picture = (picture + share * (ink - picture)).round().astype(np.uint8)
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), label


def load(count: int = 4096, size: int = 32, seed: int = 0, start: int = 0) -> Letters:
    """Draw pictures `start`, `start + 1`, ... of set `seed`, `count` of them.

    A picture does not depend on `count`: a longer set continues a shorter one.

    Raises ValueError if `count` is not a whole number of at least 1, or `start` of at least 0; and as `draw` does.
    """
    start = whole("start", start, 0)
    images, labels = zip(*(draw(i, seed, size) for i in range(start, start + whole("count", count, 1))))
    return Letters(torch.stack(images), torch.tensor(labels))


def write_folder(folder: str | Path, count: int = 300, size: int = 64, seed: int = 0) -> Path:
    """Write letters as image files, `folder/LETTER/NUMBER.png`, as somebody's own pictures would lie there.

    Raises ValueError as `load` does, and FileExistsError if the folder holds something already.
    """
    folder = Path(os.path.expanduser(folder))
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give the name of a new folder")
    for i, (image, label) in enumerate(zip(*load(count, size, seed))):
        path = folder / LETTERS[label] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def _colour(hue: float, lightness: float) -> np.ndarray:
    return 255 * np.array(colorsys.hls_to_rgb(hue % 1, lightness, 0.75))


def _ground(size: int, first: np.ndarray, second: np.ndarray, angle: float) -> np.ndarray:
    """A square (size, size, 3) that goes from one colour to another in a direction."""
    steps = np.linspace(-0.5, 0.5, size)
    share = 0.5 + (np.cos(angle) * steps + np.sin(angle) * steps[:, None]) / 2**0.5
    return first + share[..., None] * (second - first)


@cache
def _font(index: int, points: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FONTS[index]}.ttf")
    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)
