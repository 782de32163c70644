"""What has to do with the machine below: files written whole or not at all, the cache folder, memory."""

import ctypes
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CACHE_VARIABLE = "DIFFUSION_UTILS_CACHE"


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, force it to disk, then rename it into place.

    Whatever happens in between (Ctrl-C, a full disk, a pulled plug), `path` holds either its old
    contents or the whole new ones.  Creates missing parent folders.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
        # The rename itself is only safe once the folder is on disk, too (Windows opens no folders).
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all (see `write_atomically`)."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value, indent: int | None = 2) -> None:
    """Write a value as JSON, whole or not at all (see `write_atomically`)."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def cache_folder() -> Path:
    """Where pictures and features that took minutes are kept: DIFFUSION_UTILS_CACHE, or a folder in ~/.cache."""
    return Path(os.environ.get(CACHE_VARIABLE, Path.home() / ".cache" / "diffusion_utils"))


def read_cached(name: str) -> Tensor | None:
    """A tensor that `write_cached` left; None: there is none yet, or it is damaged."""
    try:
        return load_file(cache_folder() / f"{name}.safetensors")["tensor"]
    except (OSError, SafetensorError, KeyError):
        return None


def write_cached(name: str, tensor: Tensor) -> None:
    """Keep a tensor in the cache folder; a full or read-only disk costs time on the next start, nothing else."""
    try:
        write_atomically(cache_folder() / f"{name}.safetensors", lambda path: save_file({"tensor": tensor}, path))
    except OSError:
        pass


def keep_freed_memory() -> None:
    """Have glibc keep what a training step frees for the next step, which needs just as much.

    By default it hands large blocks back to the system and fetches them again: thousands of page
    faults per step, a tenth of the time and more.  Elsewhere than on Linux with glibc this does
    nothing.  It holds for the whole process, which keeps up to 2 GB of what it has freed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its maximum: larger blocks stay apart
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: shrink the heap only if that much is free
