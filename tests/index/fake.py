"""An encoder of numbered frames for tests of an index, and processes that run it."""

import hashlib
import threading
import time
import types
from pathlib import Path

import numpy as np

from gve_jax import search
from gve_jax.index import Index
from gve_jax.index.windows import Windows
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.outline import read_outline, read_pictures
from gve_jax.media.sandbox import Sandbox
from tests.media.files import encode, numbered

SPEC = InputSpec(num_frames=4, max_length=512)
FIXED = Windows("fixed", length=2.0, stride=1.0)


class Local:
    """The operations of a sandbox, in this process."""

    processes = 1

    def __init__(self):
        self._limits = Sandbox().limits

    def outline(self, video):
        return read_outline(video, self._limits)

    def pictures(self, video, positions, outline, *, spec=None, count=1, size=None):
        positions = np.asarray(positions)
        return read_pictures(video, positions, outline.total, self._limits, spec, count, size)


class Model:
    """Embeds the digest of a text, or of the mean of frames: equal pictures have equal vectors.

    Attributes:
      asked: number of items that were embedded.
    """

    embedding_dim = 8

    def __init__(self, weights="a", seconds=0.0, refuses=lambda item: False):
        self.fingerprint = {"weights": weights, "inputs": {"num_frames": 4}}
        self.preprocess = types.SimpleNamespace(spec=SPEC)
        self.asked, self._seconds, self._refuses = 0, seconds, refuses

    def encode_valid(self, items, ids, quarantine, prompt=None, batch_size=32):
        time.sleep(self._seconds)
        self.asked += len(items)
        valid = np.array([not self._refuses(item) for item in items])
        for id in np.array(ids)[~valid]:
            quarantine.record(id=str(id), path="", reason="too many tokens", seconds=0.0)
        rows = [self._row(item, prompt) for item, ok in zip(items, valid, strict=True) if ok]
        return np.array(rows, np.float32).reshape(-1, 8), valid

    def encode_query(self, items, prompt=None, prompt_name=None):
        return np.stack([self._row(item, prompt) for item in items])

    def _row(self, item, prompt) -> np.ndarray:
        parts = [item.text, prompt]
        parts += [
            None if frames is None else frames.tobytes() for frames in (item.video, item.image)
        ]
        digest = hashlib.sha256(repr(parts).encode()).digest()
        row = np.random.default_rng(list(digest)).normal(size=8)
        return (row / np.linalg.norm(row)).astype(np.float32)


def movie(first: int, frames: int = 40, **options) -> bytes:
    """A video of 4 s whose frames spell numbers from `first` on; small."""
    return encode(np.roll(numbered(64), -first, axis=0)[:frames], **options)


SANDBOX = Sandbox(processes=2)  # of all tests in a process


def make_index(root: Path, media: Path, model=None, windows=FIXED) -> Index:
    return Index.create(root, media, model or Model(), windows=windows, sandbox=SANDBOX)


def contents(index: Index) -> dict[str, np.ndarray]:
    """Vectors by the ids of their moments; each id once."""
    ids, vectors = index.load_vectors()
    assert len(set(ids)) == len(ids) == len(vectors)
    return dict(zip(ids, vectors, strict=True))


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[id] == other[id]).all() for id in one)


def fill(folder: Path, media: Path, begun: threading.Event) -> None:
    """Runs `gve_jax.search index` with a slow model; `begun` is set when the model is loaded."""

    def load(name: str) -> Model:
        begun.set()
        return Model(seconds=0.05)

    windows = ["--windows", "fixed", "--length", "2", "--stride", "1", "--shortest", "2"]
    command = ["index", "--model", "fake", "--media", str(media), "--index", str(folder)]
    search.main([*command, *windows, "--workers", "2", "--batch-size", "1"], load=load)
