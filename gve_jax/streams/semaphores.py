"""The semaphores of workers, which have names in /dev/shm.

multiprocessing removes the names when a run ends, but not when all its processes are killed
together. So they say which process made them, and the next run removes those of ended processes.
"""

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

FOLDER = Path("/dev/shm")  # where glibc has them
_PREFIX = "gve_jax-"


def claim_semaphores() -> None:
    """Names the semaphores that this process will make, and removes those of ended processes."""
    # Not documented; without it, names are random, and stay.
    config = getattr(multiprocessing.current_process(), "_config", None)
    if sys.platform != "linux" or not isinstance(config, dict):
        return
    space = os.stat("/proc/self/ns/pid").st_ino  # /dev/shm may be shared by containers
    for path in FOLDER.glob(f"sem.{_PREFIX}{space}-*"):
        pid, started = path.name.removeprefix(f"sem.{_PREFIX}{space}-").split("-")[:2]
        if _start_time(int(pid)) != started:
            with contextlib.suppress(OSError):  # another run removes it, too
                path.unlink()
    config["semprefix"] = f"/{_PREFIX}{space}-{os.getpid()}-{_start_time(os.getpid())}"


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return status.rpartition(")")[2].split()[19]
