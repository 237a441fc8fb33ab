"""The planner: errors of one line, estimates against closed forms, and a small pod with libtpu."""

import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from types import SimpleNamespace

import jax
import pytest

from gve_jax.errors import UserError
from gve_jax.hardware import estimate
from gve_jax.hardware.chips import CHIPS
from gve_jax.hardware.gpus import usable_fraction
from gve_jax.hardware.hlo import Collective, Computation
from gve_jax.hardware.program import DeviceOutOfMemory, catch_compile_oom, find_largest
from gve_jax.hardware.topology import Topology, parse
from tests.situations import situation


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "not of the form"),
        ("v9:4x4", "unknown chip"),
        ("v5p:4x4", "has 3 axes"),
        ("v5e:4x0", "each of size >= 1"),
        ("h200:2x1x8", "1x1xN"),
    ],
)
def test_an_invalid_topology_is_named(name, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(name)
    assert "--topology" in str(caught.value) and "\n" not in str(caught.value)


def torus(name: str, grid: tuple[int, ...]) -> tuple[Topology, list]:
    devices = [SimpleNamespace(coords=coords) for coords in product(*map(range, grid))]
    return Topology(name, CHIPS[name], grid, devices), devices


def test_each_loop_takes_the_time_of_its_slowest_resource():
    topology, order = torus("v5p", (4, 4, 4))
    chip = topology.chip
    collective = Collective("all-gather", 64_000_000, tuple(range(64)), 1, "")
    loop = Computation("loop", flops=chip.flops * 0.8 * 0.001, moved=chip.bandwidth * 0.8 * 0.002)
    slow = Computation("slow", flops=chip.flops * 0.8 * 0.0001, collectives=[collective])
    program = Computation("main", loops=[(10, loop), (2, slow)])
    times = estimate.step_times([program], topology, order, 0.0)
    # All six links of a chip at once: three rings of four chips with two hops each.
    gather = 63_000_000 / (6 * 100e9 * 0.8) + 6e-6
    assert times.links == pytest.approx(2 * gather)
    assert times.products == pytest.approx(10 * 0.001 + 2 * 0.0001)
    assert times.memory == pytest.approx(0.02)
    assert times.step == pytest.approx(10 * 0.002 + 2 * max(gather, 0.0001))


@situation(
    "Training",
    "planning a step for GPUs, where JAX allocates 75 % of the memory by default",
    "the step must fit into that part, or into the part that XLA_CLIENT_MEM_FRACTION sets",
    since="0.2.0",
)
def test_a_step_must_fit_into_the_memory_that_jax_allocates(monkeypatch):
    for name in (
        "XLA_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_ALLOCATOR",
    ):
        monkeypatch.delenv(name, raising=False)
    assert Topology("h100:1x1x8", CHIPS["h100"], (1, 1, 8), []).memory == 60e9  # of 80 GB
    assert Topology("v5e:4x4", CHIPS["v5e"], (4, 4), []).memory == 16 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert Topology("h100:1x1x8", CHIPS["h100"], (1, 1, 8), []).memory == 72e9
    assert usable_fraction({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}) == 1
    with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION=9 must be a number above 0"):
        usable_fraction({"XLA_CLIENT_MEM_FRACTION": "9"})


def test_a_grid_that_does_not_close_to_rings_has_one_link_per_axis():
    topology, order = torus("v5e", (4, 4))
    assert estimate.group_bandwidth(range(16), topology, order) == (2 * 50e9, 6)
    assert estimate.group_bandwidth(range(4), topology, order) == (50e9, 3)


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gve_jax.plan", "--config", "configs/gve_3b.py:smoke", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_names_the_extra_to_install():
    done = plan("--topology", "v5e:2x2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --topology v5e:2x2: libtpu is not installed: "
        "pip install -e '.[tpu]' in the checkout of gve_jax\n"
    )


needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


@needs_libtpu
def test_a_small_step_is_planned_for_a_pod(tmp_path):
    done = plan("--topology", "v5e:2x2", "--quick", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["devices"] == 4 and stored["fits"]
    assert stored["memory"]["moments"] >= 2 * stored["memory"]["weights that train"]
    assert 0 < stored["mfu"] < 1
    assert not stored["unknown_loops"]
    assert "fits" in done.stdout


@needs_libtpu
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--topology=v5e:3x5", "--topology v5e:3x5"),
        ("--config.mesh.tensor=3", "mesh ("),
        ("--config.batch_size=6", "config.batch_size 6"),
        ("--positive=4x77", "--positive 4x77"),
    ],
)
def test_errors_are_one_line(argument, message):
    done = plan("--topology=v5e:2x2", argument)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_an_out_of_memory_error_of_the_compiler_is_translated():
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, 51.27G exceeds 15.75G.\nmore"
    with pytest.raises(
        DeviceOutOfMemory, match=r"^Ran out of memory on HBM, 51.27G exceeds 15.75G\.$"
    ):
        with catch_compile_oom():
            raise jax.errors.JaxRuntimeError(message)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with catch_compile_oom():
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


@pytest.mark.parametrize(("limit", "expected"), [(100, 10), (7, 6), (5, 4), (1, 1)])
def test_the_largest_batch_is_one_that_compiles(limit, expected):
    """A row needs 10 of a device's 100 bytes. Above `limit` rows the compiler fails without stating
    the excess, and the search bisects."""

    def compile(shapes, batch, chunk):
        if batch > 2 * limit:
            raise DeviceOutOfMemory("too large")
        return SimpleNamespace(batch_size=batch, chunk=chunk)

    program = SimpleNamespace(compile=compile, rows=2, topology=SimpleNamespace(memory=100))
    planned = SimpleNamespace(batch_size=2, chunk=0)
    rows, size = find_largest(program, None, planned, lambda c: 5 * c.batch_size, lambda _: None)
    assert (rows, size) == (expected, 10 * expected)
