"""What stands in a widget's place in the book: its slider's frames, or a table of prompts, drawn in advance."""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import ipywidgets
import matplotlib
import torch
from bs4 import BeautifulSoup
from files import put_jpeg
from PIL import Image
from widget_cells import widget_cells

STOPS = 41  # frames of a slider that has more values than that
SCALES = (1, 3, 5)  # guidance scales of a prompt box's table


def figures(path: Path, folder: Path, drawn: bool) -> Iterator[tuple[int, dict]]:
    """For each widget of a notebook the number of its cell, and values for the template.

    Args:
        path: of the notebook.
        folder: of the book; pictures go to its frames/.
        drawn: False for a note in the widget's place.
    """
    for number, (place, sources) in enumerate(widget_cells(path), 1):
        if not drawn:
            yield place, {"frames": []}
            continue
        box, names = run(path, sources)
        first, label, image = box.children
        controls, moves = prompts(first, names, path) if isinstance(first, ipywidgets.VBox) else stops(first)
        frames = {}
        for k in moves:
            name = f"frames/{path.stem}-{number}/{k:02}.jpg"
            with Image.open(io.BytesIO(image.value)) as picture:
                # Not WebP: it halves the resolution of colours, and noise would turn grey.
                put_jpeg(folder / name, picture, quality=90, subsampling=0)
                shape, own = picture.height / picture.width, f"{picture.width}px"
            words = re.sub(r"\s+·\s+", ", ", BeautifulSoup(label.value, "html.parser").get_text())
            frames[k] = [name, label.value, f"The pictures: {words}"]
        width = int((image.layout.width or own).removesuffix("px"))
        start = frames[sum(control["start"] * control["stride"] for control in controls)]
        values = {"frames": [frames[k] for k in sorted(frames)], "controls": controls, "start": start}
        yield place, values | {"width": width, "height": round(width * shape)}


def run(path: Path, sources: list[str]) -> tuple[ipywidgets.VBox, dict]:
    """The widget at the end of the last of these cells, and the names that the cells define."""
    names, box = {}, None
    matplotlib.use("Agg")
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        for source in sources:
            tree = ast.parse(source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            try:
                exec(compile(tree, path.name, "exec"), names)  # our own notebooks' code
                box = eval(compile(ast.Expression(last.value), path.name, "eval"), names) if last else None
            except Exception as error:
                raise ValueError(f"{path.name}: the cells of its widget fail: {error!r}") from error
    if not isinstance(box, ipywidgets.VBox):
        raise ValueError(f"{path.name}: a cell that calls a widget has to show it, in its last line")
    return box, names


def stops(control: ipywidgets.Widget) -> tuple[list[dict], Iterator[int]]:
    """An IntSlider, or a scrubber's HBox of Play and IntSlider, for the template; and what moves it stop by stop."""
    steps = isinstance(control, ipywidgets.HBox)  # of a walk: every one counts
    slider = control.children[1] if steps else control
    last = slider.max if steps else min(STOPS - 1, slider.max)

    def moves():
        for k in range(last + 1):
            slider.value = round(slider.max * k / max(last, 1))
            yield k

    start = last // 2 if steps else last // 4  # where cars and noise are both to be seen
    return [{"name": slider.description, "max": last, "start": start, "stride": 1}], moves()


def prompts(box: ipywidgets.VBox, names: dict, path: Path) -> tuple[list[dict], Iterator[int]]:
    """A prompt box's choices for the template, the prompts out of the notebook's PROMPTS; and what draws each."""
    text, slider, _ = box.children
    options = names.get("PROMPTS", [])
    if text.value not in options:
        raise ValueError(
            f"{path.name}: a prompt box needs a list PROMPTS of what to draw in advance, its own prompt among them"
        )

    def moves():
        for i, scale in enumerate(SCALES):
            slider.value = scale
            for j in range(len(options))[:: (-1) ** i]:  # to and fro: each change costs a drawing
                text.value = options[j]
                yield i * len(options) + j

    prompt = {"name": text.description, "options": options, "start": options.index(text.value), "stride": 1}
    scale = {"name": slider.description, "options": SCALES, "start": SCALES.index(3), "stride": len(options)}
    return [prompt, scale], moves()
