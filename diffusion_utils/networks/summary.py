"""What a network is made of, and what it costs."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


def count_macs(network: nn.Module, shape: tuple[int, int, int] = (3, 64, 64)) -> int:
    """Multiply-accumulates for one picture, counted by torch while the network runs once."""
    device = next(network.parameters()).device
    # Of PyTorch's kinds of attention the counter knows products of matrices, and not the CPU's fast one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape, device=device), torch.zeros(1, dtype=torch.int64, device=device))
    return counter.get_total_flops() // 2


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
        decoder) are opened; "embed" gives a vector, blocks of tokens (L, dim), all others (C, H, W).
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
