"""What a run appends to reaches the bucket, and nothing that a checkpoint counts on is lost."""

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
    with Records(tmp_path) as kept:
        assert kept.folder == tmp_path
        append(kept.folder / "metrics.jsonl", "1\n")
        kept.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_files_go_to_the_bucket_when_they_have_changed(gcs):
    gcs.make("records")
    for name in ("metrics.jsonl", "quarantine.jsonl", "tensorboard/old", "run.json"):
        gcs.put("records", f"run/{name}", b"before\n")
    start = len(gcs.journal)
    with Records(as_path("gs://records/run")) as kept:
        left = sorted(path.name for path in kept.folder.iterdir())
        assert left == ["metrics.jsonl", "quarantine.jsonl"]  # what a repeated run goes on with
        append(kept.folder / "metrics.jsonl", "after\n")
        append(kept.folder / "tensorboard" / "new", "event")
        (kept.folder / "link").symlink_to("metrics.jsonl")
        kept.flush()
        assert gcs.read("records", "run/metrics.jsonl") == b"before\nafter\n"
        kept.flush()
        append(kept.folder / "tensorboard" / "new", "s")
        folder = kept.folder
    written = [write.name for write in gcs.journal[start:]]
    assert written == ["run/metrics.jsonl", "run/tensorboard/new", "run/tensorboard/new"]
    assert gcs.read("records", "run/tensorboard/new") == b"events"
    assert gcs.read("records", "run/tensorboard/old") == b"before\n"
    assert not folder.exists()


def test_lines_go_behind_the_run_as_well(gcs, monkeypatch):
    gcs.make("behind")
    copied, flush = threading.Event(), Records.flush

    def told(self):
        flush(self)
        copied.set()

    monkeypatch.setattr(Records, "flush", told)
    with Records(as_path("gs://behind/run"), every_s=0.01) as kept:
        append(kept.folder / "metrics.jsonl", "1\n")
        copied.clear()
        assert copied.wait(60)  # of a copy that may have begun before the line
        copied.clear()
        assert copied.wait(60)
        assert gcs.read("behind", "run/metrics.jsonl") == b"1\n"


def test_what_ends_the_run_does_not_end_its_records(gcs):
    gcs.make("ends")
    with pytest.raises(UserError, match="the loss is nan"):
        with Records(as_path("gs://ends/run")) as kept:
            append(kept.folder / "metrics.jsonl", "1\n")
            raise UserError("the loss is nan")
    assert gcs.read("ends", "run/metrics.jsonl") == b"1\n"


def test_a_bucket_that_refuses_stops_the_run_and_the_lines_are_kept(gcs, caplog):
    gcs.make("shut")
    with pytest.raises(UserError, match=r"cannot write gs://shut/run/metrics.jsonl: permission"):
        with caplog.at_level(logging.WARNING):
            with Records(as_path("gs://shut/run")) as kept:
                append(kept.folder / "metrics.jsonl", "1\n")
                gcs.read_only.add("shut")
                kept.flush()
    assert f"records are left in {kept.folder}" in caplog.text
    assert (kept.folder / "metrics.jsonl").read_text() == "1\n"


def test_other_hosts_read_and_write_nothing(gcs, monkeypatch):
    gcs.make("hosts")
    gcs.put("hosts", "run/quarantine.jsonl", b"before\n")
    monkeypatch.setattr(records.jax, "process_index", lambda: 1)
    start = len(gcs.journal)
    with Records(as_path("gs://hosts/run")) as kept:
        assert (kept.folder / "quarantine.jsonl").read_text() == "before\n"
        append(kept.folder / "quarantine.jsonl", "1\n")
        kept.flush()
    assert len(gcs.journal) == start
