"""Networks by name: how configurations and model cards call them."""

from collections.abc import Callable

from torch import nn

NETWORKS: dict[str, type[nn.Module]] = {}


def register(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: from now on `build(name, …)` makes such networks."""

    def add(network: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[name] = network
        return network

    return add


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
