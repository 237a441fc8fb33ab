"""What glibc does with freed memory: reuse it, for training steps on a CPU, or return it.

glibc returns every freed block above 32 MB to the kernel, and XLA frees all memory of a step on a
CPU: in the next step each page causes a fault and is cleared again. In a LoRA step of the benchmark
(`evals.speed train`) that was 1.2 GB in 300,000 page faults, a seventh of the CPU time.
"""

import ctypes
import os

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8


def retain_freed_memory() -> bool:
    """Makes glibc keep freed memory for later allocations. Call it before threads start.

    The peak memory of the process does not change. Returns False, and changes nothing, if the C
    library is not glibc or is configured by its variables (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    # One arena: those of other threads always take large blocks from the kernel.
    return _set_options((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))


def return_freed_memory() -> bool:
    """Makes glibc return freed blocks of a megabyte and more to the kernel, for a server.

    By default the limit rises with each such block up to 32 MB, and each thread has an arena of its
    own: bodies of requests leave holes in all of them, and the process grows for a long time.
    Returns as `retain_freed_memory`, which is its opposite."""
    return _set_options((_ARENA_MAX, 2), (_MMAP_THRESHOLD, 1 << 20), (_TRIM_THRESHOLD, 1 << 20))


def _set_options(*options: tuple[int, int]) -> bool:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(*option) == 1 for option in options)
