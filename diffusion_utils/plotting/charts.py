"""Numbers as lines and points: schedules, losses, errors, quality."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_utils.plotting.style import COLOURS, FONT_SIZE, WIDTH, line_figure, listed, style, with_alt
from diffusion_utils.schedule import Schedule


def schedule_curves(schedules: Mapping[str, Schedule]) -> Figure:
    """Schedules side by side: √ᾱ_t, log₁₀ of the signal-to-noise ratio, and β_t, against t / T."""
    _not_empty(schedules, "schedules", '{"cosine": cosine(1000)}')
    with line_figure(panels=3) as (figure, panels):
        for (name, schedule), dashes in zip(schedules.items(), itertools.cycle(("-", "--", ":", "-."))):
            steps = schedule.num_train_timesteps
            signal = schedule.alphas_cumprod.sqrt()
            for axes, y in zip(panels, (signal, schedule.snr().log10(), schedule.betas)):
                y = _numbers(y)
                y[~np.isfinite(y)] = np.nan  # without any signal, log SNR is -∞
                axes.plot(np.arange(steps) / steps, y, dashes, label=f"{name}, T = {steps}")
        panels[0].set(title="share of signal left", xlabel="t / T", ylabel="√ᾱ")
        panels[1].set(title="signal-to-noise ratio", xlabel="t / T", ylabel="log₁₀ SNR")
        panels[2].set(title="noise added per step", xlabel="t / T", ylabel="β", yscale="log")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return with_alt(
        figure,
        f"Three charts against t / T, for {listed(schedules)}: share of signal left, signal-to-noise ratio, "
        "noise added per step",
    )


def loss_curves(
    logs: Mapping[str, Sequence[Mapping]], smooth: float = 0.9, x: str = "images", logy: bool = True
) -> Figure:
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
    with line_figure() as (figure, (axes,)):
        for name, records in logs.items():
            at, raw = ([record[key] for record in records] for key in (x, "loss"))
            (line,) = axes.plot(at, _running_mean(raw, smooth), label=name)
            if smooth:
                axes.plot(at, raw, color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)
        axes.set(xlabel=xlabels[x], ylabel="loss", yscale="log" if logy else "linear")
        axes.legend()
    return with_alt(figure, f"Chart of the loss against {xlabels[x]}: {listed(logs)}")


def curves(
    x: Sequence[float] | Tensor,
    lines: Mapping[str, Sequence[float] | Tensor],
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    floor: float | None = None,
    floor_label: str = "floor",
    title: str = "",
) -> Figure:
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
    with line_figure() as (figure, (axes,)):
        # Dashes as well as colours, so that a curve under another one can still be seen.
        for (name, y), dashes in zip(lines.items(), itertools.cycle(("-", "--", "-.", ":"))):
            axes.plot(x, y, label=name, linestyle=dashes, marker="o" if len(x) <= 20 else "")
        if floor is not None:
            axes.axhline(floor, color="0.35", linestyle=(0, (1, 1)), linewidth=1.2, label=floor_label)
        axes.set(
            xlabel=xlabel,
            ylabel=ylabel,
            title=title,
            xscale="log" if logx else "linear",
            yscale="log" if logy else "linear",
        )
        if logx and len(x) <= 10:  # few measured points: name them rather than the powers of ten
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.set_xticks([], minor=True)
        axes.legend()
    return with_alt(figure, f"Chart of {ylabel} against {xlabel}{title and ', ' + title}: {listed(lines)}")


def points(
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    floor: float | None = None,
    floor_label: str = "floor",
) -> Figure:
    """Named points, such as parameters against quality; each group has its colour and marker.

    Args:
        groups: name -> (x, y, label) of each point; a group's points are joined by a thin line.
        logx, logy, floor, floor_label: as for `curves`.
    """
    _not_empty(groups, "groups", '{"ours": [(1e6, 0.02, "1 M")]}')
    with line_figure() as (figure, (axes,)):
        for (name, group), marker in zip(groups.items(), itertools.cycle("os^Dvx")):
            x, y = (_numbers([point[i] for point in group]) for i in (0, 1))
            (line,) = axes.plot(x, y, marker=marker, linewidth=0.8, label=name)
            for x, y, label in group:
                axes.annotate(
                    label, (x, y), (4, 4), textcoords="offset points", fontsize=FONT_SIZE - 2, color=line.get_color()
                )
        if floor is not None:
            axes.axhline(floor, color="0.35", linestyle=(0, (1, 1)), linewidth=1.2, label=floor_label)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if logx else "linear", yscale="log" if logy else "linear")
        axes.margins(x=0.12)
        if logx:  # the points say themselves where they lie between the powers of ten
            axes.set_xticks([], minor=True)
        axes.legend()
    return with_alt(figure, f"Points of {ylabel} against {xlabel}: {listed(groups)}")


def dots(
    rows: Mapping[str, Sequence[float]],
    xlabel: str,
    logx: bool = False,
    floor: float | None = None,
    floor_label: str = "floor",
    reference: float | None = None,
) -> Figure:
    """One line per named row, a dot for each of its values (seeds): a ladder of changes, top down.

    Args:
        rows: name -> values.
        floor: drawn dotted;  reference: what the rows are compared with, drawn as a thin line.
    """
    _not_empty(rows, "rows", '{"no skips": [0.1, 0.11]}')
    with style() as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 0.7 + 0.21 * len(rows)), layout="constrained")
        plt.close(figure)
        for y, values in enumerate(rows.values()):
            axes.plot(_numbers(values), [y] * len(values), "o", color=COLOURS[0], markersize=5)
        for x, dashes, label in ((reference, "-", None), (floor, (0, (1, 1)), floor_label)):
            if x is not None:
                axes.axvline(x, color="0.35", linestyle=dashes, linewidth=1, label=label, zorder=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(xlabel=xlabel, xscale="log" if logx else "linear", ylim=(len(rows) - 0.5, -0.5))
        axes.tick_params(labelsize=FONT_SIZE, length=0)
        if floor is not None:
            axes.legend(loc="best")
    return with_alt(figure, f"{xlabel} of {len(rows)} rows, as dots: {listed(rows)}")


def heat_map(values: Tensor, xlabel: str, ylabel: str, width: float = 6.0, height: float = 2.6) -> Figure:
    """A matrix (rows, columns) as colours from blue (low) over white to red (high), row 0 at the top."""
    values = _numbers(values)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values must be a matrix, not of shape {values.shape}")
    with style() as plt:
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        plt.close(figure)
        largest = np.abs(values).max()
        image = axes.imshow(values, "RdBu_r", aspect="auto", interpolation="nearest", vmin=-largest, vmax=largest)
        axes.grid(False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.tick_params(labelsize=FONT_SIZE, color="0.3", labelcolor="0.2")
        figure.colorbar(image, pad=0.02).ax.tick_params(labelsize=FONT_SIZE)
    rows, columns = values.shape
    return with_alt(figure, f"Colours of a matrix, {ylabel} ({rows}) against {xlabel} ({columns})")


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
