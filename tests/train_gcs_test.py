"""Runs whose base, workdir and exports are in GCS give bitwise the results of local runs."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from gve_jax.distributed.sharding import AXES
from gve_jax.errors import StoppedError, UserError
from gve_jax.gve import GVE
from gve_jax.running.experiment import Experiment
from gve_jax.running.runlog import RunLog
from gve_jax.storage.filesystem import as_path
from gve_jax.train import train
from tests.running.metrics_test import read_events
from tests.train_lora_test import TEXTS, recipe
from tests.train_test import losses, make_config, run_cli

pytestmark = pytest.mark.slow
WORKDIR = "gs://runs/one"


def lines(gcs, bucket: str) -> dict[int, tuple[str, float]]:
    records = [json.loads(line) for line in gcs.read(bucket, "one/metrics.jsonl").splitlines()]
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})
    return {r["step"]: (r["task"], r["loss"]) for r in records}


@pytest.fixture(scope="module", autouse=True)
def one_device_and_empty_cache(tmp_path_factory):
    """Uses one device, for which programs compile faster, and an empty cache of copies."""
    mesh = jax.make_mesh(
        (1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gve_jax.running.setup.make_mesh", lambda axes, devices: mesh)
        patch.setattr("gve_jax.gve.make_mesh", lambda axes: mesh)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A checkpoint in transformers' format, with the world's tokenizer."""
    directory = tmp_path_factory.mktemp("base")
    run = Experiment(make_config(world), directory / "w")
    run.export("hf", run.initial_state()["params"], {}, directory / "hf")
    return directory / "hf"


def small(world, base):
    """A config of four steps with one batch shape."""
    config = recipe(world, base, data__sources=("I2I",), pyramid__stages=1)
    config.checkpoint.every = 2
    return config


@pytest.fixture(scope="module")
def finished(world, base, tmp_path_factory):
    """An uninterrupted run in a local workdir on a local base."""
    workdir = tmp_path_factory.mktemp("local")
    train(small(world, base), workdir)
    return workdir


@pytest.fixture(scope="module")
def config(world, base, gcs):
    gcs.make("models")
    for path in base.iterdir():
        gcs.put("models", f"base/{path.name}", path.read_bytes())
    return small(world, "gs://models/base")


@pytest.fixture(scope="module")
def stopped(config, gcs):
    """The objects of a run that received SIGTERM in its first step, by name."""
    gcs.make("runs")
    after_step = RunLog.after_step

    def preempting(self, step, *rest):
        after_step(self, step, *rest)
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "after_step", preempting)
        with pytest.raises(StoppedError, match="saved at step 1"):
            train(config, as_path(WORKDIR))
    return dict(gcs.buckets["runs"])


@pytest.fixture(scope="module")
def resumed(config, gcs, stopped):
    """Resumes the stopped run to its end; all writes to the bucket, in order."""
    train(config, as_path(WORKDIR))
    return [write for write in gcs.journal if write.bucket == "runs"]


def test_a_run_that_receives_sigterm_loses_no_line(stopped):
    (line,) = stopped["one/metrics.jsonl"].data.splitlines()
    assert json.loads(line)["step"] == 0
    assert "one/checkpoints/1/commit_success.txt" in stopped and "one/run.json" in stopped
    assert not any(name.startswith(("one/model", "one/.writable")) for name in stopped)


def test_losses_and_files_are_those_of_a_local_run(gcs, resumed, finished):
    assert lines(gcs, "runs") == losses(finished)
    assert gcs.read("runs", "one/curriculum.json") == (finished / "curriculum.json").read_bytes()
    remote = {name.removeprefix("one/") for name in gcs.buckets["runs"]}
    local = {
        path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()
    }
    same = (
        "adapter/",
        "hf/",
        "model/config.json",
        "model/tokenizer.json",
        "curriculum.json",
        "metrics.jsonl",
        "run.json",
        "train.json",
    )
    assert {name for name in local if name.startswith(same)} == {
        name for name in remote if name.startswith(same)
    }


def test_tensorboard_gets_every_event(gcs, resumed, tmp_path):
    for name, stored in gcs.buckets["runs"].items():
        if name.startswith("one/tensorboard/"):
            (tmp_path / name.rpartition("/")[2]).write_bytes(stored.data)
    assert len(list(tmp_path.iterdir())) == 2  # of both processes
    steps = {event.step for event in read_events(tmp_path) if event.summary.value}
    assert steps == {0, 1, 2, 3}


def test_the_exported_models_are_those_of_a_local_run(gcs, resumed, finished):
    for name in ("hf/model.safetensors", "adapter/adapter_model.safetensors"):
        assert gcs.read("runs", f"one/{name}") == (finished / name).read_bytes(), name
    ours = GVE.from_pretrained(f"{WORKDIR}/model")
    local = GVE.from_pretrained(finished / "model")
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(local.params), strict=True):
        np.testing.assert_array_equal(a, b)
    peft = GVE.from_pretrained("gs://models/base", dtype="float32", adapter=f"{WORKDIR}/adapter")
    np.testing.assert_array_equal(peft.encode(TEXTS), ours.encode(TEXTS))
    assert gcs.buckets["models"].keys() == {f"base/{name}" for name in os.listdir(finished / "hf")}


def test_repeating_a_finished_run_writes_nothing(config, gcs, resumed, capsys):
    before = len(gcs.journal)
    train(config, as_path(WORKDIR))
    assert "training is complete; its model is in gs://runs/one/model" in capsys.readouterr().out
    assert len(gcs.journal) == before


@pytest.mark.parametrize("killed", ["before the save", "in the save", "in the export"])
def test_a_killed_and_resumed_run_has_bitwise_identical_losses(
    config, gcs, resumed, finished, capsys, killed
):
    """A kill is simulated by replaying the writes up to that moment."""
    saving = [i for i, write in enumerate(resumed) if write.name.startswith("one/checkpoints/4/")]
    exported = [i for i, write in enumerate(resumed) if write.name == "one/hf/config.json"]
    commit = [i for i in saving if resumed[i].name.endswith("4/commit_success.txt")]
    at = {"before the save": saving[0], "in the save": commit[0], "in the export": exported[-1]}
    bucket = killed.replace(" ", "-")
    gcs.replay(resumed[: at[killed]], bucket)
    known = lines(gcs, bucket)
    assert sorted(known) == [0, 1, 2, 3]  # ahead of the checkpoint
    train(config, as_path(f"gs://{bucket}/one"))
    step = 4 if killed == "in the export" else 2
    assert f"resuming at step {step}\n" in capsys.readouterr().out
    assert lines(gcs, bucket) == losses(finished) == known
    for name in ("hf/model.safetensors", "adapter/adapter_model.safetensors"):
        assert gcs.read(bucket, f"one/{name}") == (finished / name).read_bytes(), name


def test_an_unusable_bucket_is_named_before_anything_compiles(world, config, gcs):
    gcs.make("locked")
    gcs.read_only.add("locked")
    with pytest.raises(UserError, match="--workdir gs://locked/one cannot be written .permission"):
        Experiment(config, as_path("gs://locked/one")).is_complete()
    code, _, err = run_cli(world, "gs://absent/one")
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert "--workdir gs://absent/one cannot be written (no such" in err
