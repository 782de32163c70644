"""Pictures side by side: as one numpy array, as a PNG file, as a figure with labels."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffusion_utils.data import as_uint8
from diffusion_utils.files import write_atomically
from diffusion_utils.plotting.style import CHARACTER, DPI, FONT_SIZE, LINE, WIDTH, listed, style, with_alt

# By the ending of a file's name, how Pillow saves it.
JPEG, TIFF = {"format": "JPEG", "quality": 92}, {"format": "TIFF"}
FORMATS = {".png": {"format": "PNG", "optimize": True}, ".jpg": JPEG, ".jpeg": JPEG}
FORMATS |= {".webp": {"format": "WEBP", "quality": 92}, ".gif": {"format": "GIF"}, ".tif": TIFF, ".tiff": TIFF}
LARGEST_CELL = 1.7  # inches; a few small pictures are not blown up to the full width


def picture_grid(images: Tensor, columns: int = 8, aspect: float = 4 / 3, scale: float = 1.0) -> np.ndarray:
    """A batch as one picture, row by row, on white.

    Args:
        images: (N, 3, H, W), float in [-1, 1] (values outside are clipped) or uint8.
        columns: pictures per row; fewer when there are fewer pictures.
        aspect: width / height at which each is shown: 64x64 pictures become 85x64 at 4:3.
        scale: height of each shown picture / H.

    Returns:
        uint8 numpy array [height, width, 3]. Cells lie 1/32 of their height apart (at least one
        pixel); there is no margin around them.

    Raises:
        ValueError: no pictures, another shape or dtype, or a number that is not positive.
        TypeError: `images` is no tensor.
    """
    images = as_uint8(images)
    return _tile(images, _columns(columns, images), aspect, scale)[0]


def save_grid(images: Tensor, path: str | Path, columns: int = 8, aspect: float = 4 / 3, scale: float = 2) -> None:
    """Write `picture_grid(images, …)` to `path`; see `save_picture`."""
    save_picture(picture_grid(images, columns, aspect, scale), path)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write uint8 [height, width, 3] to `path`, whole or not at all; makes its folder.

    In the format that the name ends in: .png keeps every pixel exactly, .jpg and .webp take a seventh of the
    size and can hardly be told from it.

    Raises:
        ValueError: another array, or another ending than those of `FORMATS`.
    """
    check_picture(picture)
    form = picture_format(path)
    write_atomically(path, lambda temporary: Image.fromarray(picture).save(temporary, **form))


def check_picture(picture: np.ndarray) -> None:
    """Raise a ValueError for anything but uint8 [height, width, 3]."""
    if getattr(picture, "dtype", None) != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        found = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise ValueError(f"expected a uint8 array [height, width, 3], not {found}: make one with plotting.picture_grid")


def picture_format(path: str | Path) -> dict:
    """How Pillow is to save a picture under this name.

    Raises:
        ValueError: another ending than those of `FORMATS`.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"{path} must end in the format of a picture: choose one of {', '.join(FORMATS)}")
    return FORMATS[ending]


def show_grid(
    images: Tensor,
    columns: int = 8,
    titles: Sequence[str] | None = None,
    title: str | None = None,
    aspect: float = 4 / 3,
    width: float | None = None,
) -> Figure:
    """A batch as a figure.

    Args:
        images, columns, aspect: as for `picture_grid`.
        titles: one per picture, written above it and wrapped to its width.
        title: one for the whole figure.
        width: inches; by default 7, or less for fewer pictures.
    """
    images = as_uint8(images)
    titles = [""] * len(images) if titles is None else titles
    if len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} pictures: give one title each")
    columns = _columns(columns, images)
    width = _width(width, columns)
    texts = [textwrap.fill(str(text), max(8, int(width / columns / CHARACTER))) for text in titles]
    lines = max(text.count("\n") + 1.3 if text else 0 for text in texts)
    figure, axes, x, y = _picture_figure(images, columns, aspect, width, title, band=lines * LINE)
    half = axes.get_ylim()[0] - y[-1]  # of a picture's height
    for index, text in enumerate(texts if lines else ()):
        row, column = divmod(index, columns)
        axes.annotate(
            text,
            (x[column], y[row] - half),
            (0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=FONT_SIZE,
            color="black",
        )
    under = f": {listed(titles)}" if lines else ""
    return with_alt(figure, f"{len(images)} pictures, {columns} in a row{title and f', {title}' or ''}{under}")


def strip(
    rows: Sequence[Tensor | Sequence[Tensor]],
    column_labels: Sequence[str],
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
    aspect: float = 4 / 3,
    width: float | None = None,
) -> Figure:
    """Pictures in rows under labelled columns: a forward process, a reverse process, a comparison.

    Noise does not compress: in PNG three rows of eight 64x64 pictures that end in noise take about
    400 KB at full width, one row 150.

    Args:
        rows: R rows of K pictures each: batches (K, 3, H, W), or lists of K pictures (3, H, W).
        column_labels: K texts, such as "t = 250".
        row_labels: R texts, written to the left.
        title, aspect, width: as for `show_grid`; `width` is without the row labels.

    Raises:
        ValueError: no rows, rows of different length, or a wrong number of labels.
    """
    lengths = [len(row) for row in rows]
    if not lengths or 0 in lengths:
        raise ValueError("no pictures to show: give at least one row of at least one picture")
    if len(set(lengths)) > 1:
        raise ValueError(f"rows of {lengths} pictures: make them equally long")
    columns = lengths[0]
    if len(column_labels) != columns:
        raise ValueError(f"{len(column_labels)} column_labels for {columns} columns: give one each")
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"{len(row_labels)} row_labels for {len(rows)} rows: give one each")
    images = torch.cat([as_uint8(r if isinstance(r, Tensor) else torch.stack(list(r))) for r in rows])
    width = _width(width, columns)
    left = 0.1 + CHARACTER * max(len(str(label)) for label in row_labels) if row_labels else 0
    figure, axes, x, y = _picture_figure(images, columns, aspect, width, title, left=left, top=1.5 * LINE)
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    axes.set_xticks(x, column_labels)
    axes.set_yticks(y if row_labels else [], row_labels)
    axes.tick_params(length=0, pad=4, labelsize=FONT_SIZE, labelcolor="black")
    down = (
        f"{len(rows)} rows of pictures: {listed(row_labels)}"
        if row_labels
        else f"Pictures in {len(rows)} row{'s'[: len(rows) > 1]}"
    )
    return with_alt(figure, f"{down}; from left to right {listed(column_labels)}{title and f'; {title}' or ''}")


def _width(width: float | None, columns: int) -> float:
    """Inches of a figure."""
    if width is not None and not 0 < width < math.inf:
        raise ValueError(f"width must be above 0 inches, not {width}")
    return min(WIDTH, columns * LARGEST_CELL) if width is None else width


def _columns(columns: int, images: Tensor) -> int:
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"columns must be a whole number of at least 1, not {columns!r}")
    return min(columns, len(images))


def _tile(
    images: Tensor, columns: int, aspect: float, scale: float, band: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`picture_grid` with an empty band of pixels above each row; left and top edges of the cells."""
    if not (0 < aspect < math.inf and 0 < scale < math.inf):
        raise ValueError(f"aspect and scale must be above 0, not {aspect} and {scale}")
    height = max(1, round(images.shape[2] * scale))
    width, gap = max(1, round(height * aspect)), max(1, round(height / 32))
    lefts = np.arange(columns) * (width + gap)
    tops = np.arange(-(-len(images) // columns)) * (height + band + gap) + band
    grid = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        top, left = tops[index // columns], lefts[index % columns]
        cell = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        grid[top : top + height, left : left + width] = np.asarray(cell)
    return grid, lefts, tops


def _picture_figure(
    images: Tensor,
    columns: int,
    aspect: float,
    width: float,
    title: str | None,
    band: float = 0,
    left: float = 0,
    top: float = 0,
) -> tuple[Figure, Axes, np.ndarray, np.ndarray]:
    """uint8 pictures, pixel for pixel, `width` inches wide, with more inches of room for labels.

    Returns the figure, its axes, and the middle of each column and of each row, in pixels.
    """
    scale = width * DPI / (columns * (aspect + 1 / 32) * images.shape[2])
    grid, lefts, tops = _tile(images, columns, aspect, scale, round(band * DPI))
    grid = np.minimum((grid.astype(int) + 3) // 6 * 6, 255).astype(np.uint8)  # 44 levels look alike, in half the bytes
    height, width = grid.shape[0] / DPI, grid.shape[1] / DPI
    top += 1.7 * LINE if title else 0
    with style() as plt:
        figure = plt.figure(figsize=(left + width, top + height))
        plt.close(figure)
        box = (left / (left + width), 0, width / (left + width), height / (top + height))
        axes = figure.add_axes(box)
        axes.imshow(grid, interpolation="nearest", aspect="auto")
        axes.grid(False)
        axes.set_axis_off()
        if title:
            figure.suptitle(title, x=box[0] + box[2] / 2, y=1 - LINE / 3 / (top + height), va="top")
    middle = [(size - edge) / 2 - 0.5 for size, edge in zip(grid.shape, (tops[-1], lefts[-1]))]
    return figure, axes, lefts + middle[1], tops + middle[0]
