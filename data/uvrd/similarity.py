"""Cosines of captions and their videos by a GVE, each vector computed once."""

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gve_jax.media.item import Item
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.files import write_array


class Similarity:
    """Args:
    model: `gve_jax.GVE`, or anything with its `encode_valid` and `fingerprint`.
    cache: the folder of vectors, by the model's fingerprint and the hash of what they are of.
    """

    def __init__(self, model, cache: Path):
        self._model, self._lock = model, threading.Lock()
        mark = hashlib.sha256(json.dumps(model.fingerprint, sort_keys=True).encode()).hexdigest()
        self.mark, self._cache = mark[:16], cache / mark[:16]
        self.encoded = 0

    def __call__(self, texts: Sequence[str], videos: Sequence[bytes]) -> np.ndarray:
        """float64 [N] cosines of texts[i] and videos[i]; NaN where one cannot be encoded."""
        items = [Item(text=text) for text in texts] + [Item(video=video) for video in videos]
        hashes = [_digest(item) for item in items]
        vectors: dict[str, np.ndarray] = {}
        missing: dict[str, Item] = {}
        for digest, item in zip(hashes, items, strict=True):
            try:
                vectors[digest] = np.load(self._path(digest), allow_pickle=False)
            except (OSError, ValueError):
                missing[digest] = item
        if missing:
            with self._lock:  # a model's batches one after another
                lost = Quarantine(self._cache / "unused", 1.0, writes=False)
                found, valid = self._model.encode_valid(list(missing.values()), list(missing), lost)
                self.encoded += len(missing)
            good = [digest for digest, fine in zip(missing, valid, strict=True) if fine]
            for digest, vector in zip(good, found, strict=True):
                vectors[digest] = vector
                write_array(self._path(digest), vector)
        return np.array(
            [
                float(vectors[text] @ vectors[video]) if {text, video} <= vectors.keys() else np.nan
                for text, video in zip(hashes[: len(texts)], hashes[len(texts) :], strict=True)
            ]
        )

    def _path(self, digest: str) -> Path:
        return self._cache / digest[:2] / f"{digest}.npy"


def _digest(item: Item) -> str:
    kind, data = (b"text", item.text.encode()) if item.text else (b"video", item.video)
    return hashlib.sha256(kind + b"\0" + data).hexdigest()[:32]
