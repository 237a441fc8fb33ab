"""Metrics of a step, with a known clock and known counts."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.hardware import chips
from gve_jax.hardware.flops import Flops
from gve_jax.inputs.counts import Counts
from gve_jax.running import runlog
from tests.situations import situation


def make_log(workdir, monkeypatch, **more):
    """A log whose clock advances by a quarter of a second at each reading."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(runlog.time, "perf_counter", lambda: next(ticks) / 4)
    fields = {"first_step": 0, "steps": 8, "every": 1, "learning_rate": lambda step: 0.5}
    flops = lambda sides: Flops(1e12, sum(side.tokens for side in sides) * 1e10)  # noqa: E731
    return runlog.RunLog(workdir, flops=flops, **(fields | more))


def batch():
    return SimpleNamespace(
        arrays={"valid": np.ones(16, bool)},
        source="T2V_whole",
        ids=["a", "b"],
        used={"tokens": 300, "patches": 10},
        slots={"tokens": 400, "patches": 20},
        counts={"query": Counts(16, 100), "positive": Counts(16, 200)},
    )


def run(log, steps=8, loss=1.0):
    for step in range(steps):
        log.before_step(step)
        log.after_step(step, 0, batch(), {"loss": jnp.float32(loss)})
    log.flush()
    return log.close()


@situation(
    "Training",
    "a gradient is NaN while the loss is finite",
    "the run stops in a line that names step, source and pairs; checkpoints and exports hold "
    "finite numbers only",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        ({"loss": 1.0, "gradient_norm": float("nan")}, "the gradient norm of step 7 is nan"),
        ({"loss": 1.0, "parameter_norm": float("inf")}, "the parameter norm of step 7 is inf"),
        ({"a": float("nan"), "loss": float("nan")}, "the loss of step 7 is nan"),
        ({"loss": 1.0, "temperature": float("nan")}, "the temperature of step 7 is nan"),
    ],
)
def test_a_scalar_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, scalars, message):
    log = make_log(tmp_path, monkeypatch)
    log.before_step(7)
    log.after_step(7, 0, batch(), scalars)
    with pytest.raises(UserError, match=f"^{message}: source T2V_whole, pairs a, b; "):
        log.flush()


def test_rates_are_measured_after_the_warmup(tmp_path, monkeypatch):
    monkeypatch.setattr(
        runlog.chips, "find_chip", lambda kind: SimpleNamespace(flops=2e12 / jax.device_count())
    )
    summary = run(make_log(tmp_path, monkeypatch))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    # Each step after the warm-up reads the clock equally often, so all take the same time.
    step_s = lines[-1]["step_s"]
    assert step_s > 0 and 0 < lines[-1]["wait_s"] < step_s
    for record in (lines[-1], summary):
        assert record["tokens_per_s"] == pytest.approx(300 / step_s)
        assert record["pairs_per_s"] == pytest.approx(16 / step_s)
        assert record["tflops_per_s/tower"] == pytest.approx(1 / step_s)
        assert record["tflops_per_s/decoder"] == pytest.approx(3 / step_s)
        assert record["mfu"] == pytest.approx(4 / step_s / 2)
    assert 0.05 < summary["memory_gb"] < 100
    assert lines[-1]["learning_rate"] == 0.5 and lines[-1]["loss/T2V_whole"] == 1.0


def test_the_line_of_a_stages_first_step_describes_the_stage(tmp_path, monkeypatch):
    log = make_log(tmp_path, monkeypatch, every=4)
    record = {"first_step": 2, "sigma": 0.5, "R": {"I2I": 0.25}, "P": {"I2I": 1.0}}
    log.start_stage(record | {"batches": {"I2I": 6}})
    run(log)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]  # 2 because of the stage alone
    scalars = {name: value for name, value in lines[1].items() if name.startswith("pyramid/")}
    assert scalars == {
        "pyramid/sigma": 0.5,
        "pyramid/R/I2I": 0.25,
        "pyramid/P/I2I": 1.0,
        "pyramid/batches/I2I": 6,
    }
    assert not any(name.startswith("pyramid/") for line in (lines[0], lines[2]) for name in line)


def test_a_cpu_has_no_mfu(tmp_path, monkeypatch):
    assert chips.find_chip(jax.devices()[0].device_kind) is None
    assert "mfu" not in run(make_log(tmp_path, monkeypatch))


def test_a_loss_that_is_not_finite_stops_with_step_source_and_ids(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="loss of step 0 is nan: source T2V_whole, pairs a, b"):
        run(make_log(tmp_path, monkeypatch), loss=float("nan"))


def test_a_profile_covers_the_configured_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(directory))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = runlog.Profile(tmp_path, 2, 3)
    counts = {}
    for step in range(8):
        profile.before(step)
        profile.after(step, jnp.zeros(()))
        counts[step] = len(calls)
    assert calls == [tmp_path, "stop"]
    assert (counts[1], counts[2], counts[3], counts[4]) == (0, 1, 1, 2)
    profile.stop()
    assert len(calls) == 2
