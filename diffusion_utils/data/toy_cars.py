"""Toy cars: an endless set of small car pictures, each drawn by code from two numbers.

Nothing is downloaded: picture `index` of set `seed` is drawn on the spot, and always comes out
the same. It shows one car from the side, with four attributes that are chosen uniformly
and independently of one another,

    body (6)  x  colour (8)  x  direction (2)  x  time of day (3)  =  288 kinds of picture,

and by a caption that names them: "a red pickup facing left at night". Pictures of one kind still
differ: place, scale, wheels, shade and scenery vary a little and continuously, so a model has to
learn what cars look like, not a table of 288 images.

Pictures are stored square, like the crops of real cars in this project, but they are drawn on a
4:3 canvas that is squeezed into the square at the end. Show them at 4:3 and the wheels are round.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from diffusion_utils.checks import whole


# Lengths are in pixels of a canvas of 256 x 192. A car stands at the origin and faces right: x
# grows from its middle to its front, and y from the road upwards.
class _Shape(NamedTuple):
    """One body type, as corners of polygons and places of round parts."""

    outline: tuple
    panes: tuple  # of glass
    doors: tuple  # x and upper end of each door gap
    wheels: tuple  # x of the rear wheel, x of the front wheel, radius
    lamps: tuple  # the tail lamp, the headlight
    trim: tuple = ()  # black parts that stick out from behind the outline


_SHAPES = {
    "sedan": _Shape(
        ((-98, 17), (-100, 50), (-94, 57), (-74, 58), (-50, 82), (0, 83), (32, 56), (84, 48), (99, 37), (99, 17)),
        panes=(((-63, 57), (-45, 76), (-22, 77), (-22, 57)), ((-14, 57), (-14, 77), (-2, 77), (22, 57))),
        doors=((-18, 76), (26, 54)),
        wheels=(-60, 61, 20),
        lamps=((-93, 46), (90, 38)),
    ),
    "hatchback": _Shape(
        ((-70, 17), (-73, 48), (-60, 84), (-48, 88), (2, 88), (34, 58), (62, 51), (73, 40), (73, 17)),
        panes=(((-57, 58), (-49, 80), (-22, 81), (-22, 58)), ((-14, 58), (-14, 81), (0, 81), (24, 58))),
        doors=((-18, 80),),
        wheels=(-45, 44, 20),
        lamps=((-67, 47), (64, 41)),
    ),
    "convertible": _Shape(
        ((-96, 15), (-98, 42), (-88, 51), (-48, 53), (-40, 45), (12, 45), (20, 52), (78, 46), (98, 34), (98, 15)),
        panes=(((24, 49), (-2, 80), (-11, 80), (6, 48)),),
        doors=((-36, 43), (10, 43)),
        wheels=(-60, 60, 20),
        lamps=((-92, 41), (87, 35)),
        trim=(((-44, 44), (-48, 70), (-35, 70), (-26, 44)),),
    ),
    "pickup": _Shape(
        ((-104, 22), (-104, 54), (-6, 54), (-4, 94), (38, 94), (60, 61), (94, 56), (102, 46), (102, 20)),
        panes=(((6, 61), (6, 85), (33, 85), (49, 61)),),
        doors=((0, 60),),
        wheels=(-62, 62, 23),
        lamps=((-98, 38), (93, 45)),
    ),
    "van": _Shape(
        ((-100, 17), (-100, 110), (-92, 114), (48, 114), (80, 64), (97, 52), (100, 17)),
        panes=(((16, 66), (16, 99), (44, 99), (66, 66)),),
        doors=((-36, 102), (10, 102)),
        wheels=(-60, 62, 20),
        lamps=((-94, 48), (91, 42)),
    ),
    "SUV": _Shape(
        ((-84, 25), (-86, 60), (-80, 98), (18, 98), (40, 66), (80, 62), (88, 52), (88, 25)),
        panes=(
            ((-74, 66), (-71, 89), (-48, 89), (-48, 66)),
            ((-39, 66), (-39, 89), (-12, 89), (-12, 66)),
            ((-3, 66), (-3, 89), (13, 89), (29, 66)),
        ),
        doors=((-43, 88), (-7, 88)),
        wheels=(-52, 53, 26),
        lamps=((-79, 50), (80, 50)),
        trim=(((-102, 42), (-102, 80), (-84, 80), (-84, 42)), ((-66, 108), (-70, 94), (10, 94), (6, 108))),
    ),
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
_HEX = ("#d62428", "#f67e16", "#fad42e", "#289e48", "#2462de", "#8e3ab8", "#f2f2f4", "#24242a")
_PAINTS = {name: ImageColor.getrgb(paint) for name, paint in zip(COLOURS, _HEX)}


class _Light(NamedTuple):
    """One time of day: colours and places of the scenery, from the middle of the canvas."""

    sky: tuple  # colour at the top, colour at the horizon
    orb: tuple  # sun or moon: x, y, radius, colour
    specks: list  # white clouds or stars: x, y, half width, half height of each
    ground: tuple  # colour of the land, colour of the road
    glass: tuple  # colour of the windows
    tint: tuple  # factors on the red, green and blue of the paint
    beam: bool  # whether the headlight shines


_LIGHTS = {
    "by day": _Light(
        sky=((96, 178, 240), (206, 234, 250)),
        orb=(86, 66, 15, (255, 244, 170)),
        specks=[(-84, 58, 26, 8), (-76, 66, 13, 11), (-93, 64, 10, 8)],
        ground=((134, 190, 104), (134, 136, 142)),
        glass=(112, 160, 196),
        tint=(1, 1, 1),
        beam=False,
    ),
    "at sunset": _Light(
        sky=((108, 70, 142), (255, 170, 120)),
        orb=(-50, 6, 30, (255, 226, 130)),
        specks=[],
        ground=((116, 72, 104), (104, 88, 108)),
        glass=(236, 176, 160),
        tint=(1, 0.93, 0.90),
        beam=False,
    ),
    "at night": _Light(
        sky=((16, 20, 62), (58, 66, 128)),
        orb=(80, 66, 13, (240, 240, 218)),
        specks=[(x, y, 2, 2) for x, y in ((-105, 50), (-72, 78), (-30, 56), (8, 80), (42, 62))],
        ground=((40, 62, 88), (74, 78, 104)),
        glass=(150, 160, 200),
        tint=(0.92, 0.90, 0.96),
        beam=True,
    ),
}
BODIES, DIRECTIONS, TIMES = (*_SHAPES,), ("left", "right"), (*_LIGHTS,)
# Kinds of car that text-to-image never sees in training, to find out whether it can put together what
# it knows: every body type lacks one colour, and of 48 pairs 6 are missing.
HELD_OUT = set(zip(BODIES, ("orange", "blue", "green", "white", "purple", "yellow")))
_CHOICES = {"body": BODIES, "colour": COLOURS, "direction": DIRECTIONS, "time": TIMES}


class ToyCars(NamedTuple):
    """A set of N toy cars, as made by `load`."""

    images: Tensor  # uint8 [N, 3, size, size], red-green-blue, 0 to 255; show at 4:3
    captions: list  # N strings
    labels: Tensor  # int64 [N, 4]: places in BODIES, COLOURS, DIRECTIONS and TIMES

    def part(self, held_out: bool) -> "ToyCars":
        """Only cars of the held-out kinds (see `HELD_OUT`), or only the others."""
        keep = [
            i
            for i, (body, colour, *_) in enumerate(self.labels.tolist())
            if ((BODIES[body], COLOURS[colour]) in HELD_OUT) == held_out
        ]
        return ToyCars(self.images[keep], [self.captions[i] for i in keep], self.labels[keep])


def attributes(index: int, seed: int = 0) -> dict[str, str]:
    """What picture `index` of set `seed` shows, as a dict of strings such as
    dict(body="pickup", colour="red", direction="left", time="at night").

    Raises ValueError if `index` or `seed` is not a whole number of at least 0.
    """
    picks = _random(index, seed, 0).integers([len(values) for values in _CHOICES.values()])
    return {name: values[pick] for (name, values), pick in zip(_CHOICES.items(), picks)}


def caption(index: int, seed: int = 0) -> str:
    """`attributes` in words, "a red pickup facing left at night"; raises the same error."""
    return describe(**attributes(index, seed))


def describe(body: str, colour: str, direction: str, time: str) -> str:
    """A caption: "a red pickup facing left at night"."""
    return f"{'an' if colour == 'orange' else 'a'} {colour} {body} facing {direction} {time}"


def draw(index: int, seed: int = 0, size: int = 64, **overrides: str) -> Tensor:
    """Draw picture `index` of set `seed`: uint8 [3, size, size], red-green-blue, 0 to 255.

    `overrides` replace attributes, as in `draw(7, body="van", time="at night")`, and leave all
    else as it was (place, scale, shade, scenery), so that pictures can be compared.

    Raises ValueError if `index` or `seed` is not a whole number of at least 0, `size` not a
    multiple of 8 and at least 16, or an override not one of the allowed values.
    """
    if whole("size", size, 16) % 8:
        raise ValueError(f"size must be a multiple of 8, not {size}; try {size // 8 * 8}.")
    for name, value in overrides.items():
        if name not in _CHOICES:
            raise ValueError(f"{name!r} is no attribute; choose from {', '.join(_CHOICES)}.")
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} cannot be {value!r}; choose from {_CHOICES[name]}.")
    kind = attributes(index, seed) | overrides
    light, jitter = _LIGHTS[kind["time"]], _jitter(index, seed)
    # Pillow draws hard edges. A canvas of at least 3 times the size makes them soft on resizing.
    scale = max(64, size) / 64
    canvas = _scenery(light, jitter, scale)
    shape, paint = _SHAPES[kind["body"]], _PAINTS[kind["colour"]]
    _car(canvas, shape, paint, light, jitter, scale, facing=1 if kind["direction"] == "right" else -1)
    square = canvas.resize((size, size), Image.Resampling.HAMMING)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def load(count: int = 4096, size: int = 32, seed: int = 0, start: int = 0) -> ToyCars:
    """Draw pictures `start`, `start + 1`, ... of set `seed`, `count` of them, as ToyCars.

    A picture does not depend on `count`: a longer set continues a shorter one, and
    `load(512, start=4096)` are pictures that `load(4096)` has not shown. 4096 pictures of 32x32
    take a few seconds and 12 MB.

    Raises ValueError if `count` is not a whole number of at least 1, `size` not a multiple of 8
    and at least 16, or `seed` or `start` not a whole number of at least 0.
    """
    start = whole("start", start, 0)
    indices = range(start, start + whole("count", count, 1))
    images = torch.stack([draw(index, seed, size) for index in indices])
    labels = [[_CHOICES[name].index(value) for name, value in attributes(index, seed).items()] for index in indices]
    return ToyCars(images, [caption(index, seed) for index in indices], torch.tensor(labels))


def _random(index, seed, purpose):
    """A generator for one picture and purpose alone, so that nothing depends on the order."""
    return np.random.default_rng([whole("seed", seed, 0), whole("index", index, 0), purpose])


def _jitter(index, seed):
    """The small differences between pictures of one kind."""
    uniform = _random(index, seed, 1).uniform
    return {
        "place": uniform((-10, -5), (10, 5)),
        "scale": uniform(0.92, 1.05),
        "wheel": uniform(0.92, 1.08),
        "brightness": uniform(0.93, 1.04),
        "hue": uniform(-10, 10, size=3),
        "sky": uniform(-10, 10, size=2),
        "hill": uniform(-60, 60),
        "daylight": uniform(0.95, 1.05),
    }


def _rgb(colour, factor=1.0, offset=0.0):
    return tuple((np.array(colour) * factor + offset).clip(0, 255).astype(int).tolist())


@cache
def _rounded(corners):
    """A polygon with its corners cut off, twice, which makes them round (Chaikin's method)."""
    points = np.array(corners)
    for cut in (0.12, 0.3):
        ahead = np.roll(points, -1, axis=0)
        pairs = points + cut * (ahead - points), ahead + cut * (points - ahead)
        points = np.stack(pairs, axis=1).reshape(-1, 2)
    return points


class _Pen:
    """Draws at a scale, y upwards from an origin in pixels; a fourth colour number blends."""

    def __init__(self, canvas, origin, scale, facing=1):
        self.brush = ImageDraw.Draw(canvas, "RGBA")
        self.origin, self.scale = np.array(origin), scale * np.array((facing, -1))

    def polygon(self, corners, colour):
        self.brush.polygon((self.origin + self.scale * corners).ravel().tolist(), fill=colour)

    def line(self, ends, width, colour):
        self.brush.line(
            (self.origin + self.scale * ends).ravel().tolist(), fill=colour, width=round(width * abs(self.scale[0]))
        )

    def disc(self, middle, radius, colour, end=540):
        """A circle, or an ellipse of radius (across, up); up to angle 360 only its upper half."""
        middle, reach = self.origin + self.scale * middle, abs(self.scale) * radius
        self.brush.pieslice([*(middle - reach), *(middle + reach)], 180, end, fill=colour)


def _scenery(light, jitter, scale):
    """A canvas with sky, sun or moon, clouds or stars, hills and road."""
    width, height, horizon = round(256 * scale), round(192 * scale), round(112 * scale)
    land, road = _rgb(light.ground[0], jitter["daylight"]), light.ground[1]
    canvas = Image.new("RGB", (width, height), land)
    fade = np.linspace(*np.array(light.sky) * jitter["daylight"], horizon).clip(0, 255)
    sky = Image.fromarray(fade.astype(np.uint8)[:, None])  # one pixel wide
    canvas.paste(sky.resize((width, horizon), Image.Resampling.NEAREST))
    pen = _Pen(canvas, (width / 2, height / 2), scale)
    x, y, radius, colour = light.orb
    pen.disc(jitter["sky"] + (x, y), 1.5 * radius, (*colour, 50))
    pen.disc(jitter["sky"] + (x, y), radius, colour)
    for x, y, across, up in light.specks:
        pen.disc((x - jitter["sky"][0], y), (across, up), (255, 255, 255))
    pen.disc((jitter["hill"], -20), (110, 26), _rgb(land, 0.9))
    pen.disc((jitter["hill"] - 140, -20), (90, 16), land)
    pen.polygon([(-130, -34), (130, -34), (130, -100), (-130, -100)], road)
    pen.line([(-130, -36), (130, -36)], 4, _rgb(road, 1.25))
    for x in (-96, -32, 32, 96):
        pen.line([(x - 15, -87), (x + 15, -87)], 4, _rgb(road, 1.4))
    return canvas


def _car(canvas, shape, paint, light, jitter, scale, facing):
    """Paint a car onto the canvas, from what lies behind to what lies in front."""
    pen = _Pen(canvas, ((128, 158) + jitter["place"]) * scale, scale * jitter["scale"], facing)
    paint = np.array(_rgb(paint, jitter["brightness"], jitter["hue"])) * light.tint
    black, glow, (tail, head) = (24, 24, 30), (255, 248, 195), shape.lamps

    pen.disc((0, 2), (head[0] + 14, 7), (0, 0, 0, 90))  # the shadow on the road
    if light.beam:
        for spread in (10, 20, 30):
            far = np.array([(100, spread - 8), (100, -spread - 16)])
            pen.polygon([head, *(head + far)], (*glow, 75))
    for part in shape.trim:
        pen.polygon(_rounded(part), black)
    pen.polygon(_rounded(shape.outline), _rgb(paint))
    for pane in shape.panes:
        pen.polygon(_rounded(pane), light.glass)
    for x, top in shape.doors:
        pen.line([(x, top), (x, 28)], 2, (0, 0, 0, 90))
    rear, front, radius = shape.wheels
    radius *= jitter["wheel"]
    for middle in ((rear, radius), (front, radius)):
        pen.disc(middle, 1.2 * radius, _rgb(paint, 0.45), end=360)
        pen.disc(middle, radius, black)
        pen.disc(middle, 0.5 * radius, _rgb((205, 208, 214), light.tint))
    pen.disc(tail, 5, (200, 20, 30))
    pen.disc(head, 6.5, glow)
    if light.beam:
        pen.disc(head, 13, (*glow, 120))
