"""Folders as inputs of importers and of synthesis: the same walk, and one command at a time."""

import json
import os
from pathlib import Path

import pytest

from data.pairs.builder import run_import
from data.pairs.rows import input_files, read_rows
from data.shapes.generate import generate
from data.uvrd.part import Parts
from data.uvrd.source import read_entries, stamps
from gve_jax.errors import UserError
from gve_jax.storage.locks import lock_for_process, lock_scratch
from gve_jax.streams.rows import Reject
from tests.situations import situation
from tests.storage.files_test import POINTER

ROW = json.dumps({"query": "q", "positive": "p"}) + "\n"


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROW)
    return folder


@situation(
    "Training data",
    "a folder of JSONL or Parquet files with hidden and system files, and linked folders",
    "hidden and system files are passed over and counted, links followed",
    since="0.2.0",
)
def test_an_import_walks_folders_as_embed_does(tmp_path):
    folder = make(
        tmp_path / "f",
        "a.jsonl",
        "sub/b.jsonl",
        "._a.jsonl",
        ".Trash-1/c.jsonl",
        "@eaDir/d.jsonl",
        "notes.txt",
    )
    (folder / "more").symlink_to("sub")
    (folder / "sub" / "up").symlink_to("..")
    reports = []
    found = [path.relative_to(folder).as_posix() for path in input_files(folder, reports.append)]
    assert found == ["a.jsonl", "more/b.jsonl", "sub/b.jsonl"]
    assert reports == [
        f"{folder}: passed over 3 hidden or system files and folders ('.Trash-1', "
        "...), 2 links to folders that they are in ('more/up', ...)"
    ]
    (folder / "disk").symlink_to(make(tmp_path / "outside", "x.jsonl"))
    with pytest.raises(UserError, match="'disk' leaves the folder: it is a link to"):
        input_files(folder)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_that_are_a_git_lfs_pointer_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name}: is a Git LFS pointer.*git lfs pull"):
        list(read_rows(tmp_path / name))


@situation(
    "Training data",
    "imported rows with a byte order mark, or with a duplicate key",
    "the mark is refused by file and line; a row with a duplicate key is "
    "rejected, and the key is named",
    since="0.2.0",
)
def test_a_byte_order_mark_and_a_duplicate_key_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ROW.encode())
    with pytest.raises(UserError, match="rows.jsonl:1: begins with a byte order mark"):
        list(read_rows(path))
    path.write_text(ROW + '{"query": "a", "query": "b", "positive": "p"}\n')
    (_, row), (place, reject) = read_rows(path)
    assert row == json.loads(ROW) and place == f"{path}:2"
    assert isinstance(reject, Reject) and "duplicate key 'query'" in reject.detail


def test_synthesis_walks_folders_as_embed_does(tmp_path, capsys):
    folder = make(
        tmp_path / "f", "b/1.mp4", "a.mp4", "._a.mp4", "@eaDir/a.mp4", "._x.jsonl", "notes.txt"
    )
    (folder / "more").symlink_to("b")
    (folder / "gone.mp4").symlink_to("nothing")
    with open(os.fsencode(folder) + b"/caf\xe9.mp4", "wb") as file:
        file.write(b"v")
    assert [entry.id for entry in read_entries(folder)] == [
        "a.mp4",
        r"caf\xe9.mp4",
        "gone.mp4",
        "b/1.mp4",
        "more/1.mp4",
    ]
    before = stamps(folder)
    assert "passed over 3 hidden or system files" in capsys.readouterr().out
    (folder / "b" / "1.mp4").write_bytes(b"another")
    assert stamps(folder) != before
    (folder / "disk.mp4").symlink_to(make(tmp_path / "outside", "x.mp4") / "x.mp4")
    with pytest.raises(UserError, match="'disk.mp4' leaves the folder"):
        stamps(folder)


def test_a_part_that_may_be_readable_now_is_made_again(tmp_path):
    parts = Parts(tmp_path)
    for number, line in enumerate(({"id": "a", "retry": True}, {"id": "b"}, None)):
        parts.path(number).mkdir()
        text = json.dumps({"quarantined": [line] if line else []})
        (parts.path(number) / "part.json").write_text(text)
    parts.remove_retryable()
    assert [parts.is_done(number) for number in range(3)] == [False, True, True]


@situation(
    "Training data",
    "two imports, or two generations, into one output at the same time",
    "the second is refused and names the process that holds it",
    since="0.2.0",
)
def test_two_commands_do_not_build_one_output(tmp_path):
    rows = make(tmp_path, "rows.jsonl") / "rows.jsonl"
    for output, build in (
        (tmp_path / "out", lambda: run_import(tmp_path / "out", [f"T2T_x={rows}"], "pair")),
        (tmp_path / "world", lambda: generate(tmp_path / "world", 0, 0.001)),
    ):
        building = output.with_name(output.name + ".building")
        with lock_scratch(building):
            (building / "first").write_text("of the first command")
            with pytest.raises(UserError, match=f"{building.name} is in use by process"):
                build()
            assert (building / "first").exists() and not output.exists()
        assert not building.exists()
    with lock_for_process(tmp_path / "w"), pytest.raises(UserError, match="in use"):
        with lock_for_process(tmp_path / "w"):
            pass


def test_a_scratch_folder_is_empty_and_its_lock_survives_its_removal(tmp_path):
    folder = tmp_path / "x.building"
    make(folder, "old/a", "b")  # what a killed command left
    (folder / "link").symlink_to("old")
    with lock_scratch(folder):
        assert os.listdir(folder) == [".lock"]
    assert not folder.exists()
