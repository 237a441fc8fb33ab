"""How many CPU cores this process may use."""

import math
import os
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores by the process's affinity (`taskset`, Slurm) and by the CPU quota of its cgroup and of
    those above it (containers); at least 1. `os.cpu_count` is that of the whole machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _quota() -> float:
    """The smallest CPU quota in cores; infinity where there is none."""
    try:
        groups = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS  # version 1 has one per controller
        # In a container the path may be that outside of it, while its own group is the root.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group != root and root not in group.parents:
                break
            quotas.append(_quota_of(group, bool(controllers)))
    return min(quotas)


def _quota_of(group: Path, is_version_1: bool) -> float:
    try:
        if is_version_1:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        else:
            quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
