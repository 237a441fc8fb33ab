"""Atomic writes; JSON lines that are not valid text; ids that numpy would change."""

import errno
import os

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.storage.files import (
    atomic_write,
    check_lfs_pointer,
    read_records,
    text_id,
    write_array,
)
from tests.situations import situation


@situation(
    "Embedding",
    "an unpaired surrogate (`\\ud800`) in JSON",
    "refused with the line",
    since="0.1.0",
)
@pytest.mark.parametrize("line", [r'{"id": "a\ud800"}', r'{"a": [{"b\uDFFF": 1}]}'])
def test_an_unpaired_surrogate_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "\\ud83d\\ude42"}\n' + line + "\n")
    records = read_records(path)
    assert next(records)[1] == {"id": "\U0001f642"}
    with pytest.raises(UserError, match=r"x\.jsonl:2: unpaired surrogate"):
        next(records)


def test_an_id_with_a_nul_is_refused():
    """numpy's strings drop trailing NULs: "a" and "a\\0" would be one query."""
    with pytest.raises(UserError, match="is not an id"):
        text_id("x:1", "a\0")
    assert text_id("x:1", "a\nb c\t") == "a\nb c\t"


@situation(
    "Embedding",
    "the disk is full",
    "one line that names the file; the previous content stays",
    since="0.1.0",
)
def test_a_full_disk_names_the_file_and_leaves_the_previous_content(tmp_path):
    path = tmp_path / "x.npy"
    write_array(path, np.arange(3))

    def fill(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def numpy_fills(file):
        raise OSError("512 requested and 0 written")

    for write, reason in ((fill, "No space left on device"), (numpy_fills, "512 requested")):
        with pytest.raises(OSError, match=reason) as caught:
            atomic_write(path, write)
        assert caught.value.filename == str(path) and reason in caught.value.strerror
        assert np.load(path).tolist() == [0, 1, 2] and os.listdir(tmp_path) == ["x.npy"]


def test_two_commands_may_write_one_file_at_once(tmp_path, monkeypatch):
    path, pid = tmp_path / "x", os.getpid()

    def write(file):
        file.write(b"first")
        if os.getpid() == pid:  # as another process, before this one has finished
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            atomic_write(path, lambda other: other.write(b"second"))
            assert path.read_bytes() == b"second"

    atomic_write(path, write)
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["x"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def test_a_git_lfs_pointer_is_named(tmp_path):
    with pytest.raises(UserError, match="x.bin: is a Git LFS pointer.*git lfs pull"):
        check_lfs_pointer(POINTER, "x.bin")
    check_lfs_pointer(b"version 2", "x.bin")
    check_lfs_pointer(b"", "x.bin")
