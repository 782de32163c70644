"""How the figures look, in one place; importing it changes no setting of the reader's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100  # pixels per inch
WIDTH = 7.0  # inches, the full width of pictures
CHARACTER = 0.075  # inches, about the width of a letter at FONT_SIZE
LINE = 0.17  # inches from one line of text to the next
FONT_SIZE = 9
# Okabe and Ito's colours: told apart by colour-blind readers, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def style() -> Iterator:
    """Matplotlib's own defaults plus ours, whatever the reader has set, and only in here."""
    import matplotlib.pyplot as plt  # here, so that the command line need not wait for it

    ours = {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "font.size": FONT_SIZE,
        "lines.linewidth": 1.8,
        "axes.titlesize": FONT_SIZE + 1,
        "figure.titlesize": FONT_SIZE + 2,
        "lines.markersize": 4,
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.grid": True,
        "grid.color": "0.9",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with plt.style.context(["default", ours]):
        yield plt


@contextmanager
def line_figure(panels: int = 1) -> "Iterator[tuple[Figure, list[Axes]]]":
    """A figure of one or more panels for curves, closed for pyplot from the start."""
    with style() as plt:
        size = (8, 2.9) if panels > 1 else (6, 3.2)
        figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
        plt.close(figure)
        for each in axes.flat:  # ticks are made later, outside of our style: fix theirs now
            each.tick_params(labelsize=FONT_SIZE, color="0.3", labelcolor="0.2")
        yield figure, list(axes.flat)


def described(figure: "Figure", text: str) -> "Figure":
    """The same figure with `figure.alt`, what it shows in words, for readers who cannot see it.

    Jupyter stores the text beside the picture, from where a page that is made of the notebook takes it.
    """
    figure.alt = text
    # IPython asks for this first; it adds nothing but the text, and the picture is made as ever.
    figure._repr_mimebundle_ = partial(_words_alone, text)
    return figure


def _words_alone(text: str, include=None, exclude=None) -> tuple[dict, dict]:
    """IPython's (data, metadata) of a picture that is described here and made elsewhere."""
    return {}, {"image/png": {"alt": text}}


def listed(names) -> str:
    """Names in a sentence: a, b and c; of many, the first ones and the last."""
    names = [" ".join(str(name).split()) for name in names]
    if len(names) > 8:
        names = [*names[:3], "…", names[-1]]
    comma = "; " if any("," in name for name in names) else ", "
    return " and ".join(filter(None, [comma.join(names[:-1]), names[-1]]))


def numbers(values) -> np.ndarray:
    return np.array(values.detach().double().cpu().numpy() if isinstance(values, Tensor) else values, float)


def not_empty(mapping, name: str, example: str) -> None:
    if not isinstance(mapping, Mapping) or len(mapping) == 0:
        raise ValueError(f"{name} must be a dict with at least one entry, such as {example}")
