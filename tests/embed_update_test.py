"""An output that is brought up to date: a change costs itself alone, a kill loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gve_jax
from gve_jax.embed import main
from gve_jax.errors import UserError
from gve_jax.retrieval import shards
from gve_jax.storage.files import read_records
from tests.conftest import ROOT
from tests.embed_test import Lengths, run, stored, unit, write
from tests.situations import situation


@pytest.fixture
def clips(tmp_path) -> Path:
    """Six clips, of which the fake encoder sees the sizes."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.mp4").write_bytes(b"v" * (10 + number))
    return folder


def check(folder: Path, output: Path) -> None:
    """Each clip has one row, that of its size; nothing else is in the output."""
    expected = {path.name: unit(path.stat().st_size, 0, 1) for path in folder.iterdir()}
    assert stored(output) == expected
    names = {
        f"{kind}-{shard['ids'][4:9]}.{end}"
        for shard in manifest(output)["shards"]
        for kind, end in (("ids", "jsonl"), ("vectors", "npy"))
    }
    assert {path.name for path in output.glob("*-*")} == names


def manifest(output: Path) -> dict:
    return json.loads((output / "manifest.json").read_text())


def later(path: Path) -> None:
    """Touches a file: the clock of a file system may be coarse."""
    os.utime(path, ns=(10**18, path.stat().st_mtime_ns + 10**9))


def add(folder: Path) -> None:
    (folder / "05.mp4").write_bytes(b"new" * 20)


def copy(folder: Path) -> None:
    shutil.copy(folder / "5.mp4", folder / "51.mp4")


def remove(folder: Path) -> None:
    (folder / "1.mp4").unlink()


def rename(folder: Path) -> None:
    (folder / "1.mp4").rename(folder / "8.mp4")


def swap(folder: Path) -> None:
    (folder / "1.mp4").rename(folder / "x")
    (folder / "2.mp4").rename(folder / "1.mp4")
    (folder / "x").rename(folder / "2.mp4")


def touch(folder: Path) -> None:
    later(folder / "1.mp4")


def rewrite(folder: Path) -> None:
    (folder / "1.mp4").write_bytes(b"w" * 11)
    later(folder / "1.mp4")


def change_all(folder: Path) -> None:
    """A file is added, one removed, one renamed, one touched, one rewritten."""
    (folder / "6.mp4").write_bytes(b"new" * 20)
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").rename(folder / "8.mp4")
    (folder / "2.mp4").write_bytes(b"w" * 99)
    later(folder / "3.mp4")


@situation(
    "Embedding",
    "files were added, removed, renamed, copied or touched after they were embedded",
    "only new content is embedded; a line counts what is new, gone and changed",
    since="0.3.0",
)
@pytest.mark.parametrize(
    "change, asked, line",
    [
        (add, ["05.mp4"], "1 new, 6 unchanged"),
        (copy, [], "1 new, 6 unchanged"),
        (remove, [], "1 gone, 5 unchanged"),
        (rename, [], "1 new, 1 gone, 5 unchanged"),
        (swap, [], "2 changed, 4 unchanged"),
        (touch, [], "1 changed, 5 unchanged"),
        (rewrite, ["1.mp4"], "1 changed, 5 unchanged"),
        (change_all, ["2.mp4", "6.mp4"], "2 new, 2 gone, 2 changed, 2 unchanged"),
    ],
)
def test_a_change_costs_itself_alone(clips, tmp_path, capsys, change, asked, line):
    output = tmp_path / "out"
    run(clips, output, "--shard-size", "2")
    capsys.readouterr()
    change(clips)
    assert run(clips, output, "--shard-size", "2").asked == asked
    assert f"{output}: {line}\n" in capsys.readouterr().out
    check(clips, output)
    before = {
        path.name: path.stat().st_mtime_ns for path in output.iterdir() if path.name[0] != "."
    }
    assert run(clips, output).asked == []
    assert "unchanged" not in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in output.iterdir() if path.name[0] != "."}
    assert after == before


def test_rows_of_a_list_are_kept_by_content_and_carry_meta(clips, tmp_path):
    records = [
        {"id": "a", "text": "some", "meta": {"title": "A"}},
        {"id": "b", "video": "1.mp4", "meta": [1]},
        {"id": "c", "video": "2.mp4", "num_frames": 4},
    ]
    source, output = clips / "items.jsonl", tmp_path / "out"
    write(source, records)
    assert run(source, output).asked == ["a", "b", "c"]
    vectors = gve_jax.load_vectors(str(output))
    assert (vectors.ids, vectors.metas) == (["a", "b", "c"], [{"title": "A"}, [1], None])
    records[0]["meta"] = "other"
    records[1]["id"] = "new name"
    records[2]["num_frames"] = 6
    write(source, records)
    assert run(source, output).asked == ["c"]
    vectors = gve_jax.load_vectors(output)
    assert dict(zip(vectors.ids, vectors.metas, strict=True)) == {
        "a": "other",
        "new name": [1],
        "c": None,
    }
    np.testing.assert_array_equal(vectors[-1], vectors[:][2])
    np.testing.assert_array_equal(np.asarray(vectors), vectors[[0, 1, 2]])
    with pytest.raises(IndexError, match="rows are 0 to 2"):
        vectors[3]


@situation(
    "Embedding",
    "the input of an output is mistaken: most of what was embedded is not in it",
    "refused before anything is dropped; --allow-removal drops it",
    since="0.3.0",
)
def test_another_folder_does_not_empty_an_output(clips, tmp_path):
    output, other = tmp_path / "out", tmp_path / "other"
    run(clips, output)
    other.mkdir()
    shutil.copy(clips / "0.mp4", other / "a.mp4")
    with pytest.raises(UserError, match="6 of its 6 items are not in the input.*--allow-removal"):
        run(other, output)
    check(clips, output)
    assert run(other, output, "--allow-removal").asked == []
    check(other, output)


def test_many_small_shards_are_merged(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SMALL", 2)
    output = tmp_path / "out"
    run(clips, output, "--shard-size", "3")
    for number in range(6, 10):
        (clips / f"{number}.mp4").write_bytes(b"v" * (10 + number))
        assert run(clips, output, "--shard-size", "3").asked == [f"{number}.mp4"]
        check(clips, output)
    counts = [shard["count"] for shard in manifest(output)["shards"]]
    assert sorted(counts) == [1, 3, 3, 3]


def test_rows_that_a_kill_left_twice_count_once(clips, tmp_path):
    output = tmp_path / "out"
    run(clips, output, "--shard-size", "3")
    for name in ("ids-00000.jsonl", "vectors-00000.npy"):  # moved, but not yet removed
        shutil.copy(output / name, output / name.replace("00000", "00007"))
    assert run(clips, output).asked == []
    check(clips, output)


def test_a_stop_at_the_share_keeps_the_rows_and_names_the_reason(clips, tmp_path):
    (clips / "3.mp4").write_bytes(b"bad")
    output = tmp_path / "out"
    with pytest.raises(UserError, match="1 of 6 items .* allowed 10.0%: 1 x bad; see .*quarantine"):
        run(clips, output, "--max-bad-share", "0.1")
    (clips / "3.mp4").unlink()
    assert run(clips, output, "--max-bad-share", "0.1").asked == []
    check(clips, output)


def test_a_file_that_changes_while_it_is_embedded_is_embedded_again(clips, tmp_path):
    output, model = tmp_path / "out", Lengths()
    encode_valid = model.encode_valid

    def change_first(inputs, ids, **options):
        (clips / "2.mp4").write_bytes(b"w" * 50)
        return encode_valid(inputs, ids, **options)

    model.encode_valid = change_first
    run(clips, output, model=model)
    assert run(clips, output).asked == ["2.mp4"]
    check(clips, output)


# --- SIGKILL at each change of the file system ---


def run_until(operation: int, source: Path, output: Path, log: Path) -> bool:
    """Runs the command in a forked process, killed before its `operation`-th renaming or removal of
    a file; returns whether it ended before that."""
    if not (child := os.fork()):
        count = 0

        def counted(function):
            def call(*arguments, **options):
                nonlocal count
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return function(*arguments, **options)

            return call

        os.replace, os.unlink = counted(os.replace), counted(os.unlink)
        model = Lengths()
        run(source, output, "--shard-size", "2", model=model)
        log.write_text(json.dumps(model.asked))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or not status, status
    return not os.WIFSIGNALED(status)


def records(output: Path) -> dict[str, str]:
    """The content of each id; of a duplicate, that of its last shard."""
    return {
        record["id"]: record["content"]
        for path in output.glob("ids-*.jsonl")
        for _, record in read_records(path)
    }


def kill_everywhere(root: Path, step: int) -> None:
    """Kills an update at every `step`-th operation, each time from the same output."""
    source, log = root / "clips", root / "asked.json"
    before = json.loads((root / "before.json").read_text())
    is_complete, operation = False, 0
    while not is_complete:
        output = root / f"out-{operation}"
        shutil.copytree(root / "old", output)
        is_complete = run_until(operation, source, output, log)
        now = stored(output)
        if now != before:  # readers see the old rows or the new ones
            check_rows(source, now)
        sealed = set(records(output).values())
        assert run_until(10**9, source, output, log)
        check(source, output)
        contents, again = records(output), json.loads(log.read_text())
        assert sealed.isdisjoint(contents[id] for id in again)  # nothing is embedded twice
        operation += step
    assert operation > 8


def check_rows(folder: Path, rows: dict) -> None:
    assert rows == {path.name: unit(path.stat().st_size, 0, 1) for path in folder.iterdir()}


@situation(
    "Embedding",
    "an update killed (SIGKILL) at any time, then repeated",
    "vectors of before can be read until the new ones are complete; nothing is lost or embedded"
    " twice",
    since="0.3.0",
)
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_an_update_is_killed_anywhere(clips, tmp_path, step):
    run(clips, tmp_path / "old", "--shard-size", "2")
    (tmp_path / "before.json").write_text(json.dumps(stored(tmp_path / "old")))
    change_all(clips)
    # A process of its own: one that runs JAX must not be forked.
    code = f"from tests.embed_update_test import *; kill_everywhere(Path(sys.argv[1]), {step})"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_a_line(clips, tmp_path, number, status):
    code = (
        "import os, sys; from gve_jax.cli import run_cli; from gve_jax.embed import main\n"
        "from tests.embed_test import Lengths\nclass Slow(Lengths):\n"
        "    def encode_valid(self, *arguments, **options):\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "run_cli(lambda: main(load=lambda _: Slow()), resumes=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--model", "m", "--input", clips, "--output", tmp_path / "o"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    assert "embedding: 0 of 6 (0%)" in done.stderr
    assert done.stderr.endswith("repeat the command to resume\n")


def test_frames_of_the_command_line_are_those_of_the_model(clips, tmp_path):
    class Framed(Lengths):
        def with_inputs(self, **changes):
            model = Framed()
            model.fingerprint = {"weights": "a", "inputs": changes}
            return model

    run(clips, tmp_path / "out", "--fps", "2", "--max-frames", "16", model=Framed())
    assert manifest(tmp_path / "out")["fingerprint"]["inputs"] == {"fps": 2.0, "max_frames": 16}
    with pytest.raises(UserError, match="--num-frames and --fps exclude each other"):
        main(["--model", "m", "--input", "i", "--output", "o", "--num-frames", "8", "--fps", "1"])
