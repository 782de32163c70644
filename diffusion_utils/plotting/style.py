"""How the figures look, in one place; importing it changes no setting of the reader's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 100  # pixels per inch
WIDTH = 7.0  # inches, the full width of pictures
CHARACTER = 0.075  # inches, about the width of a letter at FONT_SIZE
LINE = 0.17  # inches from one line of text to the next
FONT_SIZE = 9
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def style() -> Iterator:
    """Matplotlib's own defaults plus style.mplstyle, whatever the reader has set, and only in here."""
    import matplotlib.pyplot as plt  # here, so that the command line need not wait for it

    with plt.style.context(["default", Path(__file__).with_suffix(".mplstyle")]):
        yield plt


@contextmanager
def line_figure(panels: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of one or more panels for curves, closed for pyplot from the start."""
    with style() as plt:
        size = (8, 2.9) if panels > 1 else (6, 3.2)
        figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
        plt.close(figure)
        for panel in axes.flat:  # ticks are made later, outside of our style: fix theirs now
            panel.tick_params(labelsize=FONT_SIZE, color="0.3", labelcolor="0.2")
        yield figure, list(axes.flat)


def with_alt(figure: Figure, text: str) -> Figure:
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
