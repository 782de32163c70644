"""What is checked before the work begins: kinds of values, names, devices, and places to write to."""

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from operator import index
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import torch

WORDS = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", dict: "a dict"}
MOST = 5  # names that an error suggests


def suggestions(name: object, names: Iterable[str]) -> str:
    """The names that are most like a wrong one, nearest first, at most five of them."""
    known = {str(n).lower(): str(n) for n in names}
    near = get_close_matches(str(name).lower(), known, MOST, cutoff=0)
    return (", ".join(known[n] for n in near) or "(none)") + f" … ({len(known)} in all)" * (len(known) > MOST)


def fits(value: object, hint: object) -> bool:
    """Whether a value is of the kind that a type hint names, lists (as JSON has them) standing for tuples.
    True is no number, and neither is NaN."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            return False
        parts = [parts[0]] * len(value) if kind is Sequence or parts[-1] is ... else parts
        return len(parts) == len(value) and all(map(fits, value, parts))
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return value is None if hint is None else isinstance(value, hint)


def in_words(hint: object) -> str:
    """What `fits` wants, for an error."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(in_words(part) for part in parts if part is not NoneType)
    if kind is Literal:
        return "one of " + ", ".join(map(str, parts))
    if kind in (tuple, Sequence):
        return f"a list, each {in_words(parts[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def check_kind(name: str, value: object, hint: object) -> None:
    """Raise a ValueError that names an option whose value is not of its kind."""
    if not fits(value, hint):
        raise ValueError(f"{name} must be {in_words(hint)}, not {value!r}")


def whole(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`, of whatever type; raises a ValueError for anything else."""
    try:
        if index(value) >= least:
            return index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def check_device(device: torch.device | str) -> None:
    """Raise a ValueError for a device that this machine has not, or that keeps no numbers (meta)."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError, TypeError):
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there = ["cpu", *cuda, *["mps"] * torch.backends.mps.is_available()]
        raise ValueError(f"there is no device {str(device)!r} here: choose one of {', '.join(there)}") from None


def check_file(path: Path, option: str = "--out") -> None:
    """Raise an error for a file that could not be written, before the work: a folder, or in a place where no
    file can be made.  Missing folders are no fault, they will be made."""
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder: give the name of a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{option} {path} is no ordinary file: give another name")
    check_folder(path.parent, option)


def check_folder(path: Path, option: str = "--out", endings: Iterable[str] = ()) -> None:
    """Raise an error for a folder in which no file could be made.

    Args:
        endings: of names that are meant as a file's, such as .png.
    """
    if path.suffix.lower() in endings and not path.is_dir():
        raise NotADirectoryError(f"{option} {path} is to be a folder, and this looks like a file: leave the name out")
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise NotADirectoryError(f"{option}: {there} is a file and not a folder: choose another place")
    try:
        tempfile.TemporaryFile(dir=there).close()  # the one way to know: rights, a full disk, a disk to read only
    except OSError as error:
        raise OSError(f"{option}: nothing can be written in {there} ({error.strerror}): choose another place") from None
