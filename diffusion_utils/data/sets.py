"""Sets of pictures to learn from, and the conditions that go with them, by the names that the commands give them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_utils.data import letters, stanford_cars, to_float, toy_cars
from diffusion_utils.data.captions import captions as car_captions
from diffusion_utils.data.pictures import ASPECT, Pictures, is_test, load_folder
from diffusion_utils.networks import Autoencoder
from diffusion_utils.networks.text import Tokenizer

Condition = Literal["body_type", "class", "caption", "low_resolution"]
CONDITIONS = get_args(Condition)
Part = Literal["validation", "test"]
LONGEST_PROMPT, PROMPTS = 12, 256  # words; captions kept on the card
NON_COMMERCIAL = "trained on Stanford Cars (Krause et al. 2013): for non-commercial research only"
LICENCES = {"stanford_cars": NON_COMMERCIAL, **dict.fromkeys(("toy_cars", "letters"), "Apache-2.0, like the code")}


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures for training and for measuring, and what else is known of them.

    Attributes:
        data: the name it was loaded by.
        images: uint8 (N, 3, size, size), to learn from.
        held_out: uint8 (M, 3, size, size), kept out of training; see `part`.
        description: for the model card.
        condition: what a network is to be conditioned on; None: on nothing.
        captions: for the condition "caption": those of each training picture, equally many for each; the
            first is the whole one.
        classes: for "body_type" and "class": their names, each of which some training picture shows.
        labels: with them: int64 (N,), indices into `classes`.
        aspect: width : height of what was cut out of own pictures; None: cars, 4:3.
        in_test: bool (M,), which of the held-out pictures belong to the test part; None: every second.
    """

    data: str
    images: Tensor
    held_out: Tensor
    description: str
    condition: Condition | None = None
    captions: list[list[str]] | None = None
    classes: list[str] | None = None
    labels: Tensor | None = None
    aspect: str | None = None
    in_test: Tensor | None = None

    def part(self, name: Part) -> Tensor:
        """Held-out pictures: those of "validation", on which anything is chosen (ways of drawing, checkpoints), or
        of "test", on which it is reported.  The best of many is a little lucky where it was chosen."""
        in_test = torch.arange(len(self.held_out)) % 2 == 1 if self.in_test is None else self.in_test
        return self.held_out[in_test == (name == "test")]

    @property
    def flip(self) -> bool:
        """Whether training mirrors pictures: not where captions say left and right, and no letters."""
        return not (self.data == "letters" or self.data == "toy_cars" and self.condition == "caption")

    @property
    def licence(self) -> str:
        """For the model card."""
        return LICENCES.get(self.data, "that of the pictures it was trained on")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change if the training pictures, their order or their conditions do."""
        labels = None if self.labels is None else self.labels.tolist()
        about = json.dumps([list(self.images.shape), self.condition, self.classes, labels, self.captions])
        digest = hashlib.sha256(about.encode())
        digest.update(self.images.contiguous().numpy())
        return digest.hexdigest()[:16]

    def conditional(self, network: dict) -> dict:
        """The network that takes this condition, made of a picture network's name and options (or, where it
        is of the right kind already, completed)."""
        if self.classes:
            return {**network, "cond_dim": len(self.classes)}
        if self.condition == "low_resolution":
            return network if network["name"] == "super_resolution" else {"name": "super_resolution", "net": network}
        if self.condition != "caption":
            return network
        tokenizer = Tokenizer.from_captions([caption for of_one in self.captions for caption in of_one])
        if network["name"] != "text_to_image":
            network = {"name": "text_to_image", "net": {k: v for k, v in network.items() if k != "cond_dim"}}
        return {**network, "words": tokenizer.words, "length": LONGEST_PROMPT}

    def cond(self, network: dict) -> tuple[Tensor | None, dict]:
        """The condition of each training picture as numbers, and what the model card says of it.

        For classes: a one-hot row per picture, float32 (N, classes), and the classes' shares.  For "caption": the
        captions' words as numbers, int64 (N, K, length), for the vocabulary in `network`, and some of the
        captions.  For "low_resolution": nothing, it is made of the pictures themselves.
        """
        if self.condition == "caption":
            tokenizer = Tokenizer(network["words"], network["length"])
            chosen = torch.linspace(0, len(self.captions) - 1, min(PROMPTS, len(self.captions))).round().long()
            prompts = [self.captions[i][0] for i in chosen.tolist()]
            return torch.stack([tokenizer.encode(of_one) for of_one in self.captions]), {"prompts": prompts}
        if self.classes:
            if network.get("cond_dim") != len(self.classes):
                raise ValueError(
                    f"the network takes {network.get('cond_dim')} classes, {self.data} has {len(self.classes)}"
                )
            cond = F.one_hot(self.labels, len(self.classes)).float()
            return cond, {"conditions": dict(zip(self.classes, cond.mean(0).tolist()))}
        return None, {}


def load(data: str, size: int, condition: Condition | None = None, aspect: str | None = None) -> PictureSet:
    """The pictures that go by a name on the command line.

    Args:
        data: "toy_cars", "letters", "stanford_cars", or the path of a folder of pictures, for the condition
            "class" of a folder of such folders.  Toy cars with captions are split by kind (`toy_cars.HELD_OUT`), all
            others by picture.
        size: height and width in pixels.
        aspect: of own pictures, as for `pictures.load_folder`.

    Raises:
        ValueError: a condition or an aspect that these pictures do not have; or as `stanford_cars.load` does.
        FileNotFoundError: no such pictures.
    """
    if condition == "caption" and data not in ("toy_cars", "stanford_cars"):
        raise ValueError(f"no captions are known of {data}: --condition caption goes with toy_cars or stanford_cars")
    if condition == "body_type" and data != "stanford_cars":
        raise ValueError(f"no 'body_type' is known of {data}: --condition body_type goes with --data stanford_cars")
    if condition == "class" and data == "toy_cars":
        raise ValueError("no classes are known of toy_cars: choose --condition caption, or other pictures")
    if aspect is not None and data in LICENCES:
        shape = "drawn 1:1" if data == "letters" else "cut to 4:3"
        raise ValueError(f"{data} are {shape}, not to {aspect}: the aspect is that of own pictures")
    if data == "toy_cars":
        return _toy_cars(size, condition)
    if data == "letters":
        return _letters(size, condition)
    own = data != "stanford_cars"
    if "://" in data:
        raise ValueError(f"{data} is an address: download the pictures first, and give the folder that they are in")
    if own and not Path(data).expanduser().is_dir():
        raise FileNotFoundError(
            f"{data} is not a folder: give the path of a folder of pictures, or {' or '.join(LICENCES)}"
        )
    found = load_folder(data, size, aspect, condition == "class") if own else stanford_cars.load(size=size)
    train, held_out = (found.part(held_out, every_class=condition == "class") for held_out in (False, True))
    if len(train.images) == 0 or len(held_out.images) < 2:  # too few pictures to spare any
        train = held_out = found
    captions = car_captions(train) if condition == "caption" else None
    classes, labels = None, None
    if condition == "body_type":
        classes, labels = [*stanford_cars.BODY_TYPES], train.body_types()
    elif condition == "class":
        classes, labels = _classes(train)
    kind = ("own pictures" if own else "Stanford Cars train") + (
        f" in {len(classes)} classes" if own and classes else ""
    )
    description = f"{kind}, {len(train.images)} cropped to {size}×{size}"
    shape = found.aspect if own else None
    in_test = torch.tensor([is_test(name) for name in held_out.names], dtype=torch.bool)
    about = (description, condition, captions, classes, labels, shape, in_test)
    return PictureSet(data, train.images, held_out.images, *about)


def load_like(card: dict, data: str) -> PictureSet:
    """The pictures that go by a name, of the size, the aspect and the split that weights were trained with.

    Args:
        card: the weights' model card.
        data: as for `load`, which also says what is raised.
    """
    # Of all conditions these decide which pictures there are, and which are held out.
    condition = {"toy_cars": "caption", "stanford_cars": None}.get(data, "class")
    aspect = card.get("aspect", None if data in LICENCES else ASPECT)
    return load(data, card.get("size", 64), condition if condition_of(card) == condition else None, aspect)


def condition_of(card: dict) -> Condition | None:
    """What weights are conditioned on, by their model card."""
    if card["network"]["name"] == "super_resolution":
        return "low_resolution"
    if "conditions" in card:
        return "body_type" if [*card["conditions"]] == [*stanford_cars.BODY_TYPES] else "class"
    return "caption" if "prompts" in card else None


def as_latents(autoencoder: Autoencoder, images: Tensor, mirrored: bool = False) -> Tensor:
    """Pictures uint8 (N, 3, H, W) as latents for diffusion, float32 (N, …).

    Args:
        mirrored: have the mirrored pictures' follow, (2N, …): a mirrored latent is not the latent of the
            mirrored picture, so that training could not mirror it later.
    """
    both = [images, images.flip(3)] if mirrored else [images]
    return torch.cat([autoencoder.to_latents(to_float(part)) for side in both for part in side.split(256)])


def _classes(train: Pictures) -> tuple[list[str], Tensor]:
    """The classes that training pictures show, and each picture's index into them.

    Raises:
        ValueError: the classes have no names, or one a name that asks for none of them when drawing.
    """
    if not train.classes:
        raise ValueError("no file says the names of these pictures' classes: leave --condition class out")
    present, labels = train.labels.unique(return_inverse=True)
    classes = [train.classes[label] for label in present.tolist()]
    if "none" in classes:
        raise ValueError("a class cannot be called none, which stands for no condition: rename its folder")
    return classes, labels


def _toy_cars(size: int, condition: Condition | None) -> PictureSet:
    if condition == "caption":
        cars = toy_cars.load(16384, size)
        train, held_out = cars.part(held_out=False), cars.part(held_out=True)
        captions = [[caption] for caption in train.captions]
        missing = f", without {len(toy_cars.HELD_OUT)} pairs of body and colour"
        train, held_out = train.images, held_out.images
    else:
        images, captions, missing = toy_cars.load(8192 + 512, size).images, None, ""
        train, held_out = images[:8192], images[8192:]
    description = f"toy cars, {len(train)} drawn at {size}×{size}{missing}"
    return PictureSet("toy_cars", train, held_out, description, condition, captions)


def _letters(size: int, condition: Condition | None) -> PictureSet:
    drawn = letters.load(8192 + 512, size)
    train, held_out = drawn.images[:8192], drawn.images[8192:]
    classes, labels = ([*letters.LETTERS], drawn.labels[:8192]) if condition == "class" else (None, None)
    return PictureSet(
        "letters", train, held_out, f"letters, 8192 drawn at {size}×{size}", condition, None, classes, labels, "1:1"
    )
