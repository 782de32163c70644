"""Sets of pictures to learn from, and the conditions that go with them, by the names that the commands give them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_utils.data import stanford_cars, to_float, toy_cars
from diffusion_utils.data.captions import captions as car_captions
from diffusion_utils.networks import Autoencoder
from diffusion_utils.networks.text import Tokenizer

Condition = Literal["body_type", "caption", "low_resolution"]
CONDITIONS = get_args(Condition)
LONGEST_PROMPT, PROMPTS = 12, 256  # words; captions kept on the card
NON_COMMERCIAL = "trained on Stanford Cars (Krause et al. 2013): for non-commercial research only"
LICENCES = {"stanford_cars": NON_COMMERCIAL, "toy_cars": "Apache-2.0, like the code"}


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures for training and for measuring, and what else is known of them.

    Attributes:
        data: the name it was loaded by.
        images: uint8 (N, 3, size, size), to learn from.
        held_out: uint8 (M, 3, size, size), kept out of training.
        description: for the model card.
        condition: what a network is to be conditioned on; None: on nothing.
        captions: for the condition "caption": those of each training picture, equally many for each; the
            first is the whole one.
        labels: for "body_type": int64 (N,), indices into `stanford_cars.BODY_TYPES`.
    """

    data: str
    images: Tensor
    held_out: Tensor
    description: str
    condition: Condition | None = None
    captions: list[list[str]] | None = None
    labels: Tensor | None = None

    @property
    def flip(self) -> bool:
        """Whether training mirrors pictures: not where captions say left and right."""
        return not (self.data == "toy_cars" and self.condition == "caption")

    @property
    def licence(self) -> str:
        """For the model card."""
        return LICENCES.get(self.data, "that of the pictures it was trained on")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change if the training pictures, their order or their conditions do."""
        labels = None if self.labels is None else self.labels.tolist()
        about = json.dumps([list(self.images.shape), self.condition, labels, self.captions])
        digest = hashlib.sha256(about.encode())
        digest.update(self.images.contiguous().numpy())
        return digest.hexdigest()[:16]

    def conditional(self, network: dict) -> dict:
        """The network that takes this condition, made of a picture network's name and options (or, where it
        is of the right kind already, completed)."""
        if self.condition == "body_type":
            return {**network, "cond_dim": len(stanford_cars.BODY_TYPES)}
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

        For "body_type": a one-hot row per picture, float32 (N, 9), and the types' shares.  For "caption": the
        captions' words as numbers, int64 (N, K, length), for the vocabulary in `network`, and some of the
        captions.  For "low_resolution": nothing, it is made of the pictures themselves.
        """
        if self.condition == "caption":
            tokenizer = Tokenizer(network["words"], network["length"])
            chosen = torch.linspace(0, len(self.captions) - 1, min(PROMPTS, len(self.captions))).round().long()
            prompts = [self.captions[i][0] for i in chosen.tolist()]
            return torch.stack([tokenizer.encode(of_one) for of_one in self.captions]), {"prompts": prompts}
        if self.condition == "body_type":
            cond = F.one_hot(self.labels, len(stanford_cars.BODY_TYPES)).float()
            return cond, {"conditions": dict(zip(stanford_cars.BODY_TYPES, cond.mean(0).tolist()))}
        return None, {}


def load(data: str, size: int, condition: Condition | None = None) -> PictureSet:
    """The pictures that go by a name on the command line.

    Args:
        data: "toy_cars", "stanford_cars", or the path of a folder of pictures.  Toy cars with captions are
            split by kind (`toy_cars.HELD_OUT`), all others by picture.
        size: height and width in pixels.

    Raises:
        ValueError: a condition that is not known of these pictures; or as `stanford_cars.load` does.
        FileNotFoundError: no such pictures.
    """
    if condition == "caption" and data not in ("toy_cars", "stanford_cars"):
        raise ValueError(f"no captions are known of {data}: --condition caption goes with toy_cars or stanford_cars")
    if condition == "body_type" and data != "stanford_cars":
        raise ValueError(f"no 'body_type' is known of {data}: --condition body_type goes with --data stanford_cars")
    if data == "toy_cars":
        return _toy_cars(size, condition)
    cars = stanford_cars.load(size=size) if data == "stanford_cars" else stanford_cars.load_folder(data, size)
    train, held_out = cars.part(held_out=False), cars.part(held_out=True)
    if len(train.images) == 0 or len(held_out.images) < 2:  # too few pictures to spare any
        train = held_out = cars
    kind = "Stanford Cars train" if data == "stanford_cars" else "own pictures"
    description = f"{kind}, {len(train.images)} cropped to {size}×{size}"
    captions = car_captions(train) if condition == "caption" else None
    labels = train.body_types() if condition == "body_type" else None
    return PictureSet(data, train.images, held_out.images, description, condition, captions, labels)


def as_latents(autoencoder: Autoencoder, images: Tensor, mirrored: bool = False) -> Tensor:
    """Pictures uint8 (N, 3, H, W) as latents for diffusion, float32 (N, …).

    Args:
        mirrored: have the mirrored pictures' follow, (2N, …): a mirrored latent is not the latent of the
            mirrored picture, so that training could not mirror it later.
    """
    both = [images, images.flip(3)] if mirrored else [images]
    return torch.cat([autoencoder.to_latents(to_float(part)) for side in both for part in side.split(256)])


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
