"""Reuse of freed memory by glibc, for training steps on a CPU.

glibc returns every freed block above 32 MB to the kernel, and XLA frees all memory of a step on a
CPU: in the next step each page causes a fault and is cleared again. In a LoRA step of the benchmark
(`evals.speed train`) that was 1.2 GB in 300,000 page faults, a seventh of the CPU time.
"""

import ctypes
import os

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def retain_freed_memory() -> bool:
    """Makes glibc keep freed memory for later allocations. Call it before threads start.

    The peak memory of the process does not change. Returns False, and changes nothing, if the C
    library is not glibc or is configured by its variables (`MALLOC_*`, `GLIBC_TUNABLES`).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # One arena: those of other threads always take large blocks from the kernel.
    options = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all(mallopt(*option) == 1 for option in options)
