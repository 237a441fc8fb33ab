"""A dataset's paths: where they lead, and that none leads outside of its folder."""

import os
from pathlib import Path

import pytest

from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from tests.situations import situation


@pytest.fixture
def root(tmp_path) -> Path:
    """A dataset with links of all kinds, beside folders that are none of its business."""
    root = tmp_path / "set"
    for folder in (root / "sub", tmp_path / "set2", tmp_path / "secret"):
        folder.mkdir(parents=True)
        (folder / "v.mp4").write_bytes(b"x")
    (root / "frames").mkdir()
    (root / "frames" / "0.png").write_bytes(b"x")
    (root / "bad frames").mkdir()
    (root / "bad frames" / "0.png").symlink_to(tmp_path / "secret" / "v.mp4")
    for name, target in {
        "in.mp4": "sub/v.mp4",
        "around.mp4": "../set/sub/v.mp4",
        "out.mp4": "../secret/v.mp4",
        "absolute.mp4": tmp_path / "secret" / "v.mp4",
        "folder": "../secret",
        "back": "sub",
        "chain.mp4": "out.mp4",
        "broken.mp4": "../secret/nothing.mp4",
        "self.mp4": "self.mp4",
        "neighbour": "../set2",
        "device": "/dev/zero",
    }.items():
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(
    "path, leads",
    [
        ("sub/v.mp4", "sub/v.mp4"),
        ("./sub//v.mp4", "sub/v.mp4"),
        ("sub/../sub/v.mp4", "sub/v.mp4"),
        ("../set/sub/v.mp4", "sub/v.mp4"),
        ("in.mp4", "sub/v.mp4"),
        ("around.mp4", "sub/v.mp4"),
        ("back/v.mp4", "sub/v.mp4"),
        ("back/../in.mp4", "sub/v.mp4"),
        ("not/there.mp4", "not/there.mp4"),
        ("frames", "frames"),
        ("http://host/v.mp4", "http:/host/v.mp4"),  # no address: a name that does not exist
        ("~/v.mp4", "~/v.mp4"),
        ("sub/.", "sub"),
        ("ü\n.mp4", "ü\n.mp4"),
    ],
)
def test_a_path_inside_is_resolved(root, path, leads):
    assert inside(root, path, "video") == root.resolve() / leads


def test_an_absolute_path_and_a_root_that_is_a_link(root, tmp_path):
    assert inside(root, str(root / "sub/v.mp4"), "video") == root.resolve() / "sub/v.mp4"
    (tmp_path / "alias").symlink_to(root)
    assert inside(tmp_path / "alias", "sub/v.mp4", "video") == root.resolve() / "sub/v.mp4"
    assert inside("/", "etc/../etc/passwd", "video") == Path("/etc/passwd").resolve()


@situation(
    "Training data",
    "a manifest that names files outside of its folder (`..`, absolute, by links)",
    "refused with the file, the line and the path",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "path",
    [
        "../secret/v.mp4",
        "sub/../../secret/v.mp4",
        "..",
        "/etc/passwd",
        "/",
        "out.mp4",
        "absolute.mp4",
        "chain.mp4",
        "folder/v.mp4",
        "folder",
        "broken.mp4",
        "neighbour/v.mp4",
        "../set2/v.mp4",
        "device",
        "back/../../secret/v.mp4",
        "sub/v.mp4/../../../secret/v.mp4",
        "bad frames",
        ".",
    ],
)
def test_a_path_that_leads_outside_is_refused(root, path):
    with pytest.raises(UserError) as error:
        inside(root, path, "data.jsonl:7: video")
    assert str(error.value) == f"data.jsonl:7: video {path!r} leaves the folder {root}"


@pytest.mark.parametrize("path", ["", "a\0b", "v.mp4\0", None, 5, b"v.mp4", ["v.mp4"], {"a": 1}])
def test_values_that_are_not_paths(root, path):
    with pytest.raises(UserError, match=r"^video .* is not a path$"):
        inside(root, path, "video")


@pytest.mark.parametrize("path", ["\ud800.mp4", "a/" * 5000, "x" * 5000, "self.mp4"])
def test_names_that_no_file_has(root, path):
    """Refused, or a path inside at which there is nothing; never another error."""
    try:
        found = inside(root, path, "video")
    except UserError:
        return
    assert found.is_relative_to(root.resolve()) and not os.path.isfile(found)


@situation(
    "Training data",
    "a link that is changed between the check and the opening",
    "the checked file is opened",
    since="0.1.0",
)
def test_a_link_changed_after_the_check_is_not_followed(root, tmp_path):
    found = inside(root, "in.mp4", "video")
    (root / "in.mp4").unlink()
    (root / "in.mp4").symlink_to(tmp_path / "secret" / "v.mp4")
    assert os.path.realpath(found) == str(root.resolve() / "sub" / "v.mp4")


@situation(
    "Training data",
    "a JSONL file in the Hub's cache, whose media are links into `blobs`",
    "read; links to anywhere else are refused",
    since="0.2.0",
)
def test_a_snapshot_of_the_hub_may_use_the_blobs_of_its_repository(tmp_path):
    home = tmp_path / "hub" / "datasets--owner--clips"
    snapshot = home / "snapshots" / "4f2c"
    for folder in (home / "blobs", snapshot / "frames", tmp_path / "hub" / "private"):
        folder.mkdir(parents=True)
        (folder / "0a").write_bytes(b"x")
    (snapshot / "v.mp4").symlink_to("../../blobs/0a")
    (snapshot / "frames" / "0.png").symlink_to("../../../blobs/0a")
    (snapshot / "secret.mp4").symlink_to("../../../private/0a")
    blob = (home / "blobs" / "0a").resolve()
    assert inside(snapshot, "v.mp4", "video") == blob
    assert inside(snapshot, "frames", "video") == (snapshot / "frames").resolve()
    assert inside(snapshot / "frames", "0.png", "video") == blob
    for path in ("secret.mp4", "../../refs/main", str(tmp_path / "hub" / "private" / "0a")):
        with pytest.raises(UserError, match="leaves the folder"):
            inside(snapshot, path, "video")
    with pytest.raises(UserError, match="leaves the folder"):
        inside(home / "snapshots", "../blobs/0a", "video")


def test_links_of_ones_own_are_followed_on_request_and_paths_are_not(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    for folder in (root, tmp_path / "alias"):
        for path, leads in {
            "out.mp4": "secret/v.mp4",
            "folder/v.mp4": "secret/v.mp4",
            "bad frames": "set/bad frames",
            "sub/v.mp4": "set/sub/v.mp4",
            str(folder / "out.mp4"): "secret/v.mp4",
        }.items():
            found = inside(folder, path, "video", follow_links=True)
            assert found == tmp_path.resolve() / leads
        for path in ("../secret/v.mp4", "/etc/passwd", "sub/../../secret/v.mp4", "folder/../../x"):
            with pytest.raises(UserError, match="leaves the folder"):
                inside(folder, path, "video", follow_links=True)
