"""Pictures from files: found in a folder, cut to one shape, kept in the cache as one uint8 tensor.

A picture is cut to a window of a given aspect (width : height) and squeezed into a square, because square
pictures halve evenly; `plotting` shows them at that aspect again.
"""

import hashlib
import os
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffusion_utils.files import read_cached, write_cached

MARGIN = 0.08
ASPECT = "4:3"  # of cars
ORIENTATION = 0x0112  # EXIF's tag for which way is up
HEIC = {".heic", ".heif", ".hif"}


@dataclass(frozen=True, eq=False)
class Pictures:
    """A set of pictures, ready for training.

    Attributes:
        images: uint8 (N, 3, size, size).
        names: the file each picture came from, "name.jpg" or, where classes have folders, "class/name.jpg".
        labels: int64 (N,), indices into `classes`, or -1 where unknown.
        classes: their names, or an empty list.
        skipped: one line per picture that could not be read.
        aspect: width : height of what was cut out of the files.
    """

    images: Tensor
    names: list[str]
    labels: Tensor
    classes: list[str]
    skipped: list[str]
    aspect: str = ASPECT

    def part(self, held_out: bool, every_class: bool = False) -> "Pictures":
        """Only the held-out tenth (see `is_held_out`), or only the rest; `every_class`: to which then belong classes
        that would be held out as a whole."""
        out, labels = [is_held_out(name) for name in self.names], self.labels.tolist()
        if every_class:
            shown = {label for label, is_out in zip(labels, out) if not is_out}
            out = [is_out and label in shown for label, is_out in zip(labels, out)]
        keep = [i for i, is_out in enumerate(out) if is_out == held_out]
        return self._only(keep)

    def half(self, test: bool) -> "Pictures":
        """Of held-out pictures only those to report on, or only those to choose on (see `is_test`)."""
        return self._only([i for i, name in enumerate(self.names) if is_test(name) == test])

    def _only(self, keep: list[int]) -> "Pictures":
        names = [self.names[i] for i in keep]
        return replace(self, images=self.images[keep], names=names, labels=self.labels[keep])


def is_held_out(name: str) -> bool:
    """Whether a picture is kept out of training: one in ten, chosen by its file name alone, so
    that the choice is the same on every machine and for every copy of the data."""
    return _number(name) % 10 == 0


def is_test(name: str) -> bool:
    """Of a held-out picture, whether it belongs to the test half, on which results are reported, and not to the
    validation half, on which anything is chosen; by its file name alone, too."""
    return _number(name) // 10 % 10 < 5


def _number(name: str) -> int:
    return zlib.crc32(Path(name).name.encode(errors="surrogateescape"))


def ratio(aspect: str | None) -> float:
    """Width over height: "4:3" → 1.333…; "1.5" is the same as "3:2", and None as "4:3".

    Raises:
        ValueError: not of that form, or not between 1:4 and 4:1.
    """
    width, _, height = str(ASPECT if aspect is None else aspect).partition(":")
    try:
        value = float(width) / float(height or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 1 / 4 <= value <= 4:
        raise ValueError(f"aspect is width:height, such as 1:1 or 3:2, between 1:4 and 4:1, not {aspect!r}")
    return value


def in_whole_numbers(aspect: str) -> str:
    """The one way to write an aspect: "1.5" and "6 : 4" → "3:2".  Raises what `ratio` does."""
    ratio(aspect)
    width, _, height = aspect.partition(":")
    width, height = (Fraction(width.strip()) / Fraction(height.strip() or 1)).as_integer_ratio()
    return f"{width}:{height}"


def load_folder(folder: str | Path, size: int = 64, aspect: str | None = None, classes: bool = False) -> Pictures:
    """Your own pictures: every file in a folder that Pillow reads, cut to its central window.

    Where the folder has no pictures of its own, those of its subfolders are taken, and each subfolder is a class.
    What is left out is counted in a warning; hidden folders are not looked at.

    Args:
        folder: a leading ~ is your home.
        size: height and width of the result in pixels, ≥ 8.
        aspect: of the window; default: 4:3 where most pictures are about that wide, else 1:1.
        classes: take the subfolders even where there are pictures beside them.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not one readable picture in it, or no subfolders for `classes`.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the path of a folder of pictures")
    files, others, folders = _contents(folder)
    labels, found_classes, left_out = [-1] * len(files), [], [("subfolders", folders)]
    if classes and not folders:
        raise ValueError(f"{folder} has no subfolders: the condition class takes one for each class")
    if classes or folders and not files:
        inside = [_contents(one) for one in folders]
        if classes or any(found for found, _, _ in inside):
            left_out = [("files beside the classes' folders", files + others)]
            files, others, deeper = (sum((each[part] for each in inside), []) for part in range(3))
            found_classes = [os.fsencode(one.name).decode("utf-8", "backslashreplace") for one in folders]
            labels = [label for label, (found, _, _) in enumerate(inside) for _ in found]
            left_out += [
                ("classes without a picture", [one for one, (found, _, _) in zip(folders, inside) if not found])
            ]
            left_out += [("folders in a class's folder", deeper)]
    left_out.append(("files that are no pictures", [file for file in others if file.suffix.lower() not in HEIC]))
    remedy = "pictures that need `pip install pillow-heif` or another format"
    left_out.append((remedy, [file for file in others if file.suffix.lower() in HEIC]))
    remarks = [_counted(what, paths) for what, paths in left_out if paths]
    if not files:
        found = f": found {', '.join(remarks)}" if remarks else ""
        raise ValueError(f"{folder} holds no pictures that Pillow reads (.jpg, .png, .webp and others){found}")
    if aspect is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            shapes = [shape for shape in pool.map(_shape, files) if shape]
        aspect = "1:1" if shapes and median(shapes) < 7 / 6 else ASPECT  # 7/6: half-way
    said = [f"left out {', '.join(remarks)}"] if remarks else []
    if folders and not found_classes:
        count, are, them = ("1 picture", "is", "it") if len(files) == 1 else (f"{len(files)} pictures", "are", "them")
        said += [f"only the {count} beside the subfolders {are} used; move {them} away to use the folders as classes"]
    sources = [(file, None, label) for file, label in zip(files, labels)]
    names = [file.relative_to(folder).as_posix() for file in files]
    return read(sources, size, found_classes, folder, aspect, names, said)


def read(
    sources: Sequence[tuple],
    size: int,
    classes: list[str],
    folder: Path,
    aspect: str = ASPECT,
    names: list[str] | None = None,
    said: Sequence[str] = (),
) -> Pictures:
    """Read, crop and cache.

    Args:
        sources: (file, box or None, label) of each picture; boxes as for `crop`.
        size: height and width of the result in pixels, ≥ 8.
        classes, aspect: as for `Pictures`.
        folder: that the sources are in, for messages.
        names: of the pictures; default: their files' names.
        said: what else the warning is to say.

    Raises:
        ValueError: bad size or aspect, or not one readable picture.
    """
    width_to_height = ratio(aspect)
    if not isinstance(size, int) or size < 8:
        raise ValueError(f"size must be a whole number of pixels, at least 8, not {size!r}")
    if not sources:
        raise ValueError(f"{folder} holds no pictures")
    names = names or [source[0].name for source in sources]
    skipped, keep = [], range(len(sources))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and decoding both let go of Python's lock
        cache = _cache_name(sources, pool.map(_content, [source[0] for source in sources]), size, width_to_height)
        images = read_cached(cache)
        if images is None:
            images = list(pool.map(lambda source: _read(source[0], source[1], size, width_to_height), sources))
            skipped = [f"{name}: {i}" for name, i in zip(names, images) if isinstance(i, str)]
            keep = [n for n, image in enumerate(images) if not isinstance(image, str)]
            if not keep:
                raise ValueError(f"{folder} holds not one readable picture; the first: {skipped[0]}")
            images = torch.from_numpy(np.ascontiguousarray(np.stack([images[n] for n in keep])))
            if not skipped:  # a set with damaged files is read afresh until they are mended
                write_cached(cache, images)
    if skipped:
        first = "; ".join(skipped[:3]) + (" …" if len(skipped) > 3 else "")
        said = [f"skipped {len(skipped)} of {len(sources)} pictures: {first}", *said]
    if said:
        warnings.warn(f"{folder}: {'; '.join(said)}", stacklevel=3)
    labels = torch.tensor([sources[n][2] for n in keep])
    return Pictures(images, [names[n] for n in keep], labels, classes, skipped, aspect)


def crop(
    image: Image.Image, box: tuple[float, float, float, float] | None, size: int, aspect: float = 4 / 3
) -> Image.Image:
    """The window around a box, squeezed into size×size.

    Args:
        image: any mode; converted to RGB (transparency onto white, 16 bits to 8).
        box: left, top, right, bottom edges in pixels from 0; clipped to the frame.  None: the
            largest central window.
        size: height and width of the result.
        aspect: width / height of the window.

    Raises:
        ValueError: pixels that are 32-bit numbers, whose range nobody knows.

    Where the window (see `window`) leaves the frame, the edge pixels are repeated.  Resizing
    averages over all source pixels (antialiasing).
    """
    image = _eight_bits(image)
    if box is None:  # a phone stores which way is up beside the pixels; boxes count the pixels as stored
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    frame_width, frame_height = image.size
    edges = np.array(window(box, image.size, aspect))
    outside = np.maximum([-edges[0], -edges[1], edges[2] - frame_width, edges[3] - frame_height], 0)
    if outside.any():
        left, top, right, bottom = np.ceil(outside).astype(int)
        image = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
        edges += [left, top, left, top]
    # Rounding can put an edge a hair outside the frame, which Pillow refuses.
    edges = np.clip(edges, 0, [*image.size, *image.size])
    return image.resize((size, size), Image.Resampling.LANCZOS, box=tuple(edges))


def window(
    box: tuple[float, float, float, float] | None, frame: tuple[int, int], aspect: float = 4 / 3
) -> tuple[float, float, float, float]:
    """Edges of the smallest window around a box with a margin of 8 % of it on each side.

    Args:
        box: edges in pixels, clipped to the frame; None: the largest central window.
        frame: width and height of the picture.
        aspect: width / height of the window.
    """
    frame_width, frame_height = frame
    if box is None:
        width = min(frame_width, frame_height * aspect)
        centre_x, centre_y = frame_width / 2, frame_height / 2
    else:
        left, right = np.clip(sorted((box[0], box[2])), 0, frame_width)
        top, bottom = np.clip(sorted((box[1], box[3])), 0, frame_height)
        if right - left < 1 or bottom - top < 1:  # the box lies outside the frame: keep all of it
            left, top, right, bottom = 0, 0, frame_width, frame_height
        width = (1 + 2 * MARGIN) * max(right - left, (bottom - top) * aspect)
        centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    half_width, half_height = width / 2, width / aspect / 2
    return (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)


def _contents(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """A folder's pictures, its other files, and its subfolders without the hidden ones, sorted."""
    entries = sorted(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    if any(file.suffix.lower() in HEIC for file in files):
        try:
            import pillow_heif

            pillow_heif.register_heif_opener()
        except ImportError:
            pass  # they count as other files
    pictures = {file: _is_picture(file) for file in files}
    others = [file for file in files if not pictures[file]]
    return (
        [file for file in files if pictures[file]],
        others,
        [one for one in folders if not one.name.startswith((".", "__MACOSX"))],
    )


def _is_picture(file: Path) -> bool:
    """Whether Pillow reads files of this ending or, where it does not know the ending, this file."""
    if Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN:
        return True  # and where it is damaged, its name is told
    if not file.is_file():  # a pipe, from which one would read for ever
        return False
    try:
        with Image.open(file):
            return True
    except Exception:  # Pillow raises many kinds
        return False


def _counted(what: str, paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"{what}: {len(paths)} ({names})"


def _shape(file: Path) -> float | None:
    """Width over height of a picture, the right way up; None: unreadable."""
    try:
        with Image.open(file) as image:
            shape = image.width / image.height
            return 1 / shape if image.getexif().get(ORIENTATION, 1) >= 5 else shape
    except Exception:  # Pillow raises many kinds; `read` says what is wrong
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture with 8 bits per channel, 0 … 255; Pillow itself would cut off all that is above 255."""
    known = image.format in ("PNG", "PPM")  # where Pillow calls 16 bits "I", 32 bits
    if not image.mode.startswith("I;16") and not (image.mode == "I" and known):
        if image.mode in ("I", "F"):
            raise ValueError(
                f"nothing says which of its numbers (mode {image.mode}) is white: save it with 8 or 16 bits"
            )
        return image
    stored, tags = np.asarray(image), getattr(image, "tag_v2", {})  # a TIFF can have 12 bits, or 0 for white
    grey = stored / (2 ** tags.get(258, (16,))[0] - 1)
    if tags.get(262) == 0:
        grey = 1 - grey
    if "transparency" in image.info:
        grey[stored == image.info["transparency"]] = 1
    result = Image.fromarray(np.uint8((255 * grey).round().clip(0, 255)))
    result.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return result


def _read(file: Path, box, size: int, aspect: float) -> np.ndarray | str:
    """One picture as uint8 (3, size, size), or the reason why not."""
    try:
        with Image.open(file) as image:
            return np.asarray(crop(image, box, size, aspect)).transpose(2, 0, 1)
    except FileNotFoundError:
        return "missing"
    except PermissionError:
        return "may not be read"
    except Image.DecompressionBombError:
        return f"larger than {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels: make it smaller"
    except UnidentifiedImageError:
        return "damaged, or no picture" if file.stat().st_size else "empty"
    except Exception as error:  # Pillow raises many kinds for damaged files; none may stop the rest
        return f"unreadable ({error})"


def _content(file: Path) -> bytes:
    """A hash of all that is in a file: names, sizes and times can be those of another one."""
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return b"none"


def _cache_name(sources: Sequence[tuple], contents, size: int, aspect: float) -> str:
    """Made of everything that the pixels depend on, so that a change of any of it reads afresh."""
    digest = hashlib.sha256(f"v3 {size} {MARGIN} {aspect}".encode())
    for (_, box, _), content in zip(sources, contents):
        digest.update(content + f" {box} ".encode())
    return f"pictures-{digest.hexdigest()[:20]}"
