"""Pictures to learn from and what describes them, by the names that the commands give them."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_utils.data import stanford_cars, to_float, toy_cars
from diffusion_utils.data.captions import captions
from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.networks.text import Tokenizer

CONDITIONS = ("body_type", "caption", "low_resolution")
LONGEST_PROMPT, PROMPTS = 12, 256  # words; captions kept on the card
NON_COMMERCIAL = "trained on Stanford Cars (Krause et al. 2013): for non-commercial research only"
LICENCES = {"stanford_cars": NON_COMMERCIAL, "toy_cars": "Apache-2.0, like the code"}


@cache
def captioned_toy_cars(size: int) -> toy_cars.ToyCars:
    """Toy cars of every kind, those that training with captions never sees among them."""
    return toy_cars.load(16384, size)


def load_data(data: str, size: int, condition: str | None = None) -> tuple[Tensor, Tensor, str]:
    """Training pictures, held-out pictures and a description, by the name on the command line.

    Toy cars that are told of by captions are split by kind (`toy_cars.HELD_OUT`), all others by picture.
    """
    if data == "toy_cars":
        if condition == "caption":
            seen, rest = (captioned_toy_cars(size).part(part).images for part in (False, True))
            missing = f"without {len(toy_cars.HELD_OUT)} pairs of body and colour"
            return seen, rest, f"toy cars, {len(seen)} drawn at {size}×{size}, {missing}"
        count, held_out = 8192, 512
        cars = toy_cars.load(count + held_out, size)
        return cars.images[:count], cars.images[count:], f"toy cars, {count} drawn at {size}×{size}"
    cars = stanford_cars.load(size=size) if data == "stanford_cars" else stanford_cars.load_folder(data, size)
    train_part, rest = cars.part(held_out=False), cars.part(held_out=True)
    if len(train_part.images) == 0 or len(rest.images) < 2:  # too few pictures to spare any
        train_part = rest = cars
    what = "Stanford Cars train" if data == "stanford_cars" else "own pictures"
    return train_part.images, rest.images, f"{what}, {len(train_part.images)} cropped to {size}×{size}"


def load_captions(data: str, size: int) -> list[list[str]]:
    """The captions of each training picture of `load_data`, equally many for each; the first is the
    whole one."""
    if data == "toy_cars":
        return [[caption] for caption in captioned_toy_cars(size).part(held_out=False).captions]
    if data == "stanford_cars":
        return captions(stanford_cars.load(size=size).part(held_out=False))
    raise ValueError(f"no captions are known of {data}: --condition caption goes with toy_cars or stanford_cars")


def load_cond(data: str, size: int, condition: str, network: dict) -> tuple[Tensor | None, dict]:
    """What describes each training picture of `load_data`, and what the model card says of it.

    For "body_type": a one-hot row per picture, float32 (N, 9), in the order of
    `stanford_cars.BODY_TYPES`, and their shares.  For "caption": the captions' words as numbers, int64
    (N, K, length), for the vocabulary in `network`, and some of the captions.  For "low_resolution":
    nothing, the pictures themselves do.
    """
    if condition == "low_resolution":
        return None, {}
    if condition == "caption":
        texts = load_captions(data, size)
        tokenizer = Tokenizer(network["words"], network["length"])
        cond = torch.stack([tokenizer.encode(each) for each in texts])
        some = torch.linspace(0, len(texts) - 1, min(PROMPTS, len(texts))).round().long().tolist()
        return cond, {"prompts": [texts[i][0] for i in some]}
    if data != "stanford_cars":
        raise ValueError(f"no {condition!r} is known of {data}: --condition body_type goes with --data stanford_cars")
    labels = stanford_cars.load(size=size).part(held_out=False).body_types()
    cond = F.one_hot(labels, len(stanford_cars.BODY_TYPES)).float()
    return cond, {"conditions": dict(zip(stanford_cars.BODY_TYPES, cond.mean(0).tolist()))}


def conditioned(network: dict, condition: str | None, data: str, size: int) -> dict:
    """The network that is told `condition`, made of a picture network (or, where it is of the right
    kind already, completed)."""
    if condition == "body_type":
        return {**network, "cond_dim": len(stanford_cars.BODY_TYPES)}
    if condition == "low_resolution":
        return network if network["name"] == "super_resolution" else {"name": "super_resolution", "net": network}
    if condition != "caption":
        return network
    texts = [caption for each in load_captions(data, size) for caption in each]
    tokenizer = Tokenizer.from_captions(texts)
    if network["name"] != "text_to_image":
        network = {"name": "text_to_image", "net": {k: v for k, v in network.items() if k != "cond_dim"}}
    return {**network, "words": tokenizer.words, "length": LONGEST_PROMPT}


def for_latents(network: dict, autoencoder: Autoencoder) -> dict:
    """A picture network as the channels of latents need it.

    Raises:
        ValueError: it was given others, or is a network that cannot work on latents.
    """
    if network.get("name") == "super_resolution":
        raise ValueError("super-resolution works on pixels here: leave --autoencoder out")
    if network.get("name") == "text_to_image":
        return {**network, "net": for_latents(network.get("net", {}), autoencoder)}
    channels = autoencoder.latent_channels
    if network.get("picture_channels", channels) != channels:
        raise ValueError(
            f"the autoencoder's latents have {channels} channels, not {network['picture_channels']}: "
            "leave picture_channels out"
        )
    return {**network, "picture_channels": channels}


def mirrors(data: str, condition: str | None = None) -> bool:
    """Whether training sees mirrored pictures, too: not where captions say left and right."""
    return not (data == "toy_cars" and condition == "caption")


def as_latents(
    autoencoder: Autoencoder, pictures: Tensor, cond: Tensor | None = None, mirrored: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Pictures uint8 (N, 3, H, W) as latents for diffusion, float32 (N, …), and what describes them.

    mirrored: have the mirrored pictures' follow, (2N, …): a mirrored latent is not the latent of the
    mirrored picture, so that training could not mirror it later.
    """
    both = [pictures, pictures.flip(3)] if mirrored else [pictures]
    latents = torch.cat([autoencoder.to_latents(to_float(part)) for each in both for part in each.split(256)])
    return latents, None if cond is None else torch.cat([cond] * len(both))
