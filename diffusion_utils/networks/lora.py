"""Low-rank adapters: LoRA (Hu et al. 2021, 2106.09685).

A trained network is adapted to other pictures without touching its weights.  Beside the weight W of each convolution
and linear layer, seen as a matrix of outputs × inputs, two thin matrices are learnt, and the layer computes with

    W + B·A      A: rank × inputs, random;  B: outputs × rank, at first zero        (their eq. 3, with α = rank)

so that the network begins as it was.  What has been learnt is B and A alone, a few percent of the numbers, and
it can be added to W afterwards: then drawing costs what it cost before.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
ANEW = "embed.cond"  # the layer that reads conditions: other pictures have others, so all of it is learnt


class LowRank(nn.Module):
    """From a weight to the weight plus B·A, of the same shape."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        self.down = nn.Parameter(torch.randn(rank, inputs, device=weight.device) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add(net: nn.Module, rank: int) -> None:
    """Freeze a network, and put adapters beside the weights of its convolutions and linear layers, wherever two thin
    matrices are fewer numbers than the weight.

    Raises:
        ValueError: they are so nowhere.
    """
    net.requires_grad_(False)
    for name, layer in [*net.named_modules()]:
        if name.endswith(ANEW):
            layer.requires_grad_(True)
        elif isinstance(layer, LAYERS) and rank * sum(layer.weight.flatten(1).shape) < layer.weight.numel():
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    if not any(parametrize.is_parametrized(layer) for layer in net.modules()):
        raise ValueError(f"adapters of rank {rank} would be as large as the weights themselves: lower lora")


def adapters(net: nn.Module) -> dict[str, Tensor]:
    """What is learnt of a network with adapters, by the names of its weights: NAME.up and NAME.down."""
    learnt = {name: p for name, p in net.named_parameters() if p.requires_grad or ".parametrizations.weight.0." in name}
    return {name.replace(".parametrizations.weight.0.", ".weight."): p.detach() for name, p in learnt.items()}


def merge(net: nn.Module) -> nn.Module:
    """A copy of a network whose adapters have been added to its weights: of the form it had without them."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        if parametrize.is_parametrized(layer):
            weight = layer.weight.detach()
            # As torch's remove_parametrizations, which would also take the property from the class of the original.
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            layer.weight = nn.Parameter(weight)
    return net


def merged(weights: Mapping[str, Tensor], learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for weights as they are stored: a network's state, and its `adapters`.

    Raises:
        ValueError: the adapters are another network's.
    """
    result = {**weights, **{name: value for name, value in learnt.items() if not name.endswith((".up", ".down"))}}
    try:
        for name in (name.removesuffix(".up") for name in learnt if name.endswith(".up")):
            result[name] = result[name] + (learnt[f"{name}.up"] @ learnt[f"{name}.down"]).view_as(result[name])
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"its adapters belong to another network ({error})") from None
    return result
