"""Points, arrows and paths in the plane, for diffusion that can be watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_utils.plotting.style import COLOURS, FONT_SIZE, LINE, WIDTH, listed, style, with_alt


@dataclass(frozen=True)
class Plane:
    """What one panel shows; any of it may be missing.

    dots: (N, 2), filled;  ghosts: (N, 2), pale, behind all else, such as the data.
    hues: (N,) in [0, 1], the colour of each dot, on a colour wheel; default: all blue.
    ends: (N, 2): an arrow leads from each dot to its end.
    arrows: (points (M, 2), vectors (M, 2)) on a regular grid, or a list of such pairs, each in its colour; a panel has
        one scale, in which long vectors are shortened (by tanh), so that they do not cross their neighbours.
    paths: (steps, N, 2), a thin line for each of N points, from a ring (where it begins) to a dot.
    shade: (points (M, 2), values (M,)) on a regular grid, drawn as grey, dark where large.
    """

    dots: Tensor | None = None
    ghosts: Tensor | None = None
    hues: Tensor | None = None
    ends: Tensor | None = None
    arrows: tuple | Sequence[tuple] | None = None
    paths: Tensor | None = None
    shade: tuple | None = None


def mesh(count: int = 17, limit: float = 2.4) -> Tensor:
    """count × count points of a regular grid over [-limit, limit]², (count², 2), row by row."""
    side = torch.linspace(-limit, limit, count)
    return torch.cartesian_prod(side, side).flip(1)


def planes(
    panels: Mapping[str, Plane | Sequence[Plane]],
    columns: int | None = None,
    limit: float = 2.7,
    width: float = WIDTH,
    row_labels: Sequence[str] = (),
) -> Figure:
    """Panels side by side.

    Args:
        panels: title -> what the panel shows; with `row_labels` what each panel of the column under it shows.
        columns: panels in a row; default: all of them.
        limit: each panel shows [-limit, limit] in both directions.
        width: inches of the figure.
        row_labels: a text for each row, written to the left.

    Raises:
        ValueError: a column has not as many panels as there are row labels.
    """
    if row_labels and {len(column) for column in panels.values()} != {len(row_labels)}:
        raise ValueError(f"give each title {len(row_labels)} panels, as many as there are row labels")
    columns = min(columns or len(panels), len(panels))
    rows = len(row_labels) or -(-len(panels) // columns)
    side = (width - 0.25 * bool(row_labels)) / columns
    shown = panels.items()
    if row_labels:
        shown = [(title * (i == 0), column[i]) for i in range(rows) for title, column in panels.items()]
    with style() as plt:
        size = (width, rows * side + 1.6 * LINE * any(panels) * (1 if row_labels else rows))
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        plt.close(figure)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.02)
        for place in axes.flat:
            place.set_axis_off()
        for place, (title, panel) in zip(axes.flat, shown):
            place.set_axis_on()
            place.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
            place.set_title(title, fontsize=FONT_SIZE, pad=4)
            place.spines[:].set(visible=True, color="0.8")
            _draw(place, panel, side / 2.3)
        for place, label in zip(axes[:, 0], row_labels):
            place.set_ylabel(label, fontsize=FONT_SIZE)
    down = f", in {rows} rows: {listed(row_labels)}" if row_labels else ""
    return with_alt(figure, f"Panels of the plane: {listed(panels)}{down}")


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes, for a frame of `widgets.frame_slider`."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes, panel: Plane, scale: float) -> None:
    """One panel; scale: 1 for a panel of 2.3 inches."""
    if panel.shade is not None:
        points, values = panel.shade
        side = round(len(points) ** 0.5)
        box = [float(points[0, 0]), float(points[-1, 0]), float(points[0, 1]), float(points[-1, 1])]
        shown = np.asarray(values).reshape(side, side)
        axes.imshow(shown, origin="lower", extent=box, cmap="Greys", vmax=1.6 * shown.max(), interpolation="bilinear")
    axes.grid(False)
    if panel.ghosts is not None:
        axes.scatter(*np.asarray(panel.ghosts).T, s=2.5 * scale, color="0.78", linewidths=0)
    if panel.paths is not None:
        paths = np.asarray(panel.paths)
        axes.plot(paths[:, :, 0], paths[:, :, 1], color=COLOURS[0], linewidth=0.9 * scale, alpha=0.7)
        axes.scatter(*paths[0].T, s=10 * scale, facecolor="white", edgecolor="0.4", linewidths=0.7, zorder=3)
        axes.scatter(*paths[-1].T, s=9 * scale, color=COLOURS[1], linewidths=0, zorder=4)
    if panel.dots is not None:
        colours = {"color": COLOURS[0]}
        if panel.hues is not None:
            colours = {"c": np.asarray(panel.hues), "cmap": "hsv", "vmin": 0, "vmax": 1}
        axes.scatter(*np.asarray(panel.dots).T, s=5 * scale, linewidths=0, alpha=0.8, **colours)
    if panel.ends is not None:
        move, how = np.asarray(panel.ends - panel.dots).T, {"angles": "xy", "scale_units": "xy", "scale": 1}
        axes.quiver(*np.asarray(panel.dots).T, *move, color=COLOURS[1], width=0.006, alpha=0.8, **how)
    if panel.arrows is not None:
        many = [panel.arrows] if isinstance(panel.arrows, tuple) else panel.arrows
        typical = np.median(np.linalg.norm(np.asarray(many[0][1]), axis=1))
        apart = np.ptp(np.asarray(many[0][0])[:, 0]) / (len(many[0][0]) ** 0.5 - 1)
        for (points, vectors), colour, width in zip(many, ("black", COLOURS[4]), (0.009, 0.0045)):
            lengths = np.linalg.norm(np.asarray(vectors), axis=1, keepdims=True).clip(min=1e-12)
            shown = np.asarray(vectors) / lengths * 0.95 * apart * np.tanh(lengths / typical)
            how = {"angles": "xy", "scale_units": "xy", "scale": 1, "color": colour, "width": width}
            how |= {"headwidth": 3.2, "headlength": 4, "headaxislength": 3.6, "minlength": 0.5}
            axes.quiver(*np.asarray(points).T, *shown.T, **how, zorder=5)
