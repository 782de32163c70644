"""What has to do with the machine below: files written whole or not at all, the cache folder, memory."""

import ctypes
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CACHE_VARIABLE = "DIFFUSION_UTILS_CACHE"


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, force it to disk, then rename it into place.

    Whatever happens in between (Ctrl-C, a full disk, a pulled plug), `path` holds either its old
    contents or the whole new ones.  Creates missing parent folders; ~ is the home folder, and a link stays
    one: what it points at is written.  What a killed writer of the same file has left is removed (not on
    Windows).

    Raises:
        OSError: no room, no right to write, and the like; whatever else `write` raises.
    """
    asked, path = path, Path(os.path.realpath(os.path.expanduser(path)))
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    if fcntl:  # a lock, which dies with its process
        with suppress(OSError):  # some network drives have none: then nobody else gets it either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.close(handle)  # Windows renames nothing that is open
    try:
        try:
            write(temporary)
        except SafetensorError as error:  # which says no more than text that a disk is full
            raise OSError(f"{asked} could not be written: {error}") from error
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
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(asked)  # a full disk does not say by itself what had no room
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if fcntl:
            os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what writers of a file have left that were killed: the living hold a lock on theirs."""
    for leftover in path.parent.glob(f".{escape(path.name)}.????????.part") if fcntl else ():
        with suppress(OSError), open(leftover, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all (see `write_atomically`).

    Bytes of file names that are no UTF-8 are written as JSON would, "\\udce9", which reads as the same name.
    """
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: str | Path, value, indent: int | None = 2) -> None:
    """Write a value as JSON, whole or not at all (see `write_atomically`)."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def cache_folder() -> Path:
    """Where pictures and features that took minutes are kept: DIFFUSION_UTILS_CACHE, or a folder in ~/.cache.

    Raises:
        RuntimeError: that is in a home folder, and there is none.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/diffusion_utils").expanduser()


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `folder` when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        new.rename(folder)


def read_cached(name: str) -> Tensor | None:
    """A tensor that `write_cached` left; None: there is none yet, or it is damaged."""
    try:
        return load_file(cache_folder() / f"{name}.safetensors")["tensor"]
    except (OSError, RuntimeError, SafetensorError, KeyError):
        return None


def write_cached(name: str, tensor: Tensor) -> None:
    """Keep a tensor in the cache folder; a full or read-only disk costs time on the next start, nothing else."""
    try:
        write_atomically(cache_folder() / f"{name}.safetensors", lambda path: save_file({"tensor": tensor}, path))
    except (OSError, RuntimeError):  # no room, no right to write, or no home
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
