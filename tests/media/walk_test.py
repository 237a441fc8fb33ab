"""The walk through a folder: hidden and system files, links, loops, odd names."""

import os
from pathlib import Path

import pytest

from gve_jax.errors import UserError
from gve_jax.media import walk as walk_module
from gve_jax.media.dataset_paths import path_to_text, text_to_path
from gve_jax.media.walk import list_folder, walk
from tests.situations import situation


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def names(*arguments, **options) -> list[str]:
    return [file.name for file in walk(*arguments, **options).files]


def is_clip(name: str) -> bool:
    return name.endswith(".mp4")


@situation(
    "Embedding",
    "a folder with `.Trash-1000`, `.ipynb_checkpoints`, `@eaDir`, "
    "`__MACOSX`, `#recycle`, `$RECYCLE.BIN` or `lost+found`",
    "passed over and counted, wherever folders are read",
    since="0.2.0",
)
def test_hidden_and_system_files_are_passed_over_and_counted(tmp_path):
    hidden = [
        "._a.mp4",
        ".DS_Store",
        ".Trash-1000/files/a.mp4",
        ".ipynb_checkpoints/a.mp4",
        "@eaDir/a.mp4/SYNO.mp4",
        "sub/@eaDir/a.mp4",
        "__MACOSX/._a.mp4",
        "#recycle/a.mp4",
        "System Volume Information/a.mp4",
        "$RECYCLE.BIN/a.mp4",
        "lost+found/a.mp4",
        "sub/.hidden.mp4",
    ]
    folder = make(tmp_path / "f", "a.mp4", "sub/b.mp4", "notes.txt", *hidden)
    listing = walk(folder, is_clip)
    assert [file.name for file in listing.files] == ["a.mp4", "sub/b.mp4"]
    assert len(listing.hidden) == len(hidden) and listing.others.total() == 1
    assert listing.passed_over() == (
        "passed over 12 hidden or system files and folders ('#recycle', ...)"
    )
    assert walk(make(tmp_path / "g", "a.mp4")).passed_over() == ""
    assert list_folder(folder) == [str(folder / name) for name in ("a.mp4", "notes.txt", "sub")]


def test_a_folder_that_is_hidden_itself_is_walked_when_it_is_named(tmp_path):
    assert names(make(tmp_path / ".cache" / "@eaDir", "a.mp4")) == ["a.mp4"]


def test_the_order_is_that_of_names(tmp_path):
    made = ["a/z.mp4", "a-b.mp4", "a.mp4", "B.mp4", "a/b/c.mp4", "ä.mp4"]
    assert names(make(tmp_path, *made)) == sorted(made)


@situation(
    "Embedding",
    "a folder with links to folders and files inside of it",
    "followed, each under its own name",
    since="0.2.0",
)
def test_links_to_folders_and_files_inside_are_followed(tmp_path):
    folder = make(tmp_path / "f", "real/0.mp4", "real/1.mp4")
    (folder / "more").symlink_to("real", target_is_directory=True)
    (folder / "again").symlink_to(folder / "real", target_is_directory=True)
    (folder / "one.mp4").symlink_to("real/1.mp4")
    (folder / "readme.txt").symlink_to("/etc/hostname")  # nobody wants it
    listing = walk(folder, is_clip)
    found = {file.name: file.path for file in listing.files}
    assert list(found) == [
        "again/0.mp4",
        "again/1.mp4",
        "more/0.mp4",
        "more/1.mp4",
        "one.mp4",
        "real/0.mp4",
        "real/1.mp4",
    ]
    real = os.path.realpath(folder / "real")
    assert found["more/1.mp4"] == found["one.mp4"] == f"{real}/1.mp4"
    (tmp_path / "alias").symlink_to(folder)
    assert names(tmp_path / "alias", is_clip) == list(found)


def test_a_link_to_a_parent_folder_is_skipped_and_counted(tmp_path):
    folder = make(tmp_path / "f", "a/b/0.mp4", "c/1.mp4")
    (folder / "a" / "b" / "up").symlink_to("../..", target_is_directory=True)
    (folder / "self").symlink_to(".", target_is_directory=True)
    (folder / "a" / "c").symlink_to("../c", target_is_directory=True)
    (folder / "c" / "a").symlink_to("../a", target_is_directory=True)
    (folder / "round.mp4").symlink_to("round.mp4")
    listing = walk(folder)
    found = [file.name for file in listing.files]
    assert {"a/b/0.mp4", "c/1.mp4", "a/c/1.mp4", "c/a/b/0.mp4", "round.mp4"} == set(found)
    assert {"a/b/up", "self", "a/c/a", "c/a/c"} <= set(listing.loops)
    assert "links to folders that they are in ('a/b/up', ...)" in listing.passed_over()


def test_links_that_multiply_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(walk_module, "MOST_FOLDERS", 50)
    for one in range(6):
        (tmp_path / str(one)).mkdir()
        for other in range(6):
            (tmp_path / str(one) / f"to{other}").symlink_to(f"../{other}")
    with pytest.raises(UserError, match="more than 50 folders are reached by links"):
        walk(tmp_path)


@pytest.mark.parametrize("link", ["disk2", "a.mp4", "sub/disk2"])
def test_a_link_that_leaves_the_folder_is_refused_by_name(tmp_path, link):
    outside = make(tmp_path / "outside", "0.mp4", "1.mp4")
    folder = make(tmp_path / "f", "real.mp4", "sub/x.mp4")
    target = outside / "0.mp4" if link.endswith("mp4") else outside
    (folder / link).symlink_to(target)
    with pytest.raises(UserError) as refused:
        walk(folder, is_clip)
    assert str(refused.value).startswith(
        f"{folder}: {link!r} leaves the folder: it is a link to {os.path.realpath(target)}; "
    )
    listing = walk(folder, is_clip, skip_leaving=True)
    assert listing.leaving == [link] and len(listing.files) == 2
    found = names(folder, is_clip, follow_links=True)
    assert set(found) - {"real.mp4", "sub/x.mp4"} == (
        {link} if link.endswith("mp4") else {f"{link}/0.mp4", f"{link}/1.mp4"}
    )


def test_links_that_are_followed_outside_end_as_well(tmp_path):
    folder, outside = make(tmp_path / "f", "a.mp4"), make(tmp_path / "outside", "b.mp4")
    (folder / "disk").symlink_to(outside)
    (folder / "above").symlink_to("..")
    (outside / "back").symlink_to(folder)
    listing = walk(folder, follow_links=True)
    assert [file.name for file in listing.files] == ["a.mp4", "disk/b.mp4"]
    assert listing.loops == ["above", "disk/back"]


def hub_cache(root: Path) -> Path:
    """A data set as huggingface_hub keeps it; its snapshot."""
    home = make(root / "hub" / "datasets--owner--clips", "blobs/0a", "blobs/0b", "refs/main")
    snapshot = home / "snapshots" / "4f2c"
    (snapshot / "train").mkdir(parents=True)
    (snapshot / "a.mp4").symlink_to("../../blobs/0a")
    (snapshot / "train" / "b.mp4").symlink_to("../../../blobs/0b")
    (snapshot / ".gitattributes").symlink_to("../../blobs/0b")
    return snapshot


@situation(
    "Embedding",
    "a data set in the Hub's cache, where every file is a link into `blobs`",
    "read as it is",
    since="0.2.0",
)
def test_the_cache_of_the_hub_is_walked(tmp_path):
    snapshot = hub_cache(tmp_path)
    listing = walk(snapshot, is_clip)
    blobs = os.path.realpath(snapshot / "../../blobs")
    assert {file.name: file.path for file in listing.files} == {
        "a.mp4": f"{blobs}/0a",
        "train/b.mp4": f"{blobs}/0b",
    }
    assert names(snapshot / "train") == ["b.mp4"]
    assert set(names(snapshot.parent.parent, is_clip)) == {
        "snapshots/4f2c/a.mp4",
        "snapshots/4f2c/train/b.mp4",
    }


def test_the_cache_of_the_hub_opens_no_other_folder(tmp_path):
    snapshot = hub_cache(tmp_path)
    make(tmp_path / "hub", "private/c.mp4", "datasets--other/blobs/0c")
    for target in (
        "../../../private/c.mp4",
        "../../../datasets--other/blobs/0c",
        "../../refs/main",
        "../../blobs/../refs/main",
    ):
        (snapshot / "c.mp4").symlink_to(target)
        with pytest.raises(UserError, match="'c.mp4' leaves the folder"):
            walk(snapshot, is_clip)
        (snapshot / "c.mp4").unlink()
    blobs = snapshot.parent.parent / "blobs"  # an archive may have made this a link, too
    blobs.rename(tmp_path / "moved")
    blobs.symlink_to(tmp_path / "hub" / "private")
    (snapshot / "c.mp4").symlink_to("../../blobs/c.mp4")
    with pytest.raises(UserError, match="leaves the folder"):
        walk(snapshot, is_clip)


def test_nothing_is_left_out_without_a_word(tmp_path):
    folder = make(tmp_path / "f", "a.mp4")
    (folder / "disk2").symlink_to("/nowhere/mounted")
    (folder / "gone.mp4").symlink_to("gone")
    os.mkfifo(folder / "pipe.mp4")
    os.mkfifo(folder / "pipe2.mp4")
    listing = walk(folder, is_clip)
    assert [file.name for file in listing.files] == ["a.mp4", "gone.mp4"]
    assert listing.passed_over() == (
        "passed over 1 link to nothing 'disk2', 2 pipes, sockets or devices ('pipe.mp4', ...)"
    )


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder = make(tmp_path / "f", "a.mp4", "locked/b.mp4")
    scandir = os.scandir

    def deny(path):  # root may list everything
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match="f: 'locked/' cannot be listed .Permission denied."):
        walk(folder)


@situation(
    "Embedding",
    "file names that are not UTF-8, or have line ends, quotes, backslashes",
    "ids that every program can write and read back, and that give the name again",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "name, text",
    [
        (b"plain \xc3\xa9.mp4", "plain é.mp4"),
        (b"caf\xe9.mp4", r"caf\xe9.mp4"),
        (b"caf\\xe9.mp4", r"caf\\xe9.mp4"),
        (b"\xff\xfe\\\xe9\\x", r"\xff\xfe\\\xe9\\x"),
        (b"new\nline\t'\".mp4", "new\nline\t'\".mp4"),
        (b"\xed\xa0\x80.mp4", r"\xed\xa0\x80.mp4"),  # a surrogate, as no UTF-8 has it
        (b"n" * 255, "n" * 255),
        ("👨‍👩‍👧%20\u202e.mp4".encode(), "👨‍👩‍👧%20\u202e.mp4"),
    ],
)
def test_a_name_becomes_text_and_back(tmp_path, name, text):
    with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
        pass
    (file,) = walk(tmp_path).files
    assert os.fsencode(file.name) == name
    assert path_to_text(file.name) == text and text.encode()
    assert os.fsencode(text_to_path(text)) == name
