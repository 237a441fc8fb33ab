"""Repeating `embed`: what failed and may be readable now is tried again, and counts agree."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gve_jax.distributed import work
from gve_jax.errors import UserError
from gve_jax.retrieval.vectors import StoredVectors
from gve_jax.storage.files import read_records
from tests.conftest import ROOT
from tests.embed_test import Lengths, contents, run, stored, unit, write
from tests.situations import situation


class Loaded(Lengths):
    """On a machine under load: files that begin with `slow` take too long. What is missing is, and
    `bad` is damaged."""

    def __init__(self, loaded=True, **options):
        super().__init__(**options)
        self.loaded = loaded

    def encode_valid(self, inputs, ids, quarantine, prompt=None, batch_size=32):
        self.asked += ids
        rows, valid = [], []
        for item, id in zip(inputs, ids, strict=True):
            path = Path(item.video)
            data = path.read_bytes() if path.exists() else None
            reason, retry = None, True
            if data is None:
                reason = "no such file"
            elif data.startswith(b"slow") and self.loaded:
                reason = "not decoded in 60 seconds (limits.seconds)"
            elif data.startswith(b"bad"):
                reason, retry = "damaged", False
            if reason:
                quarantine.record(id, str(path), f"{path}: {reason}", 0.1, retry)
            else:
                rows.append([len(data), 0, 1.0])
            valid.append(reason is None)
        rows = np.array(rows, np.float32).reshape(-1, 3)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.array(valid, bool)


FILES = {
    "a": b"v" * 10,
    "b": b"slow" + b"v" * 7,
    "c": b"bad",
    "d": b"v" * 13,
    "e": None,
    "f": b"slow" + b"v" * 11,
    "g": b"slow" + b"v" * 12,
}
SIZES = {id: len(data) for id, data in FILES.items() if data and not data.startswith(b"bad")}


@pytest.fixture
def source(tmp_path) -> Path:
    """A list of seven videos: two plain, three slow ones, one damaged, one missing."""
    root = tmp_path / "set"
    root.mkdir()
    for name, data in FILES.items():
        if data is not None:
            (root / f"{name}.mp4").write_bytes(data)
    write(root / "items.jsonl", [{"id": id, "video": f"{id}.mp4"} for id in FILES])
    return root / "items.jsonl"


def embed(source: Path, output: Path, *options: str, loaded: bool = False) -> list[str]:
    model = Loaded(loaded)
    run(source, output, "--shard-size", "3", "--max-bad-share", "1", *options, model=model)
    return model.asked


def check_counts(output: Path) -> list[str]:
    """The ids in the quarantine, which are those without a vector."""
    manifest = json.loads((output / "manifest.json").read_text())
    ids = [record["id"] for _, record in read_records(output / "quarantine.jsonl")]
    assert manifest["quarantined"] == len(ids) == manifest["input"]["items"] - len(stored(output))
    assert not set(ids) & set(stored(output))
    return sorted(ids)


@situation(
    "Embedding",
    "files timed out on a busy machine, and the command is repeated later",
    "they are embedded, with the vectors of a run that never failed; no other file is read again",
    since="0.2.0",
)
@situation(
    "Embedding",
    "a missing file came back, and the command is repeated",
    "it is embedded into the same output",
    since="0.2.0",
)
@situation(
    "Embedding",
    "a damaged file was replaced, and the command is repeated",
    "it is embedded into the same output",
    since="0.2.0",
)
def test_failures_are_tried_again_and_nothing_else(source, tmp_path, capsys):
    output = tmp_path / "out"
    assert embed(source, output, loaded=True) == list(FILES)
    assert check_counts(output) == ["b", "c", "e", "f", "g"]
    assert "5 of 7 items" in capsys.readouterr().out
    before = contents(output)
    assert embed(source, output, loaded=True) == ["b", "e", "f", "g"], "still busy"
    assert check_counts(output) == ["b", "c", "e", "f", "g"]
    assert contents(output).keys() == before.keys()
    assert embed(source, output) == ["b", "e", "f", "g"]
    assert check_counts(output) == ["c", "e"]
    assert list(stored(output)) == list(StoredVectors(output).ids)
    assert sorted(stored(output)) == ["a", "b", "d", "f", "g"]
    (source.parent / "e.mp4").write_bytes(b"v" * 14)
    assert embed(source, output) == ["e"]
    assert check_counts(output) == ["c"]
    capsys.readouterr()
    (source.parent / "c.mp4").write_bytes(b"v" * 12)  # it was damaged, and is mended
    assert embed(source, output) == ["c"]
    assert check_counts(output) == []
    assert "all of 7 items could be read" in capsys.readouterr().out
    assert sorted(stored(output)) == list(FILES)
    sizes = SIZES | {"c": 12, "e": 14}
    assert all(stored(output)[id] == unit(size, 0, 1) for id, size in sizes.items())
    assert embed(source, output) == []
    embed(source, tmp_path / "at once")
    assert stored(output) == stored(tmp_path / "at once")


def test_a_lost_quarantine_is_made_again(source, tmp_path):
    embed(source, tmp_path / "out")
    (tmp_path / "out" / "quarantine.jsonl").unlink()
    assert embed(source, tmp_path / "out") == ["c", "e"]
    assert check_counts(tmp_path / "out") == ["c", "e"]


@situation(
    "Embedding",
    "a run stops because too many files cannot be read; they are mended or "
    "allowed, and it is repeated",
    "finished shards are kept, the rest is embedded",
    since="0.2.0",
)
def test_finished_shards_survive_a_stop_at_the_share(source, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(UserError, match="4 of 7 items could not be read, more than the allowed"):
        embed(source, output, "--max-bad-share", "0.5", loaded=True)
    assert (output / "ids-00001.jsonl").exists() and not (output / "manifest.json").exists()
    for _ in range(2):  # however often it is repeated
        with pytest.raises(UserError, match="4 of 7 items could not be read"):
            embed(source, output, "--max-bad-share", "0.5", loaded=True)
    assert embed(source, output, "--max-bad-share", "0.5") == ["b", "e", "f", "g"]
    assert check_counts(output) == ["c", "e"]


def test_permanent_failures_above_the_share_stop_before_the_next_item(source, tmp_path):
    (source.parent / "b.mp4").write_bytes(b"bad")
    output, model = tmp_path / "out", Loaded(False)
    options = "--shard-size", "3", "--max-bad-share", "0.2"
    for _ in range(2):
        with pytest.raises(UserError, match="2 of 7 items could not be read, more than .* 20.0%"):
            run(source, output, *options, model=model)
        assert model.asked == ["a", "b", "c"]
    run(source, output, *options[:2], "--max-bad-share", "0.5", model=model)
    assert model.asked == list(FILES)


def test_the_share_is_of_the_state_and_not_of_the_work(source, tmp_path):
    embed(source, tmp_path / "out")
    for share, count in (("0.2", 2), ("0.2", 2), ("0.1", 1)):  # of what is tried again, too
        with pytest.raises(UserError, match=f"{count} of 7 items could not be read"):
            embed(source, tmp_path / "out", "--max-bad-share", share)


@pytest.mark.parametrize("at", ["vectors-00002.npy", "ids-00002.jsonl", "quarantine.jsonl"])
def test_killed_while_it_tries_again(source, tmp_path, monkeypatch, at):
    output = tmp_path / "out"
    embed(source, output, loaded=True)
    replace = os.replace

    def stop(part, path):
        if Path(path).name == at:
            raise KeyboardInterrupt
        replace(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(source, output)
    embed(source, output)
    assert check_counts(output) == ["c", "e"]
    embed(source, tmp_path / "whole")
    assert stored(output) == stored(tmp_path / "whole")


def test_an_output_of_0_1_is_refused_by_its_format(source, tmp_path):
    output = tmp_path / "out"
    embed(source, output)
    settings = json.loads((output / "settings.json").read_text())
    settings["format"] = "gve_jax vectors 1"
    (output / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="with format = gve_jax vectors 1, now .* 2; choose"):
        embed(source, output)


@situation(
    "Embedding",
    "two commands write into one output",
    "the second is refused and names the process that holds it",
    since="0.2.0",
)
def test_a_second_command_in_one_output_is_refused(source, tmp_path):
    output = tmp_path / "out"
    code = (
        "import sys, time; from gve_jax.embed import main; from tests.embed_test import Lengths\n"
        "def load(name):\n    print('held', flush=True)\n    time.sleep(600)\nmain(load=load)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, "--model", "m", "--input", source, "--output", output],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"out is in use by process {holder.pid} on "):
            embed(source, output)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert embed(source, output) == list(FILES)


def on_host(source: str, output: str, loaded: list[bool]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "SHARED_S", 1)
        return embed(Path(source), Path(output), loaded=loaded[jax.process_index()])


def test_two_hosts_try_again_together(two_hosts, source, tmp_path):
    output = tmp_path / "out"
    on = "tests.embed_retry_test:on_host"
    first, second = two_hosts.run(on, str(source), str(output), [True, True])
    assert sorted(first + second) == list(FILES)
    assert check_counts(output) == ["b", "c", "e", "f", "g"]
    again = two_hosts.run(on, str(source), str(output), [True, False])
    assert sorted(sum(again, [])) == ["b", "e", "f", "g"] and all(again)
    lost = check_counts(output)
    assert {"c", "e"} < set(lost) < {"b", "c", "e", "f", "g"}, "host 1 had time"
    embed(source, output)
    assert check_counts(output) == ["c", "e"]
    assert all(stored(output)[id] == unit(size, 0, 1) for id, size in SIZES.items())
