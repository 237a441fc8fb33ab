"""Memory that the C library keeps when it is freed, for steps on a CPU.

glibc gives every block above 32 MB back to the kernel when it is freed, and a step of XLA on a CPU
frees all it used: the next step faults in each page anew and the kernel clears it. In a LoRA step
of the benchmark (`evals.speed train`) that was 1.2 GB in 300,000 faults, a seventh of its processor
time.
"""

import ctypes
import os

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def retain_freed_memory() -> bool:
    """Keeps freed memory in this process, for what it allocates next. Before threads start.

    The process does not grow by it: it holds what it held at its fullest moment. Nothing is
    changed, and False returned, where the C library is not glibc or its own variables (`MALLOC_*`,
    `GLIBC_TUNABLES`) say how it should work.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # One arena: those of other threads take large blocks from the kernel whatever else is said.
    return all(
        mallopt(*one) == 1 for one in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    )
