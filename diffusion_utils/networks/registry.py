"""Networks by name: how configurations and model cards call them."""

from collections.abc import Callable
from inspect import Parameter, signature

from torch import nn

from diffusion_utils.checks import check_kind, suggestions

NETWORKS: dict[str, type[nn.Module]] = {}
MADE_BY = {"super_resolution": "low_resolution", "text_to_image": "caption"}  # the conditions that ask for them
MOST = 10_000  # of any number in a network's options: a slip would take all memory, or hours
EXAMPLE = '{"name": "resnet"}'


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
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"network {name!r} has no option {option!r}: choose one of {suggestions(option, known)}")
        _check(f"network {name!r}: {option}", value, known[option])
    for option, parameter in known.items():
        if parameter.default is Parameter.empty and option not in options:
            made = f"give the picture network alone, and --condition {MADE_BY.get(name)} adds the rest"
            raise ValueError(f"network {name!r} lacks {option}: {made if name in MADE_BY else 'give it, too'}")
    try:
        return NETWORKS[name](**options)
    except (TypeError, RuntimeError) as error:  # an option said twice, or more numbers than there is memory
        raise ValueError(f"network {name!r}: {str(error).splitlines()[0]}") from None


def _check(what: str, value: object, option: Parameter) -> None:
    """Raise a ValueError unless an option is of the kind that its annotation names, and no number in it below 1 (or
    below its default) or above MOST."""
    if option.annotation is not Parameter.empty:
        check_kind(what, value, option.annotation)
    least = min(1, option.default) if type(option.default) is int else 1
    numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if type(n) is int]
    if numbers and min(numbers) < least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
    if numbers and max(numbers) > MOST:
        raise ValueError(f"{what} must be at most {MOST}, not {value}")
    if isinstance(value, dict) and "name" not in value:
        raise ValueError(f"{what} needs a name, such as {EXAMPLE}, not {value}")
