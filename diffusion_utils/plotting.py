"""Figures of the notebooks: grids and strips of pictures, schedules, losses.

Pictures are stored squeezed into squares and *shown* at 4:3 (`aspect`), where wheels are round.
`picture_grid` turns a batch into one numpy picture; files, figures and widgets are all made from it.

The functions that return a `Figure` need no `plt.show()`: put the call on the last line of a cell,
or hand the figure to `display`. Each figure is already closed for pyplot, so that Jupyter does not
draw it a second time and none piles up in memory; `figure.savefig(path)` works as ever. The style
applies to these figures alone: importing this module leaves matplotlib's settings untouched.
"""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import to_uint8
from .files import write_atomically
from .schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100  # pixels per inch
WIDTH = 7.0  # inches, the full width of pictures
LARGEST_CELL = 1.7  # inches; a few small pictures are not blown up to the full width
CHARACTER = 0.075  # inches, about the width of a letter at FONT_SIZE
LINE = 0.17  # inches from one line of text to the next
FONT_SIZE = 9
# Okabe and Ito's colours: told apart by colour-blind readers, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def picture_grid(
    images: Tensor, columns: int = 8, aspect: float = 4 / 3, scale: float = 1.0
) -> np.ndarray:
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
    images = _as_uint8(images)
    return _tile(images, _columns(columns, images), aspect, scale)[0]


def save_grid(
    images: Tensor, path: str | Path, columns: int = 8, aspect: float = 4 / 3, scale: float = 2
) -> None:
    """Write `picture_grid(images, …)` to `path` as PNG, whole or not at all; makes its folder."""
    picture = Image.fromarray(picture_grid(images, columns, aspect, scale))
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", optimize=True))


def show_grid(
    images: Tensor, columns: int = 8, titles: Sequence[str] | None = None, title: str | None = None,
    aspect: float = 4 / 3, width: float | None = None,
) -> "Figure":
    """A batch as a figure.

    Args:
        images, columns, aspect: as for `picture_grid`.
        titles: one per picture, written above it and wrapped to its width.
        title: one for the whole figure.
        width: inches; by default 7, or less for fewer pictures.
    """
    images = _as_uint8(images)
    titles = [""] * len(images) if titles is None else titles
    if len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} pictures: give one title each")
    columns = _columns(columns, images)
    width = width or min(WIDTH, columns * LARGEST_CELL)
    texts = [textwrap.fill(str(text), max(8, int(width / columns / CHARACTER))) for text in titles]
    lines = max(text.count("\n") + 1.3 if text else 0 for text in texts)
    figure, axes, x, y = _picture_figure(images, columns, aspect, width, title, band=lines * LINE)
    half = axes.get_ylim()[0] - y[-1]  # of a picture's height
    for index, text in enumerate(texts if lines else ()):
        row, column = divmod(index, columns)
        axes.annotate(text, (x[column], y[row] - half), (0, 4), textcoords="offset points",
                      ha="center", va="bottom", fontsize=FONT_SIZE, color="black")
    return figure


def strip(
    rows: Sequence[Tensor | Sequence[Tensor]], column_labels: Sequence[str],
    row_labels: Sequence[str] | None = None, title: str | None = None,
    aspect: float = 4 / 3, width: float | None = None,
) -> "Figure":
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
    images = torch.cat([_as_uint8(r if isinstance(r, Tensor) else torch.stack(list(r))) for r in rows])
    width = width or min(WIDTH, columns * LARGEST_CELL)
    left = 0.1 + CHARACTER * max(len(str(label)) for label in row_labels) if row_labels else 0
    figure, axes, x, y = _picture_figure(images, columns, aspect, width, title, left=left, top=1.5 * LINE)
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    axes.set_xticks(x, column_labels)
    axes.set_yticks(y if row_labels else [], row_labels)
    axes.tick_params(length=0, pad=4, labelsize=FONT_SIZE, labelcolor="black")
    return figure


def schedule_curves(schedules: Mapping[str, Schedule]) -> "Figure":
    """Schedules side by side: √ᾱ_t, log₁₀ of the signal-to-noise ratio, and β_t, against t / T."""
    _not_empty(schedules, "schedules", '{"cosine": cosine(1000)}')
    with _line_figure(panels=3) as (figure, panels):
        for (name, schedule), style in zip(schedules.items(), cycle(("-", "--", ":", "-."))):
            steps = schedule.num_train_timesteps
            signal = schedule.alphas_cumprod.sqrt()
            for axes, y in zip(panels, (signal, schedule.snr().log10(), schedule.betas)):
                y = _numbers(y)
                y[~np.isfinite(y)] = np.nan  # without any signal, log SNR is -∞
                axes.plot(np.arange(steps) / steps, y, style, label=f"{name}, T = {steps}")
        panels[0].set(title="share of signal left", xlabel="t / T", ylabel="√ᾱ")
        panels[1].set(title="signal-to-noise ratio", xlabel="t / T", ylabel="log₁₀ SNR")
        panels[2].set(title="noise added per step", xlabel="t / T", ylabel="β", yscale="log")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def loss_curves(
    logs: Mapping[str, Sequence[Mapping]], smooth: float = 0.9, x: str = "images", logy: bool = True
) -> "Figure":
    """Training losses of one or several runs: a running mean over the raw values, drawn pale.

    Args:
        logs: name -> records with "loss", "images" (pictures seen) and "seconds", as
            `training.read_log` returns them.
        smooth: weight of the past in the running mean, in [0, 1); 0 draws the raw values alone.
        x: what to draw against, "images" or "seconds".
        logy: logarithmic loss axis.
    """
    _not_empty(logs, "logs", '{"first run": read_log("runs/first/log.jsonl")}')
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth must lie in [0, 1), not {smooth}; 0 means no smoothing")
    xlabels = {"images": "pictures seen", "seconds": "training time in seconds"}
    if x not in xlabels:
        raise ValueError(f'x must be "images" or "seconds", not {x!r}')
    for name, records in logs.items():
        if not records or any(x not in record or "loss" not in record for record in records):
            raise ValueError(f'the log {name!r} needs at least one record, each with "{x}" and "loss"')
    with _line_figure() as (figure, (axes,)):
        for name, records in logs.items():
            at, raw = ([record[key] for record in records] for key in (x, "loss"))
            (line,) = axes.plot(at, _running_mean(raw, smooth), label=name)
            if smooth:
                axes.plot(at, raw, color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)
        axes.set(xlabel=xlabels[x], ylabel="loss", yscale="log" if logy else "linear")
        axes.legend()
    return figure


def curves(
    x: Sequence[float] | Tensor, lines: Mapping[str, Sequence[float] | Tensor],
    xlabel: str, ylabel: str, logx: bool = False, logy: bool = False,
    floor: float | None = None, floor_label: str = "floor", title: str = "",
) -> "Figure":
    """Named lines over a common x, as for the error per timestep.

    Args:
        x: K numbers.
        lines: name -> K numbers; NaN leaves a gap.
        logx, logy: logarithmic axes; they need numbers above 0.
        floor: a level to compare with (the best possible, real against real), drawn dashed.
    """
    _not_empty(lines, "lines", '{"x₀": errors}')
    x, lines = _numbers(x), {name: _numbers(y) for name, y in lines.items()}
    for name, y in lines.items():
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"{name!r} has shape {y.shape} but x has {x.shape}: give one y for each x")
    for what, log, values in (("x", logx, [x]), ("y", logy, lines.values())):
        if log and any((value <= 0).any() for value in values):
            raise ValueError(f"log{what} needs {what} above 0: shift the values or set log{what}=False")
    with _line_figure() as (figure, (axes,)):
        # Dashes as well as colours, so that a curve under another one can still be seen.
        for (name, y), dashes in zip(lines.items(), itertools.cycle(("-", "--", "-.", ":"))):
            axes.plot(x, y, label=name, linestyle=dashes, marker="o" if len(x) <= 20 else "")
        if floor is not None:
            axes.axhline(floor, color="0.35", linestyle=(0, (1, 1)), linewidth=1.2, label=floor_label)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title,
                 xscale="log" if logx else "linear", yscale="log" if logy else "linear")
        if logx and len(x) <= 10:  # few measured points: name them rather than the powers of ten
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.set_xticks([], minor=True)
        axes.legend()
    return figure


def network_drawing(stages: Sequence, shape: tuple[int, int, int] = (3, 64, 64)) -> "Figure":
    """A network as a row of boxes: as tall as its pictures, as wide as its channels (by root).

    Args:
        stages: from `networks.stages`; those without height and width (the embedding) are left out.
        shape: of the picture that goes in, (C, H, W).
    """
    boxes = [("input", "", tuple(shape), 0)] + [s for s in stages if len(s[2]) == 3]
    if len(boxes) < 2:
        raise ValueError("no stages to draw: pass networks.stages(net, shape)")
    fill = {"encoder": COLOURS[5], "decoder": COLOURS[4], "input": "0.85", "head": "0.85", "stem": "0.85"}
    with _style() as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 2.9), layout="constrained")
        plt.close(figure)
        x = 0.0
        for part, kind, (channels, height, width), _ in boxes:
            wide = 0.5 + channels**0.5 / 6
            tall = height / shape[1] * 6
            axes.add_patch(
                plt.Rectangle((x, -tall / 2), wide, tall, facecolor=fill.get(part, "0.7"), edgecolor="0.25")
            )
            axes.text(x + wide / 2, 0, f"{channels}", ha="center", va="center", color="black",
                      rotation=90 if tall > wide else 0)
            axes.text(x + wide / 2, tall / 2 + 0.15, f"{height}²" if height == width else f"{height}×{width}",
                      ha="center", va="bottom", color="black", fontsize=FONT_SIZE - 1)
            label = part if part in ("input", "stem", "head") else kind.split(" + ")[0]
            axes.text(x + wide / 2, -3.3, label, ha="right", va="top", rotation=40,
                      rotation_mode="anchor", color="black", fontsize=FONT_SIZE - 1)
            x += wide + 0.45
        axes.set(xlim=(-0.8, x), ylim=(-5.2, 3.9))
        axes.set_axis_off()
    return figure


def _as_uint8(images: Tensor) -> Tensor:
    """The batch as uint8 on the CPU, or an error that says what is wrong with it."""
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a tensor of pictures, not {type(images).__name__}")
    if images.dim() != 4 or images.shape[1] != 3:
        hint = "; for a single picture pass image[None]" if images.dim() == 3 else ""
        raise ValueError(f"expected pictures of shape (N, 3, H, W), not {tuple(images.shape)}{hint}")
    if images.numel() == 0:
        raise ValueError(f"no pictures to show: the batch has shape {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"expected float pictures in [-1, 1] or uint8, not {images.dtype}")
    images = images.detach().cpu()
    return images if images.dtype == torch.uint8 else to_uint8(images)


def _columns(columns: int, images: Tensor) -> int:
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"columns must be a whole number of at least 1, not {columns!r}")
    return min(columns, len(images))


def _tile(
    images: Tensor, columns: int, aspect: float, scale: float, band: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`picture_grid` with an empty band of pixels above each row; left and top edges of the cells."""
    if not (aspect > 0 and scale > 0):
        raise ValueError(f"aspect and scale must be above 0, not {aspect} and {scale}")
    height = max(1, round(images.shape[2] * scale))
    width, gap = max(1, round(height * aspect)), max(1, round(height / 32))
    lefts = np.arange(columns) * (width + gap)
    tops = np.arange(-(-len(images) // columns)) * (height + band + gap) + band
    grid = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        top, left = tops[index // columns], lefts[index % columns]
        shown = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        grid[top : top + height, left : left + width] = np.asarray(shown)
    return grid, lefts, tops


@contextmanager
def _style() -> Iterator:
    """Matplotlib's own defaults plus ours, whatever the reader has set, and only in here."""
    import matplotlib.pyplot as plt  # here, so that the command line need not wait for it

    ours = {
        "figure.dpi": DPI, "savefig.dpi": DPI, "font.size": FONT_SIZE, "lines.linewidth": 1.8,
        "axes.titlesize": FONT_SIZE + 1, "figure.titlesize": FONT_SIZE + 2, "lines.markersize": 4,
        "axes.prop_cycle": plt.cycler(color=COLOURS), "axes.grid": True, "grid.color": "0.9",
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    }
    with plt.style.context(["default", ours]):
        yield plt


def _picture_figure(
    images: Tensor, columns: int, aspect: float, width: float, title: str | None,
    band: float = 0, left: float = 0, top: float = 0,
) -> "tuple[Figure, Axes, np.ndarray, np.ndarray]":
    """uint8 pictures, pixel for pixel, `width` inches wide, with more inches of room for labels.

    Returns the figure, its axes, and the middle of each column and of each row, in pixels.
    """
    scale = width * DPI / (columns * (aspect + 1 / 32) * images.shape[2])
    grid, lefts, tops = _tile(images, columns, aspect, scale, round(band * DPI))
    height, width = grid.shape[0] / DPI, grid.shape[1] / DPI
    top += 1.7 * LINE if title else 0
    with _style() as plt:
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


@contextmanager
def _line_figure(panels: int = 1) -> "Iterator[tuple[Figure, list[Axes]]]":
    """A figure of one or more panels for curves, closed for pyplot from the start."""
    with _style() as plt:
        size = (8, 2.9) if panels > 1 else (6, 3.2)
        figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
        plt.close(figure)
        for each in axes.flat:  # ticks are made later, outside of our style: fix theirs now
            each.tick_params(labelsize=FONT_SIZE, color="0.3", labelcolor="0.2")
        yield figure, list(axes.flat)


def _running_mean(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean, divided by the weights so far so that it does not start at 0 (Adam's way)."""
    total, weights, means = 0.0, 0.0, []
    for value in values:
        total, weights = weight * total + value, weight * weights + 1
        means.append(total / weights)
    return means


def _numbers(values) -> np.ndarray:
    return np.array(values.detach().double().cpu().numpy() if isinstance(values, Tensor) else values, float)


def _not_empty(mapping, name: str, example: str) -> None:
    if not isinstance(mapping, Mapping) or len(mapping) == 0:
        raise ValueError(f"{name} must be a dict with at least one entry, such as {example}")
