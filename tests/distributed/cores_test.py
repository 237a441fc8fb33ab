"""Usable cores: affinity, and CPU quotas of control groups as Linux writes them."""

import os
import subprocess
import sys

import pytest

from gve_jax.distributed import cores
from gve_jax.distributed.cores import usable_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """32 cores, whose control group is `/pod/box` below tmp_path."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)))
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/box\n")
    monkeypatch.setattr(cores, "MEMBERSHIP", membership)
    (tmp_path / "pod/box").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 32),
        ({"pod/box/cpu.max": "max 100000\n"}, 32),
        ({"pod/box/cpu.max": "200000 100000\n"}, 2),
        ({"pod/box/cpu.max": "150000 100000\n"}, 2),
        ({"pod/box/cpu.max": "20000 100000\n"}, 1),
        ({"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "400000 100000\n"}, 4),  # the container's own group, mounted as the root
        ({"pod/box/cpu.max": "6400000 100000\n"}, 32),
        ({"pod/box/cpu.max": "garbage\n"}, 32),
    ],
)
def test_a_quota_limits_the_cores(machine, files, expected):
    for name, text in files.items():
        (machine / name).write_text(text)
    assert usable_cores() == expected


def test_quotas_of_version_1(machine):
    (machine / "membership").write_text("4:cpu,cpuacct:/pod\n3:memory:/pod\n")
    group = machine / "cpu,cpuacct/pod"
    group.mkdir(parents=True)
    (group / "cpu.cfs_period_us").write_text("50000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores() == 32
    (group / "cpu.cfs_quota_us").write_text("250000\n")
    assert usable_cores() == 5


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's affinity")
def test_affinity_limits_the_cores():
    code = (
        "import os\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "os.cpu_count = lambda: 32\n"
        "from gve_jax.distributed.cores import usable_cores\n"
        "assert usable_cores() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
