"""Files to which a run appends are copied to GCS, and are complete at each checkpoint."""

import logging
import threading
from pathlib import Path

import pytest

from gve_jax.errors import UserError
from gve_jax.running import records
from gve_jax.running.records import Records
from gve_jax.storage.filesystem import as_path


def append(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "a") as file:
        file.write(text)


def test_a_local_workdir_is_written_in_place(tmp_path):
    with Records(tmp_path) as run:
        assert run.folder == tmp_path
        append(run.folder / "metrics.jsonl", "1\n")
        run.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_changed_files_are_copied(gcs):
    gcs.make("records")
    for name in ("metrics.jsonl", "quarantine.jsonl", "tensorboard/old", "run.json"):
        gcs.put("records", f"run/{name}", b"before\n")
    start = len(gcs.journal)
    with Records(as_path("gs://records/run")) as run:
        names = sorted(path.name for path in run.folder.iterdir())
        assert names == ["metrics.jsonl", "quarantine.jsonl"]  # files that a resumed run continues
        append(run.folder / "metrics.jsonl", "after\n")
        append(run.folder / "tensorboard" / "new", "event")
        (run.folder / "link").symlink_to("metrics.jsonl")
        run.flush()
        assert gcs.read("records", "run/metrics.jsonl") == b"before\nafter\n"
        run.flush()
        append(run.folder / "tensorboard" / "new", "s")
        folder = run.folder
    written = [write.name for write in gcs.journal[start:]]
    assert written == ["run/metrics.jsonl", "run/tensorboard/new", "run/tensorboard/new"]
    assert gcs.read("records", "run/tensorboard/new") == b"events"
    assert gcs.read("records", "run/tensorboard/old") == b"before\n"
    assert not folder.exists()


def test_files_are_copied_in_the_background(gcs, monkeypatch):
    gcs.make("behind")
    copied, flush = threading.Event(), Records.flush

    def notifying(self):
        flush(self)
        copied.set()

    monkeypatch.setattr(Records, "flush", notifying)
    with Records(as_path("gs://behind/run"), every_s=0.01) as run:
        append(run.folder / "metrics.jsonl", "1\n")
        copied.clear()
        assert copied.wait(60)  # this copy may have started before the line was written
        copied.clear()
        assert copied.wait(60)
        assert gcs.read("behind", "run/metrics.jsonl") == b"1\n"


def test_files_are_copied_after_an_error(gcs):
    gcs.make("ends")
    with pytest.raises(UserError, match="the loss is nan"):
        with Records(as_path("gs://ends/run")) as run:
            append(run.folder / "metrics.jsonl", "1\n")
            raise UserError("the loss is nan")
    assert gcs.read("ends", "run/metrics.jsonl") == b"1\n"


def test_a_failed_copy_stops_the_run_and_the_local_files_remain(gcs, caplog):
    gcs.make("shut")
    with pytest.raises(UserError, match=r"cannot write gs://shut/run/metrics.jsonl: permission"):
        with caplog.at_level(logging.WARNING):
            with Records(as_path("gs://shut/run")) as run:
                append(run.folder / "metrics.jsonl", "1\n")
                gcs.read_only.add("shut")
                run.flush()
    assert f"records remain in {run.folder}" in caplog.text
    assert (run.folder / "metrics.jsonl").read_text() == "1\n"


def test_other_hosts_copy_nothing(gcs, monkeypatch):
    gcs.make("hosts")
    gcs.put("hosts", "run/quarantine.jsonl", b"before\n")
    monkeypatch.setattr(records.jax, "process_index", lambda: 1)
    start = len(gcs.journal)
    with Records(as_path("gs://hosts/run")) as run:
        assert (run.folder / "quarantine.jsonl").read_text() == "before\n"
        append(run.folder / "quarantine.jsonl", "1\n")
        run.flush()
    assert len(gcs.journal) == start
