"""Networks by name: how configurations and model cards call them."""

from collections.abc import Callable
from inspect import Parameter, signature

from torch import nn

from diffusion_utils.checks import check_kind, suggestions

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
        ValueError: unknown name, an option the network does not have, or a value of the wrong kind.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {suggestions(name, NETWORKS)}")
    known = signature(NETWORKS[name]).parameters
    for option in options.keys() & known.keys():
        _check(f"network {name!r}: {option}", options[option], known[option])
    try:
        return NETWORKS[name](**options)
    except (TypeError, RuntimeError) as error:  # no such option, or more numbers than there is memory
        raise ValueError(f"network {name!r}: {str(error).splitlines()[0]}") from None


def _check(what: str, value: object, option: Parameter) -> None:
    """Raise a ValueError unless an option is of the kind that its annotation names, and no number in it below 1 (or
    below its default)."""
    if option.annotation is not Parameter.empty:
        check_kind(what, value, option.annotation)
    least = min(1, option.default) if type(option.default) is int else 1
    numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if type(n) is int]
    if numbers and min(numbers) < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    if isinstance(value, dict) and "name" not in value:
        raise ValueError(f"{what} needs a name, such as {{'name': 'resnet'}}, not {value}")
