"""Output folders appear complete or not at all, and are built once."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gve_jax.errors import UserError
from gve_jax.storage.artifacts import build_folder, read_manifest
from gve_jax.storage.files import write_json


def write(folder: Path, value: int) -> int:
    folder.mkdir()
    write_json(folder / "manifest.json", {"value": value})
    (folder.parent / "temporary").write_text("not in the output")
    return value


def read(folder: Path) -> int | None:
    path = folder / "manifest.json"
    return json.loads(path.read_text())["value"] if path.exists() else None


def test_a_folder_is_built_once(tmp_path):
    output = tmp_path / "out"
    for value in (1, 2):  # the second call reads what the first has built
        assert build_folder(output, lambda to, v=value: write(to, v), lambda: read(output)) == 1
    assert os.listdir(tmp_path) == ["out"] and os.listdir(output) == ["manifest.json"]
    assert build_folder(output, lambda to: write(to, 3)) == 3  # replaced
    assert os.listdir(tmp_path) == ["out"] and read(output) == 3


def test_an_empty_folder_is_an_output_and_another_is_not_touched(tmp_path):
    (tmp_path / "empty").mkdir()
    assert build_folder(tmp_path / "empty", lambda to: write(to, 1), lambda: None) == 1
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(OSError):
        build_folder(tmp_path / "notes", lambda to: write(to, 1), lambda: None)
    assert os.listdir(tmp_path / "notes") == ["mine.txt"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        write(folder, 1)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        build_folder(tmp_path / "out", fail, lambda: None)
    assert not os.listdir(tmp_path)


BUILD = """
import sys, time
from pathlib import Path
from gve_jax.storage.artifacts import build_folder

def build(folder):
    folder.mkdir()
    (folder / "half").write_text("")
    time.sleep(60)

build_folder(Path(sys.argv[1]), build)
"""


def test_a_second_process_is_refused_and_a_killed_one_is_replaced(tmp_path):
    output = tmp_path / "out"
    half = tmp_path / "out.building" / "complete" / "half"
    with subprocess.Popen([sys.executable, "-c", BUILD, str(output)]) as process:
        try:
            deadline = time.monotonic() + 60
            while not half.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            with pytest.raises(UserError, match=f"in use by process {process.pid}"):
                build_folder(output, lambda to: write(to, 1), lambda: read(output))
        finally:
            process.kill()
    assert half.exists() and not output.exists()
    assert build_folder(output, lambda to: write(to, 1), lambda: read(output)) == 1
    assert os.listdir(tmp_path) == ["out"] and os.listdir(output) == ["manifest.json"]


@pytest.mark.parametrize(
    "manifest, message",
    [
        ({"seed": 0, "of": {"a": 1}}, None),
        ({"seed": 1, "of": {"a": 1}}, "created with seed = 1, now 0; remove it or choose another"),
        ({"seed": 0, "of": {"a": 2}}, "created with of.a = 2, now 1; remove it or choose another"),
        ({"seed": 0}, "created with of = None, now {'a': 1}"),
        ("{", "manifest.json: damaged"),
        (None, "exists and is not a world (no manifest.json); choose another --output"),
    ],
)
def test_manifests_are_compared(tmp_path, manifest, message):
    output, expected = tmp_path / "out", {"seed": 0, "of": {"a": 1}}
    assert read_manifest(output, "manifest.json", "a world", expected) is None
    output.mkdir()
    assert read_manifest(output, "manifest.json", "a world", expected) is None
    (output / "other").write_text("")
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (output / "manifest.json").write_text(text)
    if message is None:
        assert read_manifest(output, "manifest.json", "a world", expected) == manifest
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            read_manifest(output, "manifest.json", "a world", expected)
