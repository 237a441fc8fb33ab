"""The trainer's command: it trains, resumes exactly, and reports errors in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.quickstart import get_config
from gve_jax import train as train_module
from gve_jax.cli import run_cli as run_command
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.learning.pyramid import mean_alignment
from gve_jax.media import sandbox
from gve_jax.media.quarantine import Quarantine
from gve_jax.running.experiment import Experiment
from gve_jax.storage.locks import lock_folder
from gve_jax.streams.pairs import PairSources
from gve_jax.train import main, train
from tests.conftest import ROOT
from tests.situations import situation


def make_config(world: Path, **fields):
    config = get_config("smoke")
    config.data.pairs, config.data.tokenizer = f"{world}/pairs", f"{world}/tokenizer.json"
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def losses(workdir: Path) -> dict[int, tuple[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})
    return {r["step"]: (r["task"], r["loss"]) for r in records}


# The trainer, killed when the checkpoint of step 4 is written but not yet renamed.
DIES_SAVING = """
import os, signal
from gve_jax.cli import run_cli
from gve_jax.train import main
def guarded(rename):
    def wrapped(source, target, *rest, **more):
        if os.fspath(target).endswith("checkpoints/4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target, *rest, **more)
    return wrapped
os.rename, os.replace = guarded(os.rename), guarded(os.replace)
run_cli(main)
"""


def arguments_of(world: Path, workdir: Path) -> list[str]:
    return [
        "--config=configs/quickstart.py:smoke",
        f"--workdir={workdir}",
        f"--config.data.pairs={world}/pairs",
        f"--config.data.tokenizer={world}/tokenizer.json",
    ]


def run_cli(
    world: Path,
    workdir: Path,
    *arguments: str,
    kill_at: int | None = None,
    kill: signal.Signals = signal.SIGKILL,
    code: str | None = None,
):
    """Runs `python -m gve_jax.train`, or `code` instead; with `kill_at`, sends its processes the
    signal `kill` once that step's loss is on disk."""
    program = ["-c", code] if code else ["-m", "gve_jax.train"]
    command = [sys.executable, *program, *arguments_of(world, workdir), *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"GVE_JAX_TEST_RUN": str(workdir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if kill_at is not None:
        metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and f'"step": {kill_at},' in metrics.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        if kill == signal.SIGTERM:  # a scheduler sends it to all processes of a job
            os.killpg(process.pid, kill)
        else:
            process.send_signal(kill)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def processes_of(workdir: Path) -> list[str]:
    """Processes of a killed run that are still alive after a minute."""
    for _ in range(240):
        alive = [p.name for p in Path("/proc").iterdir() if p.name.isdigit() and _is_of(p, workdir)]
        if not alive:
            break
        time.sleep(0.25)
    return alive


def _is_of(process: Path, workdir: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes()
    except OSError:  # the process has just ended, or belongs to another user
        return False
    return f"GVE_JAX_TEST_RUN={workdir}".encode() in environment


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """An uninterrupted run from the command line, on one device with one decoding process."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    code, out, err = run_cli(world, workdir, "--config.data.workers=1")
    assert code == 0, err
    assert "trained 6 steps" in out
    return workdir


def test_the_files_of_a_finished_run_are_complete_and_consistent(finished):
    assert sorted(losses(finished)) == list(range(6))
    assert all(np.isfinite(loss) for _, loss in losses(finished).values())
    for name in ("model/config.json", "initial/config.json", "run.json", "train.json"):
        assert (finished / name).is_file()
    assert list((finished / "tensorboard").iterdir())
    stages = json.loads((finished / "curriculum.json").read_text())["stages"]
    assert [stage["sigma"] for stage in stages] == [0.1, 1.0]
    sizes = json.loads((finished / "run.json").read_text())["data"]["sources"]
    for stage in stages:
        weights = {n: sizes[n] * np.exp(r / stage["sigma"]) for n, r in stage["R"].items()}
        for name, chance in stage["P"].items():
            assert chance == pytest.approx(weights[name] / sum(weights.values()), rel=1e-6)
        drawn = [
            task
            for task, _ in list(losses(finished).values())[stage["first_step"] : stage["last_step"]]
        ]
        assert all(drawn.count(name) == count for name, count in stage["batches"].items())


def test_training_moved_the_model(finished):
    texts = ["a red circle moves left", "a blue square stays still"]
    before = GVE.from_pretrained(finished / "initial").encode(texts)
    after = GVE.from_pretrained(finished / "model").encode(texts)
    assert np.abs(before - after).max() > 1e-3


@situation(
    "Training",
    "the command of a finished run is repeated",
    "it reports that training is complete; no file is changed",
    since="0.1.0",
)
def test_repeating_a_finished_run_changes_nothing(world, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    code, out, _ = run_cli(world, finished, "--config.data.workers=1")
    assert code == 0 and "complete" in out
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@situation(
    "Training",
    "a run is killed (SIGKILL), also while a checkpoint is being saved, and repeated",
    "it resumes from the newest undamaged checkpoint with bitwise identical losses",
    since="0.1.0",
)
def test_a_killed_and_resumed_run_has_bitwise_identical_losses(world, finished, tmp_path):
    """Killed in the first stage, and again while the first checkpoint of the second is saved. The
    last run decodes in threads instead of a process, which must not change the stream."""
    workdir = tmp_path / "killed"
    arguments = ("--config.data.workers=1",)
    code, *_ = run_cli(world, workdir, *arguments, kill_at=2)
    assert code == -signal.SIGKILL
    assert not processes_of(workdir), "a decoding process outlived the killed run"
    code, _, err = run_cli(world, workdir, *arguments, code=DIES_SAVING)
    assert code == -signal.SIGKILL, err
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert "2" in left and "4" not in left and any(name.startswith("4.") for name in left)
    code, out, err = run_cli(world, workdir, "--config.data.workers=0")
    assert code == 0, err
    assert "resuming at step 2" in out
    assert losses(workdir) == losses(finished)
    curriculum = "curriculum.json"
    assert (workdir / curriculum).read_text() == (finished / curriculum).read_text()


@pytest.mark.slow
@situation(
    "Training",
    "SIGTERM to all processes of a run (preemption)",
    "the step is finished and saved; status 143",
    since="0.1.0",
)
def test_a_run_that_receives_sigterm_saves_a_checkpoint(world, tmp_path):
    workdir = tmp_path / "preempted"
    code, _, err = run_cli(
        world,
        workdir,
        "--config.steps=100000",
        "--config.data.workers=1",
        kill_at=1,
        kill=signal.SIGTERM,
    )
    assert code == 143, err
    (line,) = err.strip().splitlines()[-1:]
    step = re.fullmatch(
        r"received SIGTERM: checkpoint saved at step (\d+); repeat the command .*", line
    )
    assert step and (workdir / "checkpoints" / step[1] / "_CHECKPOINT_METADATA").is_file()
    assert "Traceback" not in err
    assert not (workdir / "quarantine.jsonl").exists()  # nothing the decoders held was quarantined
    assert not processes_of(workdir)


@pytest.mark.slow
def test_eight_devices_and_threads_give_the_losses_of_one_device(world, finished, tmp_path):
    train(make_config(world), tmp_path)
    expected, got = losses(finished), losses(tmp_path)
    assert [task for task, _ in got.values()] == [task for task, _ in expected.values()]
    np.testing.assert_allclose(
        [loss for _, loss in got.values()],
        [loss for _, loss in expected.values()],
        rtol=2e-3,
    )


def poison(monkeypatch, at: int) -> None:
    """Makes the gradients of one leaf NaN from step `at` on, but not the loss."""
    make_train_step = train_module.make_train_step

    def make(*arguments, **options):
        step = make_train_step(*arguments, **options)

        def poisoned(state, frozen, arrays, number):
            grads, scalars = step.gradients(state["params"], frozen, arrays, number)
            if number >= at:
                leaves, tree = jax.tree.flatten(grads)
                grads = jax.tree.unflatten(tree, [leaves[0] * np.nan, *leaves[1:]])
                scalars = scalars | {"gradient_norm": scalars["gradient_norm"] * np.nan}
            return step.update(state, grads), scalars

        return poisoned

    monkeypatch.setattr(train_module, "make_train_step", make)


@pytest.mark.slow
def test_a_nan_gradient_is_neither_saved_nor_exported(world, monkeypatch, tmp_path):
    """In the step before a checkpoint, and in the last step of the run; then the run resumes."""
    for at, newest in ((3, 2), (5, 4)):
        with monkeypatch.context() as patch:
            poison(patch, at)
            with pytest.raises(UserError, match=f"^the gradient norm of step {at} is nan: source "):
                train(make_config(world), tmp_path)
        saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()]
        assert max(saved) == newest
        assert not (tmp_path / "model").exists()
    train(make_config(world), tmp_path)
    vectors = GVE.from_pretrained(tmp_path / "model").encode(["a red ring"])
    assert np.isfinite(vectors).all()


@situation(
    "Training",
    "two train commands in one --workdir",
    "the second is refused and names the process that holds the folder",
    since="0.2.0",
)
def test_a_workdir_that_is_in_use_is_refused(world, tmp_path):
    with lock_folder(tmp_path):
        message = rf"{tmp_path} is in use by process {os.getpid()} on .*; wait for it to end"
        with pytest.raises(UserError, match=message):
            train(make_config(world), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@situation(
    "Training",
    "a finished run without its checkpoints/, repeated with another export format",
    "refused; the message says how to convert the existing model",
    since="0.2.0",
)
def test_a_finished_run_without_checkpoints_is_not_trained_again(world, tmp_path):
    (tmp_path / "model" / "params").mkdir(parents=True)
    for name in ("run.json", "model/config.json", "train.json"):
        (tmp_path / name).write_text("{}")
    config = make_config(world, export=("gve_jax", "hf"))
    with pytest.raises(
        UserError, match="holds a run, but not its checkpoints/: restore it"
    ) as error:
        train(config, tmp_path)
    assert f"convert --input {tmp_path}/model --to hf" in str(error.value)
    assert (tmp_path / "run.json").read_text() == "{}"


@pytest.mark.slow
@situation(
    "Training",
    "another seed or model in the workdir of a run",
    "refused with the field and both values",
    since="0.1.0",
)
def test_another_configuration_in_the_workdir_is_refused_with_its_field(world, finished, tmp_path):
    code, _, err = run_cli(world, finished, "--config.data.workers=1", "--config.seed=43")
    assert code == 2 and "another configuration" in err and "Traceback" not in err
    workdir = tmp_path / "other"
    run_cli(world, workdir, kill_at=3)
    code, _, err = run_cli(world, workdir, "--config.model.text.num_hidden_layers=3")
    assert code == 2 and "config.model.text.num_hidden_layers" in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "argument, named",
    [
        ("--config.optimizer.lr=1", "--config.optimizer.lr: unknown field"),
        ("--config.loss.temprature=1", "did you mean config.loss.temperature?"),
        ("--config.steps=many", "steps"),
        ("--config=configs/none.py", "configs/none.py"),
        ("--config=configs/quickstart.py:fast", "fast"),
        ("--config.data.pairs=nowhere", "nowhere"),
        ("--config.data.tokenizer=nowhere.json", "nowhere.json"),
        ("--config.mesh.fsdp=3", "fsdp=3"),
        ("--config.batch_size=9999", "batch_size"),
        ("--config.model.text.num_key_value_heads=3", "num_attention_heads"),
        ("--config.pyramid.stages=0", "pyramid.stages"),
        ("--config.limits.seconds=0", "limits.seconds"),
        ("--config.limits.second=5", "second"),
        ("--config.data.siblings.T2V_camera=3", "data.siblings.T2V_camera"),
        ("--confg=x", "confg"),
        ("extra", "extra"),
    ],
)
def test_an_error_is_one_line_that_names_it(world, tmp_path, argument, named, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("GVE_JAX_HOSTS", "1")
    monkeypatch.setattr(sys, "argv", ["train", *arguments_of(world, tmp_path / "w"), argument])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert named in err and len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_prober_with_the_runs_initial_weights_measures_the_same_alignment(
    world, finished, tmp_path
):
    run = Experiment(make_config(world, pyramid__prober=str(finished / "initial")), tmp_path)
    cosines = run.external_cosines(Quarantine(tmp_path / "quarantine.jsonl", 0.0))
    expected = json.loads((finished / "curriculum.json").read_text())["stages"][0]["R"]
    assert {name: mean_alignment(values) for name, values in cosines.items()} == pytest.approx(
        expected, abs=1e-5
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(finished / "initial", damaged)
    fields = json.loads((damaged / "config.json").read_text())
    fields["model"]["text"]["hidden_size"] *= 2
    (damaged / "config.json").write_text(json.dumps(fields))
    run = Experiment(make_config(world, pyramid__prober=str(damaged)), tmp_path)
    with pytest.raises(UserError, match="pyramid.prober: ") as error:
        run.external_cosines(Quarantine(tmp_path / "quarantine.jsonl", 0.0))
    assert "\n" not in str(error.value)


def test_batch_sizes_and_repeats_follow_the_configuration(world, tmp_path):
    fields = {
        "data__batch_sizes": (("^T2V_(crossing|camera)$", 16),),
        "data__repeat": (("^I2I$", 1),),
        "data__sources": ("I2I", "T2V_c.*"),
        "pyramid__stages": 1,
        "pyramid__schedule": "uniform",
    }
    run = Experiment(make_config(world, **fields), tmp_path)
    record = run.stage_record(0, dict.fromkeys(run.sources.sizes, 0.5), [])
    assert record["batches"] == {"I2I": 1, "T2V_camera": 3, "T2V_crossing": 2}  # not 2, 2, 2
    sizes = [(b["source"], len(b["valid"])) for b in run.stream([record], 0, 6)]
    assert sorted(sizes) == [("I2I", 8)] + 3 * [("T2V_camera", 16)] + 2 * [("T2V_crossing", 16)]
    assert [(b["source"], len(b["valid"])) for b in run.stream([record], 4, 6)] == sizes[4:]


def damage(monkeypatch, ids):
    """Truncates the positive videos of some pairs, as a broken download would."""
    read = PairSources.read

    def broken(self, source, indices):
        pairs = read(self, source, indices)
        for pair in pairs:
            item = pair["positive"]
            if ids(pair["id"]) and item.video is not None:
                object.__setattr__(item, "video", item.video[: len(item.video) // 2])
        return pairs

    monkeypatch.setattr(PairSources, "read", broken)


@pytest.mark.slow
@situation(
    "Training",
    "a damaged video among the pairs",
    "that pair is left out and recorded in quarantine.jsonl",
    since="0.1.0",
)
def test_a_corrupt_video_is_quarantined_and_skipped(world, monkeypatch, tmp_path):
    damage(monkeypatch, lambda id: id.endswith("000003"))
    train(make_config(world, data__max_bad_share=0.2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines and all("000003" in line["id"] and line["reason"] for line in lines)
    assert len({line["id"] for line in lines}) == len(lines)
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path).values())


SPELLS = {"000001": b"HANG", "000002": b"CRASH", "000003": b"BOMB"}
REASONS = {"000001": "limits.seconds", "000002": "SIGSEGV", "000003": "limits.memory"}


@pytest.mark.slow
@situation(
    "Training",
    "files that hang, crash or exhaust the decoder",
    "each such pair is left out; the run continues",
    since="0.1.0",
)
def test_media_that_attack_the_decoder_are_left_out(world, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sandbox, "WORKER", "tests.media.hostile")
    spoiled, read = {}, PairSources.read
    # A busy machine reports a crash late, which must not look like a hang: the time limit is
    # generous, and only a few pairs hang.
    hang = 3

    def attacking(self, source, indices):
        nonlocal hang
        pairs = read(self, source, indices)
        for pair in pairs:
            item, number = pair["positive"], pair["id"][-6:]
            if number in SPELLS and item.video is not None:
                if SPELLS[number] == b"HANG" and (hang := hang - 1) < 0:
                    continue
                spoiled[f"{pair['id']}/positive"] = number
                object.__setattr__(item, "video", SPELLS[number])
        return pairs

    monkeypatch.setattr(PairSources, "read", attacking)
    train(make_config(world, data__max_bad_share=0.9, limits__seconds=4.0), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    # Spoiled pairs in batches that were read ahead, but not trained on, are not recorded.
    numbers = [spoiled[line["id"].partition(":")[2]] for line in lines]
    assert {SPELLS[number] for number in numbers} == set(SPELLS.values())
    for number, line in zip(numbers, lines, strict=True):
        assert REASONS[number] in line["reason"]
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path).values())
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f"{len(lines)} of " in printed and "not decoded in N seconds (limits.seconds)" in printed


def test_limits_may_change_on_resume(world, tmp_path):
    runs = [Experiment(make_config(world, limits__seconds=s), tmp_path) for s in (10.0, 20.0)]
    assert runs[0].fingerprint == runs[1].fingerprint
    assert [run.preprocess.limits.seconds for run in runs] == [10.0, 20.0]
    with pytest.raises(UserError, match="limits.memory must be above 0"):
        Experiment(make_config(world, limits__memory=0), tmp_path)


@situation(
    "Training",
    "more damaged media than data.max_bad_share",
    "the run stops in one line",
    since="0.1.0",
)
def test_too_many_corrupt_videos_stop_the_run(world, monkeypatch, tmp_path):
    damage(monkeypatch, lambda id: True)
    with pytest.raises(UserError, match="could not be read, more than the allowed 1.0%"):
        train(make_config(world), tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_batch_named(world, tmp_path):
    config = make_config(world, optimizer__learning_rate=1e30, optimizer__clip_norm=1e30)
    named = r"the loss of step \d is nan: source (\w+), pairs \1#\d:\1-"
    with pytest.raises(UserError, match=named):
        train(config, tmp_path)


@pytest.mark.slow
@situation(
    "Training",
    "the disk of the workdir is full",
    "one line; checkpoints that were saved stay usable",
    since="0.1.0",
)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_an_error_without_a_traceback(world, finished, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", small])
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        code, _, err = run_cli(world, small)
        assert code == 2 and len(err.strip().splitlines()) >= 1 and "Traceback" not in err
        assert "No space left" in err or "space" in err
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_the_trained_model_is_scored_on_all_sixteen_sets(world, finished, tmp_path):
    """The quickstart's last command, on a model trained for six steps."""
    from evals.uvrb.__main__ import main

    arguments = [
        "--model",
        finished / "model",
        "--baseline",
        finished / "initial",
        "--control",
        "--data",
        world,
        "--output",
        tmp_path,
        "--run",
        finished,
        "--report",
        tmp_path / "report.html",
    ]
    main([str(argument) for argument in arguments])
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["datasets"]) == len(results["untrained"]["datasets"]) == 16
    assert sorted(results["control"]["datasets"]) == ["CMRB", "CRB-T"]
    for name, record in results["datasets"].items():
        # With the small world's corpora of eight documents, R@10 is always 1.
        assert 0 <= record["score"] <= 1 and 0 < record["chance"] <= 1, name
        assert not any(record["quarantined"].values())
    expected = np.mean([record["score"] for record in results["datasets"].values()])
    assert results["averages"]["AVG-D"] == pytest.approx(expected)
    assert (tmp_path / "report.html").stat().st_size > 100_000
