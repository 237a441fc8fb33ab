"""Metric files can be read back and have each step once; progress bars and lines; W&B."""

import io
import json
import logging
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gve_jax.errors import UserError
from gve_jax.running import metrics


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_events(directory: Path) -> list[Event]:
    """All events of a directory; checks the checksums of the records."""

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    events = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            data = content[12 : 12 + size]
            assert struct.unpack("<I", content[8:12]) == (masked(content[:8]),)
            assert struct.unpack("<I", content[12 + size : 16 + size]) == (masked(data),)
            events.append(Event.FromString(data))
            content = content[16 + size :]
    return events


def test_scalars_reach_both_files(tmp_path):
    writers = metrics.open_writers(tmp_path)
    scalars = {
        "loss": jnp.float32(1.5),
        "stage": np.int64(2),
        "task": "T2V_whole",
        "loss/T2T": 0.25,
    }
    metrics.write_all(writers, 10, scalars)
    metrics.write_all(writers, 20, {"loss": 0.5})
    for writer in writers:
        writer.close()

    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert first.pop("time") > 1.7e9
    assert first == {"step": 10, "loss": 1.5, "stage": 2, "task": "T2V_whole", "loss/T2T": 0.25}
    assert isinstance(first["stage"], int)
    assert (second["step"], second["loss"]) == (20, 0.5)

    events = [event for event in read_events(tmp_path / "tensorboard") if event.summary.value]
    read = {(e.step, value.tag): value.simple_value for e in events for value in e.summary.value}
    want = {(10, "loss"): 1.5, (10, "stage"): 2, (10, "loss/T2T"): 0.25, (20, "loss"): 0.5}
    assert read == want
    assert all(event.wall_time > 1.7e9 for event in events)


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writers = metrics.open_writers(tmp_path)
    metrics.write_all(writers, 1, {"loss": 2.0})
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] == 2.0
    assert read_events(tmp_path / "tensorboard")[-1].summary.value[0].simple_value == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, jnp.float32("nan")])
def test_not_finite_is_null_in_json(tmp_path, value):
    writer = metrics.JsonlWriter(tmp_path / "m.jsonl")
    writer.write(1, {"loss": value})
    writer.close()
    assert read_jsonl(tmp_path / "m.jsonl")[0]["loss"] is None


def test_resuming_drops_the_steps_that_will_be_repeated(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(path)
    for step in range(6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 2, "lo')  # cut off by a kill
    with caplog.at_level(logging.WARNING):
        writer = metrics.JsonlWriter(path, first_step=4)
    assert "dropped 1 unreadable line" in caplog.text and str(path) in caplog.text
    for step in (4, 5, 6):
        writer.write(step, {"loss": -1.0})
    writer.close()
    losses = {line["step"]: line["loss"] for line in read_jsonl(path)}
    assert len(read_jsonl(path)) == 7
    assert losses == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: -1.0, 5: -1.0, 6: -1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_fresh_run_drops_all_of_an_earlier_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1}\n')
    metrics.JsonlWriter(path).close()
    assert path.read_text() == ""


def test_tensorboard_gets_the_first_step_of_a_resumed_run(tmp_path):
    metrics.TensorBoardWriter(tmp_path, first_step=40).close()
    starts = [e.step for e in read_events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [40]


def test_a_full_disk_is_named(tmp_path):
    writer = metrics.JsonlWriter(tmp_path / "m.jsonl")
    writer._file.close()
    writer._file = Path("/dev/full").open("w", buffering=1)
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/m.jsonl: No space left on dev"):
        writer.write(1, {"loss": 1.0})
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/m.jsonl: No space left on dev"):
        writer.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/m.jsonl"):
        metrics.JsonlWriter(tmp_path / "file" / "m.jsonl")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/tb"):
        metrics.TensorBoardWriter(tmp_path / "file" / "tb")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    assert metrics.open_writers(tmp_path) == []
    stream = io.StringIO()
    with metrics.Progress(1, stream=stream) as progress:
        progress.update(1, stage=0, loss=1.0, pairs_per_s=1.0, wait_share=0.0, step_s=None)
        progress.note("hello")
    assert stream.getvalue() == "" and not list(tmp_path.iterdir())


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_progress_is_a_line_every_30_seconds(monkeypatch):
    clock, stream = Clock(), io.StringIO()
    monkeypatch.setattr(metrics.time, "monotonic", clock.monotonic)
    with metrics.Progress(200, first_step=100, stream=stream) as progress:
        for step in range(101, 201):
            clock.now += 1.0
            progress.update(
                step, stage=2, loss=1.25, pairs_per_s=31.96, wait_share=0.012, step_s=1.0
            )
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [
        "101/200",
        "131/200",
        "161/200",
        "191/200",
        "200/200",
    ]
    want = "step 131/200  stage 2  loss 1.2500  32.0 pairs/s  waiting 1.2%  1:09 left"
    assert lines[1] == want
    assert lines[-1].endswith("0:00 left")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    stream = io.StringIO()
    with metrics.Progress(7300, stream=stream) as progress:
        progress.update(7300, stage=1, loss=0.5, pairs_per_s=8.0, wait_share=0.5, step_s=1.0)
        progress.note("stage 2 begins [sigma 0.4]")
    text = stream.getvalue()
    assert "7300/7300" in text and "━" in text and "waiting 50.0%" in text
    assert "stage 2 begins [sigma 0.4]" in text


def test_clock():
    assert [metrics._clock(s) for s in (0, 59.6, 61, 3600, 36061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]


def test_wandb_gets_the_same_scalars_and_resumes_under_its_id(tmp_path, monkeypatch):
    started, sent = [], []

    def init(**arguments):
        started.append(arguments)
        return SimpleNamespace(
            id="abc", log=lambda scalars, step: sent.append((step, scalars)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for first in (0, 5):
        writers = metrics.open_writers(tmp_path, first_step=first, wandb="gve")
        metrics.write_all(writers, first, {"loss": jnp.float32(1.5), "task": "T2V_whole"})
        writers[-1].close()
    assert [(run["project"], run["id"]) for run in started] == [("gve", None), ("gve", "abc")]
    assert sent == [
        (0, {"loss": 1.5, "task": "T2V_whole"}),
        (5, {"loss": 1.5, "task": "T2V_whole"}),
    ]


def test_a_missing_or_failing_wandb_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="config.wandb needs wandb"):
        metrics.open_writers(tmp_path, wandb="gve")

    def init(**_):
        raise RuntimeError("no key:\nlog in")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match="config.wandb: no key: log in$"):
        metrics.open_writers(tmp_path, wandb="gve")
