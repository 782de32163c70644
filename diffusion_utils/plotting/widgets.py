"""Sliders for the notebooks: noise at timestep t, and a walk along a sampler's steps.

Each function returns a `VBox`; as the last line of a cell it shows in JupyterLab and Colab, and
the arrow keys move its slider. GitHub shows no widgets, so a static figure (`plotting.strip`)
always stands beside one. A `VBox` holds, in this order,

    controls, label, image = box.children

where `controls` is an `IntSlider`, or for a scrubber an `HBox` of `Play` and `IntSlider`; setting
`slider.value` redraws label and image, which is how tests drive it.

Only core ipywidgets, and only what versions 7.7 (Colab) and 8 share. The picture travels as PNG
bytes made with Pillow, within a few milliseconds; drawing a matplotlib figure takes over 100, and
an Output widget flickers. It is sent small, and the browser enlarges it.
"""

import functools
import html
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import ipywidgets
import numpy as np
import torch
import traitlets
from PIL import Image
from torch import Tensor

from diffusion_utils.plotting.pictures import check_picture, picture_grid
from diffusion_utils.sampling import generator
from diffusion_utils.schedule import Schedule

CELL_HEIGHT = 128  # pixels on screen that one picture is high, unless the row gets too wide
WIDEST = 760  # pixels, the width of a notebook
WHOLE = "calc(100% - 4px)"  # the width of the page: ipywidgets puts a margin of 2 pixels on either side


class Picture(ipywidgets.Image):
    """An `ipywidgets.Image` with words for readers who cannot see it, which Image has not.

    Version 8 makes of `tooltip` the picture's title, which screen readers read out; version 7 leaves it alone.
    """

    # Where there is a tooltip the page asks for a description, too.
    description = traitlets.Unicode("").tag(sync=True)
    tooltip = traitlets.Unicode("").tag(sync=True)


def encode(picture: np.ndarray) -> bytes:
    """A picture as PNG bytes, fast rather than small.

    Args:
        picture: uint8 array [height, width, 3], such as `plotting.picture_grid` returns.
    """
    check_picture(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def frame_slider(
    frames: Sequence[bytes] | Callable[[int], bytes],
    labels: Sequence[str] | Callable[[int], str],
    description: str,
    count: int | None = None,
    width: int | None = None,
    play: bool = False,
    shows: str = "",
) -> ipywidgets.VBox:
    """A slider that shows frame k and label k; the other widgets here are made from it.

    Args:
        frames: PNG bytes for k = 0 … count-1, or a function that makes them when asked.
        labels: a line of HTML for each, or a function.
        description: the slider's name.
        count: number of frames; needed only where `frames` is a function.
        width: pixels on screen; narrower where the page is. Default: as large as the frames are.
        play: a button that runs through the frames.
        shows: what the picture shows, for readers who cannot see it.

    Returns:
        VBox of (IntSlider, HTML, Image), or of (HBox of (Play, IntSlider), HTML, Image).

    Raises:
        ValueError: no frames, or not as many labels as frames.
    """
    if not callable(frames):
        count = len(frames)
    if count is None or count < 1:
        raise ValueError("no frames to show: give at least one, or `count` with a function")
    if not callable(labels) and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} frames: give one label each")
    frame = frames if callable(frames) else frames.__getitem__
    text = labels if callable(labels) else labels.__getitem__

    style, layout = {"description_width": "initial"}, ipywidgets.Layout(width=WHOLE, max_width="600px")
    slider = ipywidgets.IntSlider(0, 0, count - 1, description=description, style=style, layout=layout)
    slider.tooltip = description  # version 8 would show "null" over the slider's name
    label = ipywidgets.HTML()
    layout = ipywidgets.Layout(max_width=WHOLE, **({"width": f"{width}px"} if width else {}))
    image = Picture(format="png", layout=layout, tooltip=shows)

    def redraw(change):
        with _errors_in(label):
            image.value, label.value = frame(change["new"]), text(change["new"])

    redraw({"new": 0})
    slider.observe(redraw, names="value")
    controls = slider
    if play:
        button = ipywidgets.Play(value=0, min=0, max=count - 1, interval=max(50, min(400, 6000 // count)))
        ipywidgets.jslink((button, "value"), (slider, "value"))
        controls = ipywidgets.HBox([button, slider], layout=ipywidgets.Layout(width=WHOLE))
    # Without flex-start a VBox would stretch the picture to its own width.
    box = ipywidgets.Layout(align_items="flex-start", width=WHOLE)
    return ipywidgets.VBox([controls, label, image], layout=box)


def noise_slider(
    images: Tensor, schedule: Schedule, seed: int = 0, columns: int = 4, aspect: float = 4 / 3
) -> ipywidgets.VBox:
    """Pictures at timestep t of the forward process: drag t and watch them drown.

    The noise ε is drawn once, `torch.randn(images.shape)` from a generator with `seed`, and kept:
    between two timesteps only its share changes (DDPM eq. 4), so that dragging is smooth.

    Args:
        images: (N, 3, H, W), float in [-1, 1].
        schedule: gives T and how much noise there is at each t.
        seed: of the noise.
        columns, aspect: as for `plotting.picture_grid`.

    Returns:
        VBox of (IntSlider t from 0 to T-1, HTML label, Image).
    """
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        raise ValueError("expected float pictures in [-1, 1]: convert them with data.to_float")
    # Its height and width, and an early error for anything that is no batch of pictures.
    size = picture_grid(images, columns, aspect).shape
    images = images.detach().float().cpu()
    noise = torch.randn(images.shape, generator=generator(seed))

    def frame(t: int) -> bytes:
        return encode(picture_grid(schedule.add_noise(images, noise, t), columns, aspect))

    def label(t: int) -> str:
        snr = float(schedule.snr(torch.tensor(t)))
        ratio = f"{snr:,.0f}" if snr >= 1000 else f"{snr:.3g}"
        decibels = f"{10 * math.log10(snr):.1f}".replace("-", "−") if snr > 0 else "−∞"
        share = float(schedule.alphas_cumprod[t].sqrt())
        return _line(
            f"<b>t = {t}</b>",
            f"signal-to-noise ratio {ratio} ({decibels} dB)",
            f"share of signal left √ᾱ = {share:.3f}",
        )

    return frame_slider(
        frame,
        label,
        "t",
        count=schedule.num_train_timesteps,
        width=_width_on_screen(size[1], images.shape[2]),
        shows=f"{len(images)} pictures with the noise of timestep t",
    )


def scrubber(steps: Iterable[tuple[int, Tensor, Tensor]], columns: int = 4, aspect: float = 4 / 3) -> ipywidgets.VBox:
    """A sampler's steps, back and forth: x_t on the left, the picture x̂₀ it foresees on the right.

    Args:
        steps: what a sampler yields: tuples (t, x_t, x0) with batches (N, 3, H, W), float in
            [-1, 1]; t = -1 marks the finished picture. Kept in memory as long as the widget.
        columns: pictures per row on each side.
        aspect: as for `plotting.picture_grid`.

    Returns:
        VBox of (HBox of (Play, IntSlider over the steps), HTML label, Image).

    Raises:
        ValueError: no steps, or x_t and x0 of different shapes.
    """
    steps = [(int(t), x_t, x0) for t, x_t, x0 in steps]
    if not steps:
        raise ValueError("no steps to show: pass list(sampler), each step being (t, x_t, x0)")
    for t, x_t, x0 in steps:
        if x_t.shape != steps[0][1].shape or x0.shape != x_t.shape:
            raise ValueError(
                f"at t = {t} x_t has shape {tuple(x_t.shape)} and x0 {tuple(x0.shape)}: "
                f"all must have the shape of the first x_t, {tuple(steps[0][1].shape)}"
            )

    # PNG is made when first asked for, then kept: playing it again costs nothing.
    @functools.lru_cache(maxsize=256)
    def frame(k: int) -> bytes:
        return encode(side_by_side(*steps[k][1:], columns, aspect))

    def label(k: int) -> str:
        t = steps[k][0]
        return _line(
            f"<b>{'finished' if t < 0 else f't = {t}'}</b>",
            f"step {k} of {len(steps) - 1}",
            "left: x<sub>t</sub>",
            "right: x̂₀, the picture foreseen from it",
        )

    size = side_by_side(*steps[0][1:], columns, aspect).shape
    return frame_slider(
        frame,
        label,
        "step",
        count=len(steps),
        play=True,
        width=_width_on_screen(size[1], steps[0][1].shape[2]),
        shows="left x_t, right x̂₀, the picture foreseen from it",
    )


def prompt_box(
    draw: Callable[[str, float, int], Tensor],
    prompt: str,
    scale: float = 3.0,
    seed: int = 0,
    highest_scale: float = 8.0,
    remark: Callable[[str], str] = lambda prompt: "",
    columns: int = 4,
    aspect: float = 4 / 3,
    height: int = CELL_HEIGHT,
) -> ipywidgets.VBox:
    """A line to type a prompt into, a slider for the guidance scale, a seed; and the cars they give.

    Enter (or leaving the line) draws, and so does letting go of the slider or another seed.

    Args:
        draw: (prompt, guidance scale, seed) to pictures (N, 3, H, W), float in [-1, 1] or uint8.
        prompt, scale, seed: what stands there at first, and is drawn at once.
        highest_scale: of the slider, which begins at 0.
        remark: what to say of a prompt, such as `Tokenizer.remark`; "" for nothing.
        columns, aspect: as for `plotting.picture_grid`.
        height: of each picture on screen, in pixels.

    Returns:
        VBox of (VBox of (Text, FloatSlider, BoundedIntText), HTML label, Image).
    """
    wide = ipywidgets.Layout(width=WHOLE, max_width="600px")
    once = {"continuous_update": False, "style": {"description_width": "90px"}, "layout": wide}
    text = ipywidgets.Text(prompt, description="prompt", **once)
    slider = ipywidgets.FloatSlider(scale, min=0, max=highest_scale, step=0.5, description="guidance w", **once)
    once |= {"layout": ipywidgets.Layout(width="220px")}
    number = ipywidgets.BoundedIntText(seed, min=0, max=2**31, description="seed", **once)
    slider.tooltip, number.tooltip = slider.description, number.description  # version 8 would show "null" there
    image = Picture(
        format="png", layout=ipywidgets.Layout(max_width=WHOLE), tooltip="the pictures drawn for the prompt"
    )
    label = ipywidgets.HTML()

    def redraw(change=None):
        label.value = "drawing …"
        with _errors_in(label):
            pictures = draw(text.value, slider.value, number.value)
            grid = picture_grid(pictures, columns, aspect)
            image.value = encode(grid)
            image.layout.width = f"{min(WIDEST, round(grid.shape[1] * height / pictures.shape[2]))}px"
            said = html.escape(remark(text.value))  # it repeats what was typed
            what = html.escape(text.value.strip()) or "(no prompt)"
            label.value = _line(f"<b>{what}</b>", f"w = {slider.value:g}", f"seed {number.value}") + (
                said and f"<br>{said}"
            )

    redraw()
    for control in (text, slider, number):
        control.observe(redraw, names="value")
    controls = ipywidgets.VBox([text, slider, number], layout=ipywidgets.Layout(width=WHOLE))
    return ipywidgets.VBox([controls, label, image], layout=ipywidgets.Layout(align_items="flex-start", width=WHOLE))


def side_by_side(left: Tensor, right: Tensor, columns: int, aspect: float = 4 / 3) -> np.ndarray:
    """Two batches as `picture_grid`s with a white space of 16 pixels between them."""
    left, right = (picture_grid(images, columns, aspect) for images in (left, right))
    space = np.full((len(left), 16, 3), 255, dtype=np.uint8)
    return np.concatenate([left, space, right], axis=1)


@contextmanager
def _errors_in(label: ipywidgets.HTML) -> Iterator[None]:
    """Have a label say what went wrong: an error in a callback is shown on no page."""
    try:
        yield
    except Exception as error:
        label.value = html.escape(f"this did not work: {error or type(error).__name__}")
    except KeyboardInterrupt:
        label.value = "interrupted"
        raise


def _line(*parts: str) -> str:
    """A line of HTML whose digits all have one width, so that it does not tremble while dragging."""
    return f'<span style="font-variant-numeric: tabular-nums">{" &nbsp;·&nbsp; ".join(parts)}</span>'


def _width_on_screen(width: int, picture_height: int) -> int:
    return min(WIDEST, round(width * CELL_HEIGHT / picture_height))
