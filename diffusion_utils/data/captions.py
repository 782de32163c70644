"""Captions for Stanford Cars, which has none: make, body type and year are in the name of its class,
and the colour is measured from the pixels.

    "BMW M3 Convertible 2012" and a red picture  →  "a red 2012 BMW convertible"
"""

import torch
from torch import Tensor

from diffusion_utils.data.stanford_cars import CarPictures, body_type

# Hues that begin a band of colours, in degrees, and its name; from the last one on it is red again.
HUES = ((0, "red"), (16, "orange"), (40, "yellow"), (70, "green"), (170, "blue"), (300, "red"))
GREYS = ((0.0, "black"), (0.38, "grey"), (0.58, "silver"), (0.8, "white"))  # by their lightness, from
COLOURS = ("red", "orange", "yellow", "green", "blue", "black", "grey", "silver", "white")
MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")


def colours(images: Tensor) -> list[str]:
    """The colour of the car in each picture, one of `COLOURS`, judged by its pixels.

    Looked at is the middle of the picture, where doors and bonnet are.  If a quarter of it or more has
    colours of one band of hues, that is the car's; else it is a grey, and how light the lighter part of
    it is (the windows and wheels are the darker one) says which.  A rule of thumb: silver and
    grey run into each other, and some dark reds and blues are taken for black.

    Args:
        images: uint8 (N, 3, H, W), cars cut out as `pictures.crop` does.
    """
    height, width = images.shape[2:]
    middle = images[:, :, round(0.4 * height) : round(0.72 * height), round(0.125 * width) : round(0.875 * width)]
    red, green, blue = (middle.float() / 255).flatten(2).unbind(1)
    value = torch.stack([red, green, blue]).amax(0)
    chroma = value - torch.stack([red, green, blue]).amin(0)
    # Hue and saturation of the HSV model; hue in degrees.
    spread = chroma.clamp(min=1e-6)
    hue = 60 * torch.where(
        value == red,
        (green - blue) / spread % 6,
        torch.where(value == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    vivid = (chroma > 0.14) & (chroma > 0.35 * value)
    starts = torch.tensor([float(start) for start, _ in HUES])
    band = torch.bucketize(hue, starts, right=True) - 1
    shares = torch.zeros(len(images), len(COLOURS))
    for number, (_, name) in enumerate(HUES):
        shares[:, COLOURS.index(name)] += (vivid & (band == number)).float().mean(1)
    lightness = value.quantile(0.7, dim=1)
    names = []
    for share, light in zip(shares, lightness.tolist()):
        grey = [name for least, name in GREYS if light >= least][-1]
        names.append(COLOURS[int(share.argmax())] if share.max() > 0.25 else grey)
    return names


def make(name: str) -> str:
    """Who built a Stanford Cars class: "Aston Martin Virage Coupe 2012" → "Aston Martin"."""
    return next((make for make in MAKES_OF_TWO_WORDS if name.startswith(make)), name.split()[0])


def captions(cars: CarPictures) -> list[list[str]]:
    """Five captions for each picture: the whole one twice, and three that leave something out, so that
    short prompts are understood, too.

    Raises:
        ValueError: the pictures come without class names (a plain folder has none).
    """
    cars.body_types()  # raises where there are no classes
    found = []
    for colour, label in zip(colours(cars.images), cars.labels.tolist()):
        name = cars.classes[label]
        who, body, year = make(name), body_type(name), name.split()[-1]
        whole = phrase(colour, year, who, body)
        found.append([whole, whole, phrase(colour, body), phrase(colour, who, body), phrase(year, who, body)])
    return found


def phrase(*words: str) -> str:
    """Words with their article: "a red pickup", "an orange SUV"."""
    return f"{'an' if words[0][0] in 'aeiouAEIOU' or words[0] == 'SUV' else 'a'} {' '.join(words)}"
