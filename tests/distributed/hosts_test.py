"""Jobs of two hosts: startup checks, training as on one host, and exit when one host dies."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gve_jax.distributed import hosts, work
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.train import train
from tests.conftest import ROOT
from tests.situations import situation
from tests.train_test import losses, make_config


def start(world: Path, workdir: Path) -> list[subprocess.Popen]:
    """Starts training on two hosts with eight devices in total."""
    return launch(
        [
            sys.executable,
            "-m",
            "gve_jax.train",
            "--config=configs/quickstart.py:smoke",
            f"--workdir={workdir}",
            f"--config.data.pairs={world}/pairs",
            f"--config.data.tokenizer={world}/tokenizer.json",
            "--config.steps=4",
            "--config.checkpoint.every=1",
        ]
    )


def launch(command: list[str], heartbeat: int = 60) -> list[subprocess.Popen]:
    """Starts a command on two hosts of four devices each, over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {
        "GVE_JAX_COORDINATOR": address,
        "GVE_JAX_HOSTS": "2",
        "GVE_JAX_HEARTBEAT_S": str(heartbeat),
    }
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | devices | job | {"GVE_JAX_HOST": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    try:
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *end) for p, end in zip(processes, ends, strict=True)]


def check_same_losses(one: Path, other: Path) -> None:
    """The same rows are on the same devices, but sums over hosts add in another order: losses
    differ by float32 rounding, which four steps of training enlarge."""
    expected, got = losses(one), losses(other)
    assert len(expected) == 4
    assert {step: task for step, (task, _) in got.items()} == {
        step: task for step, (task, _) in expected.items()
    }
    for step, (_, loss) in expected.items():
        np.testing.assert_allclose(got[step][1], loss, rtol=1e-5, err_msg=f"step {step}")


@pytest.mark.slow
@situation(
    "Training",
    "one of two hosts is killed and the job repeated",
    "both exit with one line; the repeated job resumes and trains as one host would",
    since="0.1.0",
)
def test_two_hosts_resume_after_one_is_killed_and_train_as_one(world, tmp_path):
    workdir = tmp_path / "run"
    pair = start(world, workdir)
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and '"step": 1,' in metrics.read_text()):
        if time.monotonic() > deadline or any(p.poll() is not None for p in pair):
            pytest.fail("\n".join(f"{code}: {err[:3000]}" for code, _, err in finish(pair)))
        time.sleep(0.01)
    pair[1].send_signal(signal.SIGKILL)
    # Either JAX's thread or the step detects it; the last line reports it in both cases.
    (code, _, err), (_, _, killed) = finish(pair)
    assert code not in (0, None), err
    last = err.splitlines()[-1]
    lost = "(lost its connection to another host|exited) in step"
    assert re.match(rf"error: host 0 {lost} \d", last), err
    assert last.endswith("; repeat the command on all hosts to resume"), err
    killed = killed.splitlines()[-1]
    assert re.match(r"error: host 1 exited in step \d: killed, or", killed), killed

    (code, out, err), (other, _, problem) = finish(start(world, workdir))
    assert (code, other) == (0, 0), err + problem
    assert "resuming at step" in out
    train(make_config(world, steps=4), tmp_path / "alone")
    check_same_losses(tmp_path / "alone", workdir)
    model = GVE.from_pretrained(workdir / "model")
    assert np.isfinite(model.encode([{"text": "a red ring"}])).all()


def start_run(world: str, folder: str, case: str) -> None:
    """Starts a run in which host 1 differs from host 0 by `case`."""
    index = jax.process_index()
    config = make_config(Path(world), mesh__tensor=2)  # 16 devices, batches of 8 rows
    workdir = Path(folder) / "run"
    if case == "seed" and index:
        config.seed = 7
    if case == "rate" and index:
        config.optimizer.learning_rate = 1e-5
    if case == "bad" and index:
        config.steps = 0
    if case == "tokenizer" and index:
        other = Path(folder) / "tokenizer.json"
        other.write_text((Path(world) / "tokenizer.json").read_text() + "\n")
        config.data.tokenizer = str(other)
    if case == "disks":
        workdir = Path(folder) / f"host{index}" / "run"
        work.SHARED_S = 1
    train(config, workdir)


def compare_environment(name: str, value: str) -> None:
    if jax.process_index():
        os.environ[name] = value
    try:
        hosts.check_same(hosts.environment())
    finally:
        os.environ.pop(name, None)


@situation(
    "Training",
    "two hosts of a run differ in seed, learning rate or tokenizer, or do not share the workdir",
    "refused in one line on every host before anything compiles",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("seed", "host 1 was started with config.seed = 7, host 0 with 42"),
        (
            "rate",
            "host 1 was started with config.optimizer.learning_rate = 1e-05, host 0 with 0.0007",
        ),
        ("bad", "host 1: config.steps 0 must be in [1, 2147483647]"),
        ("tokenizer", "host 1 was started with data.tokenizer = "),
        ("disks", "run is not the same folder on hosts 0 and 1"),
    ],
)
def test_hosts_that_differ_are_refused_before_anything_compiles(
    two_hosts, world, tmp_path, case, message
):
    answers = two_hosts.run(
        "tests.distributed.hosts_test:start_run", str(world), str(tmp_path), case
    )
    assert all(message in answer for answer in answers), answers
    assert not list(tmp_path.rglob("run.json"))


@situation(
    "Training",
    "two hosts differ in XLA_FLAGS, code or library versions",
    "refused in one line on every host, by every command",
    since="0.2.0",
)
def test_hosts_compare_their_environment(two_hosts):
    name = "JAX_DEFAULT_MATMUL_PRECISION"
    answers = two_hosts.run("tests.distributed.hosts_test:compare_environment", name, "float32")
    expected = f"host 1 was started with variables.{name} = float32, host 0 with "
    assert answers == [expected, expected]
    same = two_hosts.run(
        "tests.distributed.hosts_test:compare_environment", "XLA_FLAGS_OF_NOBODY", "1"
    )
    assert same == [None, None]
    environment = hosts.environment()
    assert environment["code"]["version"]
    assert environment["libraries"]["jax"] == jax.__version__


def test_flags_are_compared_in_any_order_without_dump_paths(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--b=1 --xla_dump_to=/tmp/host0 --a=2")
    assert hosts.environment()["variables"]["XLA_FLAGS"] == "--a=2 --b=1"


_FAILS = """
import sys, jax
from gve_jax.distributed import hosts
from gve_jax.cli import run_cli
from gve_jax.errors import UserError
def command():
    hosts.set_location("after shard 7")
    if jax.process_index() in map(int, sys.argv[1:]):
        raise UserError("too many unreadable items")
run_cli(lambda: hosts.run(command))
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [(1,), (0, 1)])
def test_a_failing_host_reports_its_error_and_others_its_loss(failing):
    """The last line and the status are ours, not those of JAX's exit, whether one host fails or
    all do."""
    command = [sys.executable, "-c", _FAILS, *map(str, failing)]
    ends = finish(launch(command, heartbeat=10))
    for host, (code, _, err) in enumerate(ends):
        last = err.splitlines()[-1]
        if host in failing:
            assert code == 2 and last == "error: too many unreadable items", err
        else:
            assert code not in (0, None), err
            assert last.startswith(f"error: host {host} ") and " after shard 7" in last, err


@situation(
    "Training",
    "only some of GVE_JAX_COORDINATOR, GVE_JAX_HOSTS, GVE_JAX_HOST are set",
    "the missing one is named",
    since="0.1.0",
)
@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"GVE_JAX_HOSTS": "2"}, "GVE_JAX_COORDINATOR is missing"),
        ({"GVE_JAX_COORDINATOR": "a:1", "GVE_JAX_HOSTS": "2"}, "GVE_JAX_HOST is missing"),
        ({"GVE_JAX_COORDINATOR": "a", "GVE_JAX_HOSTS": "2", "GVE_JAX_HOST": "0"}, "HOST:PORT"),
        ({"GVE_JAX_COORDINATOR": "a:1", "GVE_JAX_HOSTS": "2", "GVE_JAX_HOST": "2"}, "0..1"),
        ({"GVE_JAX_COORDINATOR": "a:1", "GVE_JAX_HOSTS": "x", "GVE_JAX_HOST": "0"}, "'x'"),
    ],
)
def test_a_missing_or_invalid_variable_is_named(monkeypatch, variables, named):
    for name in hosts.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=named):
        hosts.join_job()
