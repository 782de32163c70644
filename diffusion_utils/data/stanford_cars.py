"""Stanford Cars (Krause et al. 2013), or any folder of pictures, as one uint8 tensor.

Each car is cut out by a 4:3 window around its annotated box and squeezed into a square, because
square pictures halve evenly; `plotting` shows them at 4:3 again.  Cutting to the box is the largest
single help for a small network: all cars then sit in the same place at the same size.

The data is for non-commercial research.  The official download is gone, and torchvision's
`download=True` raises an error; `download()` fetches a copy from Kaggle in the same layout:

    stanford_cars/
        cars_train/00001.jpg …    cars_test/00001.jpg …
        devkit/cars_train_annos.mat, devkit/cars_meta.mat    cars_test_annos_withlabels.mat
"""

import hashlib
import os
import re
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.io import loadmat
from torch import Tensor

from diffusion_utils.files import read_cached, write_cached

KAGGLE_DATASET = "rickyyyyyyy/torchvision-stanford-cars"
ROOT_VARIABLE = "STANFORD_CARS_ROOT"
MARGIN = 0.08
ASPECT = 4 / 3
GET_IT = (
    "Get the data with `python -m diffusion_utils download` (needs no login), or download "
    f"https://www.kaggle.com/datasets/{KAGGLE_DATASET} by hand and point the environment variable "
    f"{ROOT_VARIABLE} at the folder that holds stanford_cars/"
)
BODY_TYPES = ("sedan", "SUV", "coupe", "convertible", "hatchback", "pickup", "minivan", "van", "wagon")
# Classes whose name does not end in their body type, by the words that tell them from all others.
SAYS_BODY_TYPE = {
    "sedan": r"Type-S|Regal GS|300 SRT-8|Charger SRT-8",
    "coupe": r"Type R|Corvette (ZR1|Ron)|Cobalt SS|Challenger|Coupe IPL|XK XKR|Superleggera",
    "wagon": r"HHR",
    "SUV": r"TrailBlazer",
    "hatchback": r"Abarth",
    "pickup": r"SuperCab",
}
PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, eq=False)
class CarPictures:
    """A set of pictures, ready for training.

    Attributes:
        images: uint8 (N, 3, size, size).
        names: the file each picture came from.
        labels: int64 (N,), class 0 … 195, or -1 where unknown.
        classes: the 196 class names ("BMW M3 Coupe 2012"), or an empty list.
        skipped: one line per file that could not be read.
    """

    images: Tensor
    names: list[str]
    labels: Tensor
    classes: list[str]
    skipped: list[str]

    def part(self, held_out: bool) -> "CarPictures":
        """Only the held-out tenth (see `is_held_out`), or only the rest."""
        keep = [i for i, name in enumerate(self.names) if is_held_out(name) == held_out]
        names = [self.names[i] for i in keep]
        return CarPictures(self.images[keep], names, self.labels[keep], self.classes, self.skipped)

    def body_types(self) -> Tensor:
        """Each picture's body type as an index into `BODY_TYPES`, int64 (N,).

        Raises:
            ValueError: the pictures come without class names (a plain folder has none).
        """
        if not self.classes or (self.labels < 0).any():
            raise ValueError("body types come from Stanford Cars' class names, which these pictures lack")
        return torch.tensor([BODY_TYPES.index(body_type(c)) for c in self.classes])[self.labels]


def body_type(name: str) -> str:
    """The body type of a Stanford Cars class, one of `BODY_TYPES`: "BMW M3 Coupe 2012" → "coupe".

    Most names end in it, before the year; "Crew Cab" and its like are pickups.

    Raises:
        ValueError: a name that says nothing of it.
    """
    last = name.split()[-2] if len(name.split()) > 1 else ""
    if last == "Cab":
        return "pickup"
    for kind in BODY_TYPES:
        if last.lower() == kind.lower():
            return kind
    for kind, words in SAYS_BODY_TYPE.items():
        if re.search(words, name):
            return kind
    raise ValueError(f"{name!r} does not say what kind of car it is: one of {', '.join(BODY_TYPES)}")


def is_held_out(name: str) -> bool:
    """Whether a picture is kept out of training: one in ten, chosen by its file name alone, so
    that the choice is the same on every machine and for every copy of the data."""
    return zlib.crc32(Path(name).name.encode()) % 10 == 0


def find() -> Path | None:
    """The folder that holds stanford_cars/, or None.

    Looks where STANFORD_CARS_ROOT points, in ./data, and where `download` leaves it.  No download,
    no error.
    """
    kaggle = Path(os.environ.get("KAGGLEHUB_CACHE", Path.home() / ".cache" / "kagglehub"))
    downloaded = sorted(kaggle.glob(f"datasets/{KAGGLE_DATASET}/versions/*"), reverse=True)
    candidates = [os.environ.get(ROOT_VARIABLE), "data", *downloaded]
    return next((Path(c) for c in candidates if c and (_inner(Path(c)) / "devkit").is_dir()), None)


def download() -> Path:
    """Fetch the data from Kaggle (1.9 GB, kept in kagglehub's cache) and return its folder.

    Raises:
        OSError: kagglehub is missing or the download failed; says what to do by hand.
    """
    try:
        import kagglehub

        return Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except Exception as error:  # kagglehub raises many kinds; the reader's way out is the same
        raise OSError(
            f"the download did not work ({type(error).__name__}: {error}). Open "
            f"https://www.kaggle.com/datasets/{KAGGLE_DATASET} in a browser, press Download, unpack "
            f"it, and point {ROOT_VARIABLE} at the folder that holds stanford_cars/"
        ) from error


def load(root: str | Path | None = None, split: str = "train", size: int = 64) -> CarPictures:
    """Stanford Cars from disk, each car cut out by its box; cached after the first time.

    Args:
        root: the folder that holds stanford_cars/ (or that folder itself); default: `find()`.
        split: "train" or "test".
        size: height and width of the result in pixels, ≥ 8.

    Raises:
        FileNotFoundError: no such folder or annotations; says how to get them.
        ValueError: unknown split, bad size, or not one readable picture.
    """
    root = find() if root is None else Path(root)
    if root is None:
        raise FileNotFoundError(f"Stanford Cars was not found. {GET_IT}")
    sources, classes = read_annotations(root, split)
    return _load(sources, size, classes, folder=_inner(root) / f"cars_{split}")


def read_annotations(root: str | Path, split: str = "train") -> tuple[list, list[str]]:
    """Every picture's (file, box, class 0 … 195), and the class names.

    A box is (left, top, right, bottom): edges in pixels of the file, counted from 0.
    Raises as `load` does.
    """
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    if split not in files:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    base = _inner(Path(root))
    annotations = base / files[split]
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations} does not exist. {GET_IT}")
    try:
        rows = loadmat(annotations, squeeze_me=True)["annotations"].reshape(-1)
        meta = base / "devkit" / "cars_meta.mat"
        classes = [str(c) for c in loadmat(meta, squeeze_me=True)["class_names"]] if meta.is_file() else []
        sources = [
            (
                base / f"cars_{split}" / str(row["fname"]),
                # 1-based, inclusive pixels in the file; from here on 0-based edges
                (row["bbox_x1"] - 1.0, row["bbox_y1"] - 1.0, float(row["bbox_x2"]), float(row["bbox_y2"])),
                int(row["class"]) - 1,
            )
            for row in rows
        ]
    except Exception as error:  # scipy raises a dozen kinds for a damaged or foreign file
        raise ValueError(
            f"{annotations} is no Stanford Cars annotation file ({type(error).__name__}: {error})"
        ) from error
    return sources, classes


def load_folder(folder: str | Path, size: int = 64) -> CarPictures:
    """Your own pictures: every image file in a folder, cut to its central 4:3 window.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not one readable picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the path of a folder of pictures")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_ENDINGS)
    return _load([(file, None, -1) for file in files], size, [], folder)


def crop(image: Image.Image, box: tuple[float, float, float, float] | None, size: int) -> Image.Image:
    """The 4:3 window around a box, squeezed into size×size.

    Args:
        image: any mode; converted to RGB (transparency onto white).
        box: left, top, right, bottom edges in pixels from 0; clipped to the frame.  None: the
            largest central 4:3 window.
        size: height and width of the result.

    Where the window (see `window`) leaves the frame, the edge pixels are repeated.  Resizing
    averages over all source pixels (antialiasing).
    """
    if box is None:  # a phone stores which way is up beside the pixels; boxes count the pixels as stored
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    frame_width, frame_height = image.size
    edges = np.array(window(box, image.size))
    outside = np.maximum([-edges[0], -edges[1], edges[2] - frame_width, edges[3] - frame_height], 0)
    if outside.any():
        left, top, right, bottom = np.ceil(outside).astype(int)
        image = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
        edges += [left, top, left, top]
    # Rounding can put an edge a hair outside the frame, which Pillow refuses.
    edges = np.clip(edges, 0, [*image.size, *image.size])
    return image.resize((size, size), Image.Resampling.LANCZOS, box=tuple(edges))


def window(box: tuple[float, float, float, float] | None, frame: tuple[int, int]) -> tuple[float, float, float, float]:
    """Edges of the smallest 4:3 window around a box with a margin of 8 % of it on each side.

    Args:
        box: edges in pixels, clipped to the frame; None: the largest central 4:3 window.
        frame: width and height of the picture.
    """
    frame_width, frame_height = frame
    if box is None:
        width = min(frame_width, frame_height * ASPECT)
        centre_x, centre_y = frame_width / 2, frame_height / 2
    else:
        left, right = np.clip(sorted((box[0], box[2])), 0, frame_width)
        top, bottom = np.clip(sorted((box[1], box[3])), 0, frame_height)
        if right - left < 1 or bottom - top < 1:  # the box lies outside the frame: keep all of it
            left, top, right, bottom = 0, 0, frame_width, frame_height
        width = (1 + 2 * MARGIN) * max(right - left, (bottom - top) * ASPECT)
        centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half_width, half_height = width / 2, width / ASPECT / 2
    return (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)


def _inner(root: Path) -> Path:
    """People point at the folder above stanford_cars/ (as torchvision wants) or at itself."""
    return root / "stanford_cars" if (root / "stanford_cars").is_dir() else root


def _load(sources: list, size: int, classes: list[str], folder: Path) -> CarPictures:
    """Read, crop and cache.  `sources` lists (file, box or None, label)."""
    if not isinstance(size, int) or size < 8:
        raise ValueError(f"size must be a whole number of pixels, at least 8, not {size!r}")
    if not sources:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(PICTURE_ENDINGS))})")
    cache = _cache_name(sources, size)
    images = read_cached(cache)
    if images is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(lambda source: _read(source[0], source[1], size), sources))
        skipped = [f"{s[0].name}: {i}" for s, i in zip(sources, images) if isinstance(i, str)]
        keep = [n for n, image in enumerate(images) if not isinstance(image, str)]
        if not keep:
            raise ValueError(f"{folder} holds not one readable picture; the first: {skipped[0]}")
        images = torch.from_numpy(np.ascontiguousarray(np.stack([images[n] for n in keep])))
        if not skipped:  # a set with damaged files is read afresh until they are mended
            write_cached(cache, images)
    else:
        skipped, keep = [], range(len(sources))
    if skipped:
        first = "; ".join(skipped[:3]) + (" …" if len(skipped) > 3 else "")
        warnings.warn(f"skipped {len(skipped)} of {len(sources)} pictures: {first}", stacklevel=3)
    names = [sources[n][0].name for n in keep]
    labels = torch.tensor([sources[n][2] for n in keep])
    return CarPictures(images, names, labels, classes, skipped)


def _read(file: Path, box, size: int) -> np.ndarray | str:
    """One picture as uint8 (3, size, size), or the reason why not."""
    try:
        with Image.open(file) as image:
            return np.asarray(crop(image, box, size)).transpose(2, 0, 1)
    except FileNotFoundError:
        return "missing"
    except Exception as error:  # Pillow raises many kinds for damaged files; none may stop the rest
        return f"unreadable ({type(error).__name__}: {error})"


def _cache_name(sources: list, size: int) -> str:
    """Made of everything that the pixels depend on, so that a change of any of it reads afresh."""
    digest = hashlib.sha256(f"v2 {size} {MARGIN} {ASPECT}".encode())
    for file, box, _ in sources:
        stat = file.stat() if file.is_file() else None
        digest.update(f"{file} {box} {stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return f"cars-{digest.hexdigest()[:20]}"
