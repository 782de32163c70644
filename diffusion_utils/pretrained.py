"""Shipped weights: a safetensors file each, with a JSON model card beside it.

    denoiser = pretrained.load("toy-cars-resnet")        # by name: one that ships with the package
    denoiser = pretrained.load("runs/mine/weights.safetensors")

The card says what the weights are (network, schedule, prediction type: all it takes to rebuild the
denoiser) and where they come from (data, images seen, seconds, machine, date, losses, licence).
"""

import hashlib
import json
import os
import platform
import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized

from diffusion_utils import networks
from diffusion_utils.checks import check_device, check_kind, suggestions
from diffusion_utils.files import write_atomically, write_json
from diffusion_utils.networks import Autoencoder, lora
from diffusion_utils.prediction import Denoiser, PredictionType
from diffusion_utils.schedule import ScheduleName, make_schedule

FOLDER = Path(__file__).parent / "weights"
NEEDED = ("network", "prediction_type", "schedule", "num_train_timesteps", "zero_terminal_snr")

# What the entries of a card are that the package reads.
KINDS = {
    "network": dict,
    "prediction_type": PredictionType,
    "schedule": ScheduleName,
    "num_train_timesteps": int,
    "zero_terminal_snr": bool,
    "sigma_data": float | None,
    "size": int,
    "conditions": dict,
    "prompts": Sequence[str],
    "drawing": dict,
    "autoencoder": str | None,
    "lora": dict,
    "config": dict,
}


def names() -> list[str]:
    """The weights that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def card(name: str | Path) -> dict:
    """The model card of shipped or own weights (see `load` for the name).

    Raises:
        FileNotFoundError: no such weights; names those that are most like it.
        ValueError: the card is missing or damaged.
    """
    path = _find(name).with_suffix(".json")
    try:
        contents = json.loads(path.read_bytes())
        if not isinstance(contents, dict):
            raise TypeError("it holds no entries")
        missing = _missing(contents)
        if not missing:
            _check_entries(contents)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: weights need the model card they were saved with") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a model card: {error}") from None
    if missing:
        raise ValueError(f"{path} is not a model card: it lacks {', '.join(missing)}")
    return contents


def load(name: str | Path, device: torch.device | str = "cpu", contents: dict | None = None) -> Denoiser:
    """A trained denoiser, in evaluation mode, float32; with its autoencoder, where it draws latents, and merged with
    the weights that it adapts, where it is adapters (`networks.lora`).

    Args:
        name: one of `names()`, or the path of a .safetensors file with its .json beside it.
        contents: its card, where it has been read already.

    Raises:
        FileNotFoundError: no such weights; names those that are most like it.
        ValueError: the file is truncated, not safetensors, does not fit the network on its card, or holds
            numbers that are not finite; or the weights that it adapts are missing, or not those it was trained with.
    """
    check_device(device)
    path, contents = _find(name), card(name) if contents is None else contents
    try:
        network = networks.build(**contents["network"])
        result = denoiser(network, contents)
        _check_conditions(contents, network)
    except ValueError as error:
        raise ValueError(f"{path.with_suffix('.json')} does not describe weights: {error}") from None
    try:
        path.open("rb").close()  # what is wrong with reading it is no damage
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key).float() for key in file.keys()}
    except (SafetensorError, OSError, struct.error) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): download or train it again") from None
    _check_finite(weights, path)
    if "lora" in contents:
        weights = _adapted(name, contents, weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # its first line only says that something is wrong
        found = " ".join(str(error).splitlines()[1].split())
        raise ValueError(
            f"{path} holds weights of another network than its card says ({found}): use the card's own file"
        ) from None
    network.eval().requires_grad_(False).to(device)
    autoencoder, whose = None, autoencoder_of(name, contents)
    if whose is not None:
        try:
            autoencoder = load_autoencoder(whose, device)
        except FileNotFoundError:
            raise ValueError(f"{path} draws latents of {whose}, which is missing: it must be kept with them") from None
    size = contents.get("size", 64) // (1 if autoencoder is None else autoencoder.stride)
    if size % getattr(network, "stride", 1):
        raise ValueError(
            f"{path.with_suffix('.json')}: size {contents.get('size', 64)} does not fit the network, whose stride is "
            f"{network.stride}: use the weights' own card"
        )
    return replace(result, autoencoder=autoencoder)


def denoiser(network: torch.nn.Module, contents: dict) -> Denoiser:
    """The denoiser that a card describes, around its network."""
    schedule = make_schedule(contents["schedule"], contents["num_train_timesteps"], contents["zero_terminal_snr"])
    return Denoiser(network, schedule, contents["prediction_type"], contents.get("sigma_data", 0.5))


def autoencoder_of(name: str | Path, contents: dict | None = None) -> str | None:
    """Where the autoencoder is in whose latents weights draw: a shipped name, or a path; None for
    pixels.  Cards give paths from their own folder, so that the folder of a run can be moved."""
    encoder = (card(name) if contents is None else contents).get("autoencoder")
    return None if encoder is None else _from_card(name, encoder)


def _from_card(name: str | Path, other: str) -> str:
    """Weights that a card names, as `load` takes them."""
    return other if other in names() else os.path.normpath(_find(name).parent / other)


def _adapted(name: str | Path, contents: dict, learnt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that adapters make of those that they were trained with."""
    base = _from_card(name, contents["lora"].get("base", ""))
    try:
        if lora_entry(base, contents["lora"].get("rank"))["sha256"] != contents["lora"].get("sha256"):
            raise ValueError(f"{name} holds adapters of other weights than {base} are now: train them again")
        weights = load(base).net.state_dict()
        if contents["network"].get("cond_dim") is None:  # what the base knew of conditions has been left behind
            weights.pop(f"{lora.ANEW}.weight", None)
        return lora.merged(weights, learnt)
    except FileNotFoundError:
        raise ValueError(f"{name} holds adapters of {base}, which is missing: it must be kept with them") from None


def lora_entry(base: str | Path, rank: int) -> dict:
    """What the card of adapters says of the weights that they adapt; a sum of their file tells them from others."""
    return {"rank": rank, "base": str(base), "sha256": hashlib.sha256(_find(base).read_bytes()).hexdigest()}


def load_autoencoder(name: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
    """An autoencoder alone.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: they are weights of something else.
    """
    net = load(name, device).net
    if not isinstance(net, Autoencoder):
        raise ValueError(f"{name} is no autoencoder: train one with --objective autoencoder")
    return net


def copy(name: str | Path, path: str | Path) -> None:
    """Weights, and then their card, to another place, each whole or not at all."""
    source, target = _find(name), Path(path)
    for suffix in (source.suffix, ".json"):
        from_here = source.with_suffix(suffix)
        write_atomically(target.with_suffix(suffix), lambda file, from_here=from_here: shutil.copyfile(from_here, file))


def save(path: str | Path, denoiser: Denoiser, contents: dict, dtype: torch.dtype = torch.float16) -> None:
    """Write weights (half precision by default) and card, each whole or not at all.  Of a network with adapters those
    alone where the card says what they adapt, `lora`; else the sum.

    Args:
        path: ends in .safetensors; the card goes beside it as .json.
        contents: the card's contents; must hold what `load` needs (network, prediction_type, schedule,
            num_train_timesteps, zero_terminal_snr; for "edm" sigma_data).  The number of parameters
            is added, and the paths of an autoencoder and of adapted weights are written as seen from the card.

    Raises:
        ValueError: the card lacks something; or weights that are not finite, or not in this precision.
    """
    path = Path(path)
    missing = _missing(contents)
    if path.suffix != ".safetensors" or missing:
        raise ValueError(f"the card lacks {', '.join(missing)}" if missing else f"{path} must end in .safetensors")
    weights = lora.adapters(denoiser.net) if "lora" in contents else lora.merge(denoiser.net).state_dict()
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
    _check_finite(weights, path)
    contents = {"parameters": networks.count_parameters(denoiser.net), **contents}
    if contents.get("autoencoder") is not None:
        contents["autoencoder"] = _as_seen_from(path, contents["autoencoder"])
    if "lora" in contents:
        contents["lora"] = {**contents["lora"], "base": _as_seen_from(path, contents["lora"]["base"])}
    # When safetensors itself writes the file, a full disk comes back as some SafetensorError.
    write_atomically(path, lambda temporary: temporary.write_bytes(serialized(weights)))
    write_json(path.with_suffix(".json"), contents)


def _as_seen_from(path: Path, name: str) -> str:
    """Shipped weights by their name, others by their path from the folder of `path`."""
    return name if name in names() else Path(os.path.relpath(name, path.parent)).as_posix()


def _check_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raise a ValueError for weights that could only draw black."""
    bad = next((name for name, value in weights.items() if not value.isfinite().all()), None)
    if bad:
        raise ValueError(
            f"{path}: the weights hold numbers that are not finite, in {bad}: download or train them again"
        )


def _check_entries(contents: dict) -> None:
    """Raise a ValueError for an entry of a card that is not of its kind, or out of its range."""
    for name, hint in KINDS.items():
        if name in contents:
            check_kind(name, contents[name], hint)
    for name in ("num_train_timesteps", "size", "sigma_data"):
        if contents.get(name) is not None and not contents[name] > 0:
            raise ValueError(f"{name} must be greater than 0, not {contents[name]}")
    check_kind("network", contents["network"].get("name"), str)
    shares = [*contents.get("conditions", {"any": 1}).values()]
    check_kind("conditions", shares, Sequence[float])
    if min(shares, default=-1) < 0 or not sum(shares) > 0 or not contents.get("prompts", ["any"]):
        raise ValueError("conditions must be shares of the pictures, and prompts at least one text")


def _check_conditions(contents: dict, network: torch.nn.Module) -> None:
    """Raise a ValueError for conditions that the network cannot take."""
    known = contents.get("conditions")
    if known is not None and network.cond_shape != (len(known),):
        raise ValueError(f"its network takes conditions of shape {network.cond_shape}, not {len(known)} conditions")
    if "prompts" in contents and not isinstance(network, networks.TextToImage):
        raise ValueError("its network takes no prompts")


def _missing(contents: dict) -> list[str]:
    """What a card lacks of what `load` needs."""
    needed = (*NEEDED, "sigma_data") if contents.get("prediction_type") == "edm" else NEEDED
    return [key for key in needed if contents.get(key) is None]


def machine() -> dict:
    """Where and when this runs, for a card: processor or GPU, cores, torch, date."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    except OSError:
        pass
    threads = torch.get_num_threads()
    cpu = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {"machine": device, "torch": torch.__version__, "date": date.today().isoformat()}


def _find(name: str | Path) -> Path:
    shipped = FOLDER / f"{name}.safetensors"
    if str(name) in names():
        return shipped
    path = Path(os.path.expanduser(name))
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_file():
        raise ValueError(f"{name} is no .safetensors file: weights have that ending, and their model card beside them")
    if path.suffix == ".safetensors":
        raise FileNotFoundError(f"{name} does not exist: give the path of a .safetensors file, or a shipped name")
    inside = path / "weights.safetensors"
    if inside.is_file():
        raise IsADirectoryError(f"{name} is a folder: give the weights in it, {inside}")
    shipped = suggestions(name, names()) if names() else "(none shipped)"
    raise FileNotFoundError(
        f"no weights named {str(name)!r}: give one of {shipped}, or the path of a .safetensors file"
    )
