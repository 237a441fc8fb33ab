"""Reader and writer compared with the safetensors library; damaged files."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gve_jax.checkpoints.safetensors import Part, read_header, write_file
from gve_jax.errors import UserError
from tests.situations import situation

ARRAYS = {
    "matrix": np.arange(70 * 30, dtype=np.float32).reshape(70, 30),
    "brain": np.arange(24).reshape(4, 6).astype(ml_dtypes.bfloat16),
    "kernel": np.arange(2 * 3 * 4, dtype=np.float16).reshape(2, 3, 4),
    "bias": np.arange(5, dtype=np.float32),
}


@pytest.fixture
def path(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    return tmp_path / "a.safetensors"


def test_files_of_the_library_are_read(path):
    stored = read_header(path)
    assert set(stored) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert stored[name].shape == array.shape
        matrix = array.reshape(len(array), -1)
        out = np.zeros_like(matrix)
        stored[name].read([Part((0, matrix.shape[0]), (0, matrix.shape[1]), out)])
        np.testing.assert_array_equal(out, matrix)


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_each_byte_of_the_parts_is_read_once(path, block, monkeypatch):
    monkeypatch.setattr("gve_jax.checkpoints.safetensors._BLOCK", block)
    read, preadv = [], __import__("os").preadv

    def recorded(fd, buffers, offset):
        read.append((offset, len(buffers[0])))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr("os.preadv", recorded)
    matrix, tensor = ARRAYS["matrix"], read_header(path)["matrix"]
    cases = [
        [((0, 35), (0, 30)), ((35, 70), (0, 30))],
        [((0, 70), (0, 10)), ((0, 70), (10, 30))],
        [((10, 20), (5, 15)), ((20, 33), (15, 25))],  # the rectangle around both
    ]
    for rectangles in cases:
        read.clear()
        outs = [np.zeros((r[1] - r[0], c[1] - c[0]), ml_dtypes.bfloat16) for r, c in rectangles]
        # Transposed and converted on the way.
        tensor.read(Part(*rect, out) for rect, out in zip(rectangles, outs, strict=True))
        for (rows, columns), out in zip(rectangles, outs, strict=True):
            expected = matrix[slice(*rows), slice(*columns)].astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(out, expected)
        low = min(r[0] for r, _ in rectangles), min(c[0] for _, c in rectangles)
        high = max(r[1] for r, _ in rectangles), max(c[1] for _, c in rectangles)
        assert sum(count for _, count in read) == 4 * (high[0] - low[0]) * (high[1] - low[1])
        assert len({at for at, _ in read}) == len(read)
    out = np.zeros((30, 70), np.float32)
    tensor.read([Part((0, 70), (0, 30), out.T)])
    np.testing.assert_array_equal(out, matrix.T)


def test_library_reads_written_files(tmp_path):
    path = tmp_path / "b.safetensors"
    shapes = {name: (array.shape, array.dtype) for name, array in ARRAYS.items()}
    write_file(path, shapes, iter(ARRAYS.values()))
    loaded = load_file(path)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.safetensors"]


def test_failed_write_keeps_the_old_file(path):
    before = path.read_bytes()

    def arrays():
        yield ARRAYS["bias"]
        raise OSError(28, "No space left on device")

    shapes = {"bias": ((5,), np.dtype(np.float32)), "more": ((5,), np.dtype(np.float32))}
    with pytest.raises(OSError, match="No space"):
        write_file(path, shapes, arrays())
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def _header(path, **changes):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["bias"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda p: p.unlink(), "No such file"),
        (lambda p: p.write_bytes(b""), "not a safetensors file: it is empty"),
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "too long"),
        (lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]), "not a safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b'{"', b"{,", 1)), "damaged header"),
        (lambda p: p.write_bytes((4).to_bytes(8, "little") + b"[1] "), "damaged header"),
        (lambda p: _header(p, shape=[6]), "bias is F32"),
        (lambda p: _header(p, shape=[-5]), "bias"),
        (lambda p: _header(p, data_offsets=[4, 24]), "at bytes 4..24; expected start 0"),
        (lambda p: _header(p, data_offsets="x"), "damaged header"),
        (lambda p: _header(p, shape=None), "damaged header"),
        (lambda p: _header(p, shape=[5.0]), "sizes of bias are not integers"),
        (lambda p: _header(p, dtype=["F32"]), "damaged header"),
        (lambda p: _header(p, dtype=None, shape=["5"]), "sizes of bias are not integers"),
        (
            lambda p: p.write_bytes(p.read_bytes().replace(b'"brain"', b'"bias" ', 1)),
            "duplicate key",
        ),
        (
            lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "Git LFS pointer",
        ),
        (lambda p: p.write_bytes(b"PK\3\4" + bytes(90)), "a pickle of PyTorch"),
        (lambda p: p.write_bytes(b"\x80\2}q" + b"x" * 90), "a pickle, which is not supported"),
        (lambda p: p.write_bytes(b"GGUF" + b"\1" * 90), "a GGUF file"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html>" + bytes(90)), "a web page"),
        (lambda p: p.write_bytes((6 * 10**4).to_bytes(8, "little") + b"[" * 6 * 10**4), "damaged"),
    ],
)
@situation(
    "Models and checkpoints",
    "a .safetensors that is empty, truncated, a Git LFS pointer, a pickle, GGUF or a web page",
    "one line with the file and its actual format",
    since="0.2.0",
)
@situation(
    "Models and checkpoints",
    "a .safetensors that is truncated or has additional bytes",
    "an error before any tensor is read",
    since="0.1.0",
)
def test_damaged_file_is_named(path, damage, named):
    damage(path)
    with pytest.raises(UserError, match=named) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_file_that_shrinks_while_it_is_read_is_named(path):
    tensor = read_header(path)["matrix"]
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match="ends inside matrix"):
        tensor.read([Part((0, 70), (0, 30), np.zeros((70, 30), np.float32))])
