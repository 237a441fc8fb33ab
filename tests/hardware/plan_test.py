"""The planner's mistakes in a line, its reckoning by hand, and a small pod where libtpu is."""

import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import pytest

from gve_jax.errors import UserError
from gve_jax.hardware import estimate
from gve_jax.hardware.chips import CHIPS
from gve_jax.hardware.gpus import usable_fraction
from gve_jax.hardware.hlo import Collective, Part
from gve_jax.hardware.program import DeviceOutOfMemory, catch_compile_oom, largest
from gve_jax.hardware.topology import Topology, parse
from tests.situations import situation


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5p", "not of the form"),
        ("v9:4x4", "unknown chip"),
        ("v5p:4x4", "has 3 axes"),
        ("v5e:4x0", "at least 1"),
        ("h200:2x1x8", "1x1xN"),
    ],
)
def test_a_topology_that_cannot_be_is_named(name, told):
    with pytest.raises(UserError, match=told) as caught:
        parse(name)
    assert "--topology" in str(caught.value) and "\n" not in str(caught.value)


def torus(name: str, grid: tuple[int, ...]) -> tuple[Topology, list]:
    places = [()]
    for side in grid:
        places = [(*place, n) for place in places for n in range(side)]
    devices = [SimpleNamespace(coords=place) for place in places]
    return Topology(name, CHIPS[name], grid, devices), devices


def test_a_step_is_the_slowest_resource_of_each_loop():
    topology, order = torus("v5p", (4, 4, 4))
    chip = topology.chip
    one = Collective("all-gather", 64_000_000, tuple(range(64)), 1, "")
    loop = Part("loop", flops=chip.flops * 0.8 * 0.001, moved=chip.bandwidth * 0.8 * 0.002)
    slow = Part("slow", flops=chip.flops * 0.8 * 0.0001, collectives=[one])
    program = Part("main", loops=[(10, loop), (2, slow)])
    found = estimate.times([program], topology, order, 0.0)
    # Six links of a chip at once, three rings of four: two hops each.
    gather = 63_000_000 / (6 * 100e9 * 0.8) + 6e-6
    assert found.links == pytest.approx(2 * gather)
    assert found.products == pytest.approx(10 * 0.001 + 2 * 0.0001)
    assert found.memory == pytest.approx(0.02)
    assert found.step == pytest.approx(10 * 0.002 + 2 * max(gather, 0.0001))


@situation(
    "Training",
    "planning a step for GPUs, where JAX takes 75 % of a card's memory by default",
    "what fits is compared with that part, or with the one XLA_CLIENT_MEM_FRACTION names",
    since="0.2.0",
)
def test_a_step_must_fit_into_the_memory_that_jax_takes(monkeypatch):
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


def test_a_grid_that_does_not_close_has_one_link_an_axis():
    topology, order = torus("v5e", (4, 4))
    assert estimate.group_bandwidth(range(16), topology, order) == (2 * 50e9, 6)
    assert estimate.group_bandwidth(range(4), topology, order) == (50e9, 3)


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gve_jax.plan", "--config", "configs/gve_3b.py:smoke", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="says what to do without libtpu")
def test_without_the_compiler_the_extra_is_named():
    done = plan("--topology", "v5e:2x2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --topology v5e:2x2: libtpu is not installed: pip install 'gve_jax[tpu]'\n"
    )


needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


@needs_libtpu
def test_a_small_step_for_a_real_pod(tmp_path):
    done = plan("--topology", "v5e:2x2", "--quick", "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["devices"] == 4 and found["fits"]
    assert found["memory"]["moments"] >= 2 * found["memory"]["weights that train"]
    assert 0 < found["mfu"] < 1
    assert not found["unknown_loops"]
    assert "fits" in done.stdout


@needs_libtpu
@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--topology=v5e:3x5", "--topology v5e:3x5"),
        ("--config.mesh.tensor=3", "mesh ("),
        ("--config.batch_size=6", "config.batch_size 6"),
        ("--positive=4x77", "--positive 4x77"),
    ],
)
def test_mistakes_end_with_one_line(argument, told):
    done = plan("--topology=v5e:2x2", argument)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and told in lines[0]


def test_what_the_compiler_refuses_does_not_fit():
    told = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, 51.27G exceeds 15.75G.\nmore"
    with pytest.raises(
        DeviceOutOfMemory, match=r"^Ran out of memory on HBM, 51.27G exceeds 15.75G\.$"
    ):
        with catch_compile_oom():
            raise jax.errors.JaxRuntimeError(told)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with catch_compile_oom():
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


@pytest.mark.parametrize(("limit", "found"), [(100, 10), (7, 6), (5, 4), (1, 1)])
def test_the_largest_batch_is_one_that_the_compiler_takes(limit, found):
    """10 bytes a row in 100 of a device; the compiler gives up above `limit`
    rows, and does not say what it needed: half way to what fits is tried then."""

    def compile(shapes, batch, chunk):
        if batch > 2 * limit:
            raise DeviceOutOfMemory("too large")
        return SimpleNamespace(batch_size=batch, chunk=chunk)

    program = SimpleNamespace(compile=compile, rows=2, topology=SimpleNamespace(memory=100))
    planned = SimpleNamespace(batch_size=2, chunk=0)
    rows, size = largest(program, None, planned, lambda c: 5 * c.batch_size, lambda _: None)
    assert (rows, size) == (found, 10 * found)
