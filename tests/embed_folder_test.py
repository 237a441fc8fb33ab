"""What a folder or a list gives to embed: which items, under which ids, and when they changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.entries import read_entries
from gve_jax.media.dataset_paths import text_to_path
from gve_jax.retrieval.vectors import StoredVectors
from tests.conftest import ROOT
from tests.embed_test import Lengths, run, stored, unit, write
from tests.situations import situation


@pytest.fixture
def clips(tmp_path) -> Path:
    """Three clips, of which the fake encoder sees the sizes."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(b"v" * (10 + number))
    return folder


@situation(
    "Embedding",
    "a folder copied from a Mac: `._clip.mp4` beside each clip",
    "only the clips are embedded; the others are counted",
    since="0.2.0",
)
def test_mac_companion_files_are_not_items(clips, tmp_path, capsys):
    for number in range(3):
        (clips / f"._{number}.mp4").write_bytes(b"bad\0\5\x16\7")
    (clips / ".DS_Store").write_bytes(b"x")
    (clips / "@eaDir").mkdir()
    shutil.copy(clips / "0.mp4", clips / "@eaDir")
    run(clips, tmp_path / "out", "--max-bad-share", "0")
    assert list(stored(tmp_path / "out")) == ["0.mp4", "1.mp4", "2.mp4"]
    printed = capsys.readouterr().out
    assert "all of 3 items could be read" in printed
    assert "passed over 5 hidden or system files and folders ('.DS_Store', ...)" in printed


def test_only_hidden_files_are_nothing_to_embed(tmp_path, capsys):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / ".a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="f: nothing to embed"):
        run(tmp_path / "f", tmp_path / "out")
    assert "1 hidden or system file or folder '.a.mp4'" in capsys.readouterr().out


@situation(
    "Embedding",
    "a folder with a link to a folder or a file elsewhere (another disk)",
    "passed over, counted and named; `--follow-links` follows it",
    since="0.3.0",
)
def test_linked_folders_are_embedded_and_never_left_out_in_silence(clips, tmp_path, capsys):
    folder = tmp_path / "f"
    shutil.copytree(clips, folder / "a")
    (folder / "b").symlink_to("a")
    run(folder, tmp_path / "out")
    assert list(stored(tmp_path / "out")) == [f"{ab}/{n}.mp4" for ab in "ab" for n in range(3)]
    (folder / "disk2").symlink_to(clips)
    (folder / "x.mp4").symlink_to(clips / "0.mp4")
    capsys.readouterr()
    assert run(folder, tmp_path / "out").asked == []
    assert (
        "passed over 2 links out of the folder ('disk2', ...); --follow-links follows them"
        in capsys.readouterr().out
    )
    assert len(stored(tmp_path / "out")) == 6
    assert run(folder, tmp_path / "out", "--follow-links").asked == [], "their content is stored"
    assert len(stored(tmp_path / "out")) == 10


def test_a_list_with_links_out_of_its_folder(clips, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "disk2").symlink_to(clips)
    write(folder / "items.jsonl", [{"id": "a", "video": "disk2/1.mp4"}])
    with pytest.raises(UserError, match="items.jsonl:1: video 'disk2/1.mp4' leaves the folder"):
        run(folder / "items.jsonl", tmp_path / "out")
    run(folder / "items.jsonl", tmp_path / "out", "--follow-links")
    assert stored(tmp_path / "out") == {"a": unit(11, 0, 1)}


NAMES = [
    b"caf\xe9.mp4",
    b"caf\\xe9.mp4",
    b"new\nline.mp4",
    b"q'\".mp4",
    b"\xff" * 100 + b".mp4",
    b"%E9 a%20b.mp4",
    b"n" * 251 + b".mp4",
    "\u202eltr 日本.mp4".encode(),
]


@situation(
    "Embedding",
    "any file name that the file system allows, in an embedded folder",
    "its id is read back by every command, and repeating embeds nothing",
    since="0.2.0",
)
def test_any_name_is_embedded_and_read_back(tmp_path):
    folder, output = tmp_path / "f", tmp_path / "out"
    folder.mkdir()
    for size, name in enumerate(NAMES, 5):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(b"v" * size)
    with open(os.fsencode(folder) + b"/damag\xe9.mp4", "wb") as file:
        file.write(b"bad")
    run(folder, output)
    vectors = StoredVectors(output)
    sizes = {
        os.fsencode(text_to_path(id)): row for id, row in zip(vectors.ids, vectors[:], strict=True)
    }
    assert sizes.keys() == set(NAMES)
    for size, name in enumerate(NAMES, 5):
        assert sizes[name].tolist() == unit(size, 0, 1)
    assert np.array(vectors.ids).tolist() == vectors.ids, "numpy's strings keep them"
    (line,) = (output / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["id"] == r"damag\xe9.mp4"
    assert json.loads(line)["path"].endswith(r"/f/damag\xe9.mp4")
    assert run(folder, output).asked == []


def test_folders_whose_own_name_is_not_utf8(clips, tmp_path):
    """The whole command: what it prints, too."""
    source, output = (os.fsencode(tmp_path) + name for name in (b"/in\xe9", b"/out\xe9"))
    shutil.copytree(clips, os.fsdecode(source))
    code = (
        "import sys; from gve_jax.cli import run_cli; from gve_jax.embed import main; "
        "from tests.embed_test import Lengths; run_cli(lambda: main(load=lambda _: Lengths()))"
    )
    command = [sys.executable, "-c", code, "--model", "m", "--input", source, "--output", output]
    for _ in range(2):
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            timeout=300,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert rb"out\udce9: 3 vectors of 3 in 1 shards" in done.stdout
    assert len(StoredVectors(Path(os.fsdecode(output))).ids) == 3


# --- what tells a changed item ---


def frames(folder: Path, *contents: bytes) -> None:
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)


def rewrite_a_frame(root: Path) -> None:
    path = root / "frames" / "1.png"
    before = path.stat()
    path.write_bytes(b"other"[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def add_a_frame(root: Path) -> None:
    (root / "frames" / "2.png").write_bytes(b"third")


def rename_frames(root: Path) -> None:
    (root / "frames" / "1.png").rename(root / "frames" / "9.png")


def point_link_elsewhere(root: Path) -> None:
    (root / "link.mp4").unlink()
    (root / "link.mp4").symlink_to("1.mp4")


def change_what_a_link_leads_to(root: Path) -> None:
    (root / "0.mp4").write_bytes(b"longer than before")


def change_text(root: Path) -> None:
    path = root / "items.jsonl"
    path.write_text(path.read_text().replace("some text", "same text"))


def change_option(root: Path) -> None:
    path = root / "items.jsonl"
    path.write_text(path.read_text().replace('"fps": 1.0', '"fps": 2.0'))


@situation(
    "Embedding",
    "a frame is rewritten in its folder, a link leads elsewhere, a text changes"
    " after they were embedded",
    "it alone is embedded again",
    since="0.3.0",
)
@pytest.mark.parametrize(
    "change, id",
    [
        (rewrite_a_frame, "f"),
        (add_a_frame, "f"),
        (rename_frames, "f"),
        (point_link_elsewhere, "l"),
        (change_what_a_link_leads_to, "l"),
        (change_text, "t"),
        (change_option, "f"),
    ],
)
def test_an_item_that_changed_is_embedded_again(tmp_path, change, id):
    root, output = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    frames(root / "frames", b"first", b"secon")
    for number in range(2):
        (root / f"{number}.mp4").write_bytes(b"v" * 10)
        os.utime(root / f"{number}.mp4", ns=(10**18, 10**18))  # as an archive leaves them
    (root / "link.mp4").symlink_to("0.mp4")
    write(
        root / "items.jsonl",
        [
            {"id": "t", "text": "some text"},
            {"id": "l", "video": "link.mp4"},
            {"id": "f", "video": "frames", "fps": 1.0},
        ],
    )
    asked, model = [], Lengths()

    def encode_valid(inputs, ids, **_):
        asked.extend(ids)
        return np.eye(3, dtype=np.float32)[: len(ids)], np.ones(len(ids), bool)

    model.encode_valid = encode_valid
    run(root / "items.jsonl", output, model=model)
    (root / "frames" / ".DS_Store").write_bytes(b"Finder was here")
    run(root / "items.jsonl", output, model=model)
    assert asked == ["t", "l", "f"]
    change(root)
    run(root / "items.jsonl", output, model=model)
    # The other clip has the same content: only the link changes.
    again = [] if change is point_link_elsewhere else [id]
    assert asked == ["t", "l", "f", *again]
    assert sorted(stored(output)) == ["f", "l", "t"]


# --- lists ---


@situation(
    "Embedding",
    "a list as Windows tools write it: a byte order mark, or UTF-16",
    "refused; the message says which, and how to save the file",
    since="0.2.0",
)
@situation(
    "Embedding",
    "a line of a list with a duplicate key",
    "refused with the line and the key",
    since="0.2.0",
)
@situation(
    "Embedding",
    "a list that is a Git LFS pointer",
    "refused as a pointer, with `git lfs pull`",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "text, message",
    [
        (
            b'\xef\xbb\xbf{"id": "a", "text": "x"}\n',
            r"items.jsonl:1: begins with a byte order mark",
        ),
        ('{"id": "a", "text": "x"}'.encode("utf-16"), r"items.jsonl:1: UTF-16 .byte order mark."),
        (
            b'{"id": "a", "text": "x", "text": "y"}',
            "items.jsonl:1: not valid JSON: duplicate key 'text'",
        ),
        (b'{"id": "a", "text": "x"}\n\xef\xbb\xbf{"id": "b"}', "items.jsonl:2: begins with a byte"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer.*lfs pull",
        ),
        (b'{"id": NaN, "text": "x"}', "items.jsonl:1: nan is not an id"),
        (b'{"id": "a", "text": NaN}', "items.jsonl:1: text must be a text, not float"),
        (b'{"id": "a", "text": "x", "fps": Infinity}', "items.jsonl:1: fps must be .*not inf"),
        (
            b'{"id": "a", "text": "x", "num_frames": NaN}',
            "items.jsonl:1: num_frames must be .*not nan",
        ),
        (b"\r\n \t\r\n", "nothing to embed"),
        (b'{"id": "a",\r\n"text": "x"}', "items.jsonl:1: not valid JSON"),
    ],
)
def test_errors_in_a_list_are_named(tmp_path, text, message):
    (tmp_path / "items.jsonl").write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / "items.jsonl", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_line_ends_of_windows_and_empty_lines_are_allowed(tmp_path):
    text = b'\r\n{"id": "a", "text": "x"}\r\n\r\n   \n{"id": 2, "text": "y\xc3\xa9"}'
    (tmp_path / "items.jsonl").write_bytes(text)
    entries = read_entries(tmp_path / "items.jsonl")
    assert [(entry.id, entry.item.text) for entry in entries] == [("a", "x"), ("2", "yé")]


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("gve_jax.storage.files.LONGEST_LINE", 1000)
    (tmp_path / "items.jsonl").write_bytes(b'{"id": "a", "text": "x"}\n' + b"x" * 5000)
    with pytest.raises(UserError, match="items.jsonl:2: the line is longer than 1000 bytes"):
        read_entries(tmp_path / "items.jsonl")


def test_equal_files_are_items_of_their_own(tmp_path, capsys):
    """Failed downloads are often equal: none of them may hide behind another."""
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(b"bad page of an error")
    (tmp_path / "good.mp4").write_bytes(b"v")
    run(tmp_path, tmp_path / "out", "--max-bad-share", "1")
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"{n}.mp4" for n in range(4)]
    assert "4 of 5 items (80.00%) could not be read: 4 x bad" in capsys.readouterr().out
