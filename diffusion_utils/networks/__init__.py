"""Denoising networks, all with one interface (and an `Autoencoder`, with its own):

    net(x_t, t, cond=None)      # x_t (N, C, H, W), t int64 (N,), cond None or (N, cond_dim)

which answers (N, C, H, W).  `net.cond_shape` is the shape of one picture's cond, or None.
"""

from typing import NamedTuple

import torch
from torch import nn

from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.networks.blocks import without as without
from diffusion_utils.networks.resnet import ResNetEncoderDecoder
from diffusion_utils.networks.segnet import SegNet
from diffusion_utils.networks.super_resolution import SuperResolution
from diffusion_utils.networks.text import TextToImage
from diffusion_utils.networks.unet import UNet

NETWORKS = {
    "resnet": ResNetEncoderDecoder,
    "segnet": SegNet,
    "unet": UNet,
    "text_to_image": TextToImage,
    "super_resolution": SuperResolution,
    "autoencoder": Autoencoder,
}


def build(name: str, **options) -> nn.Module:
    """A network from its name and options, as stored in configurations and model cards.

    Raises:
        ValueError: unknown name, or an option the network does not have.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**options)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from None


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


class Stage(NamedTuple):
    """One part of a network as `stages` found it: what it is, its output (C, H, W), its parameters."""

    part: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def stages(net: nn.Module, shape: tuple[int, int, int] = (3, 64, 64)) -> list[Stage]:
    """What happens to one picture on its way through a network, measured by sending one through.

    Args:
        shape: of the picture, (C, H, W).

    Returns:
        The network's direct parts in the order in which they ran.  Lists of layers (encoder,
        decoder) are opened; "embed" gives a vector, all others (C, H, W).
    """

    def opened(module: nn.Module) -> list[nn.Module]:
        if isinstance(module, nn.ModuleList):
            return [part for child in module for part in opened(child)]
        return [] if isinstance(module, nn.Identity) else [module]

    found, hooks = [], []
    for part, child in net.named_children():
        for module in opened(child):

            def record(module, inputs, output, part=part):
                layers = list(module) if isinstance(module, nn.Sequential) else [module]
                names = [type(layer).__name__ for layer in layers if not isinstance(layer, nn.Identity)]
                kind = " + ".join(names)
                output = output[0] if isinstance(output, tuple) else output  # PoolDown also gives indices
                found.append(Stage(part, kind, tuple(output.shape[1:]), count_parameters(module)))

            hooks.append(module.register_forward_hook(record))
    try:
        with torch.no_grad():
            net(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64))
    finally:
        for hook in hooks:
            hook.remove()
    return found
