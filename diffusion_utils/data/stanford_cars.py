"""Stanford Cars (Krause et al. 2013) as one uint8 tensor.

Each car is cut out by a 4:3 window around its annotated box and squeezed into a square (see `pictures`).  Cutting
to the box is the largest single help for a small network: all cars then sit in the same place at the same size.

The data is for non-commercial research.  The official download is gone, and torchvision's
`download=True` raises an error; `download()` fetches a copy from Kaggle in the same layout:

    stanford_cars/
        cars_train/00001.jpg …    cars_test/00001.jpg …
        devkit/cars_train_annos.mat, devkit/cars_meta.mat    cars_test_annos_withlabels.mat

Copies in other layouts are read, too: see `read_annotations`.
"""

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from diffusion_utils.data import pictures
from diffusion_utils.data.pictures import Pictures

KAGGLE_DATASET = "rickyyyyyyy/torchvision-stanford-cars"
ROOT_VARIABLE = "STANFORD_CARS_ROOT"
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
# Where the boxes are: of torchvision's layout, of the archive car_ims, of copies with a folder per class.
ANNOTATIONS = {
    "train": ("cars_train_annos.mat", "cars_annos.mat", "anno_train.csv"),
    "test": ("cars_test_annos_withlabels.mat", "cars_annos.mat", "anno_test.csv"),
}


class CarPictures(Pictures):
    """Pictures whose classes are Stanford Cars' 196 ("BMW M3 Coupe 2012")."""

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


def find() -> Path | None:
    """The folder that holds Stanford Cars, or None.

    Looks where STANFORD_CARS_ROOT points, or else in ./data, in ./stanford_cars, and where `download` leaves it.
    No download.

    Raises:
        FileNotFoundError: STANFORD_CARS_ROOT is set, and there is no Stanford Cars.
    """
    if root := os.environ.get(ROOT_VARIABLE):
        root = Path(os.path.expanduser(root))
        if not _is_here(root):
            raise FileNotFoundError(f"{ROOT_VARIABLE} points at a wrong place: {_not_there(_inner(root))}")
        return root
    kaggle = Path(os.environ.get("KAGGLEHUB_CACHE") or os.path.expanduser("~/.cache/kagglehub"))
    downloaded = sorted(kaggle.glob(f"datasets/{KAGGLE_DATASET}/versions/*"), reverse=True)
    return next((root for root in (Path("data"), Path("stanford_cars"), *downloaded) if _is_here(root)), None)


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
        ValueError: unknown split, bad size, damaged annotations, or not one readable picture.
    """
    root = find() if root is None else Path(os.path.expanduser(root))
    if root is None:
        raise FileNotFoundError(f"Stanford Cars was not found in ./data, ./stanford_cars or Kaggle's cache. {GET_IT}")
    sources, classes = read_annotations(root, split)
    said = []
    if sources and sources[0][0].parent.name == "car_ims":
        said = ["car_ims/ numbers the cars in its own way, so that others are held out than from the shipped weights"]
    return CarPictures(**vars(pictures.read(sources, size, classes, _inner(root), said=said)))


def read_annotations(root: str | Path, split: str = "train") -> tuple[list, list[str]]:
    """Every picture's (file, box, class 0 … 195), and the class names.

    A box is (left, top, right, bottom): edges in pixels of the file, counted from 0.  Each part of the data may lie
    up to two folders deep, as in cars_train/cars_train/.  Read are torchvision's layout, car_ims/ with
    cars_annos.mat, and copies with a folder per class, train/CLASS/00001.jpg with anno_train.csv.
    Raises as `load` does.
    """
    if split not in ANNOTATIONS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    base = _inner(Path(root))
    path = _annotations(base, split)
    if path is None:
        raise FileNotFoundError(_not_there(base, split))
    try:
        rows = [*(_rows_of_csv(path) if path.suffix == ".csv" else _rows_of_mat(path, split))]
    except PermissionError:
        raise
    except Exception as error:  # scipy raises a dozen kinds for a damaged or foreign file
        raise ValueError(
            f"{path} is no Stanford Cars annotation file: replace it ({type(error).__name__}: {error})"
        ) from error
    names = [name for name, _, _ in rows]
    if path.suffix == ".csv":
        folders = [folder for folder in _below(base, split) if folder.is_dir()]
        files = {file.name: file for folder in folders for file in folder.glob("*/*")}
    else:
        wanted = "car_ims" if path.name == "cars_annos.mat" else f"cars_{split}"
        folder = next((f for f in _below(base, wanted) if any((f / name).is_file() for name in names)), None)
        if folder is None and wanted == "car_ims":
            raise FileNotFoundError(
                f"{path} describes the pictures of car_ims/, which {base} does not hold; those of cars_{split}/ have "
                f"other numbers and need devkit/ beside them. {GET_IT}"
            )
        folder = base / wanted if folder is None else folder
        files = {name: folder / name for name in names}
    # 1-based, inclusive pixels in the file; from here on 0-based edges
    sources = [
        (files.get(name, base / split / name), (x1 - 1.0, y1 - 1.0, float(x2), float(y2)), number - 1)
        for name, (x1, y1, x2, y2), number in rows
    ]
    return sources, _class_names(base)


def _rows_of_mat(path: Path, split: str) -> Iterator[tuple]:
    """File name, box and class of each picture, as they are in the file."""
    for row in _of_mat(path, "annotations"):
        of_all = path.name == "cars_annos.mat"
        if not of_all or bool(row["test"]) == (split == "test"):
            box = tuple(row[f"bbox_{corner}"] for corner in ("x1", "y1", "x2", "y2"))
            yield Path(str(row["relative_im_path" if of_all else "fname"])).name, box, int(row["class"])


def _rows_of_csv(path: Path) -> Iterator[tuple]:
    with open(path, newline="", encoding="utf-8") as file:
        for name, *numbers in csv.reader(file):
            x1, y1, x2, y2, number = map(int, numbers)
            yield name, (x1, y1, x2, y2), number


def _class_names(base: Path) -> list[str]:
    """The 196 names, or an empty list where no file says them."""
    for path in (*_below(base, "cars_meta.mat"), *_below(base, "cars_annos.mat"), *_below(base, "names.csv")):
        try:
            if path.suffix == ".csv":
                return path.read_text(encoding="utf-8").splitlines()
            return [str(name) for name in _of_mat(path, "class_names")]
        except PermissionError:
            raise
        except Exception as error:  # as above
            raise ValueError(
                f"{path} does not hold the classes' names: replace it ({type(error).__name__}: {error})"
            ) from error
    return []


def _of_mat(path: Path, name: str) -> np.ndarray:
    return loadmat(io.BytesIO(path.read_bytes()), squeeze_me=True)[name].reshape(-1)


def _inner(root: Path) -> Path:
    """People point at the folder above stanford_cars/ (as torchvision wants) or at itself."""
    return root / "stanford_cars" if (root / "stanford_cars").is_dir() else root


def _below(base: Path, name: str) -> Iterator[Path]:
    """Where a file or folder of this name is: in `base` or up to two folders deeper, the least deep first."""
    for deeper in ("", "*/", "*/*/"):
        yield from sorted(base.glob(deeper + name))


def _annotations(base: Path, split: str) -> Path | None:
    return next((path for name in ANNOTATIONS[split] for path in _below(base, name) if path.is_file()), None)


def _is_here(root: Path) -> bool:
    return root.is_dir() and any(_annotations(_inner(root), split) for split in ANNOTATIONS)


def _not_there(base: Path, split: str = "train") -> str:
    """What was looked for, what was found, and what to do."""
    if not base.is_dir():
        return f"{base} does not exist. {GET_IT}"
    found = sorted(path.name + "/" * path.is_dir() for path in base.iterdir())
    return (
        f"{base} is not in a layout of Stanford Cars that is known here: there is no {', '.join(ANNOTATIONS[split])} "
        f"in it or up to two folders deeper, only {', '.join(found[:8]) or 'nothing'}{', …' * (len(found) > 8)}. "
        f"(Folders of pictures without boxes are own pictures: --data FOLDER.) {GET_IT}"
    )
