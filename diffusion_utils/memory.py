"""Where a training step's memory comes from, on a CPU."""

import ctypes
import platform


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step, which needs just as much.

    By default it hands large blocks back to the system and fetches them again: thousands of page
    faults per step, a tenth of the time and more.  Elsewhere than on Linux with glibc this does
    nothing.  It holds for the whole process, which keeps up to 2 GB of what it has freed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its maximum: larger blocks stay apart
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: shrink the heap only if that much is free
