"""Cosine similarities of captions and their videos by a GVE, with a cache of vectors."""

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
    """Callable that compares texts and videos.

    Args:
      model: `gve_jax.GVE`, or anything with its `encode_valid` and `fingerprint`.
      cache: folder of vectors, by the model's fingerprint and the digest of the input.
    """

    def __init__(self, model, cache: Path):
        self._model, self._lock = model, threading.Lock()
        fingerprint = json.dumps(model.fingerprint, sort_keys=True)
        self._cache = cache / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]

    def __call__(self, texts: Sequence[str], videos: Sequence[bytes]) -> np.ndarray:
        """float64 [N] cosines of texts[i] and videos[i]; NaN where one cannot be encoded."""
        items = [Item(text=text) for text in texts] + [Item(video=video) for video in videos]
        digests = [_digest(item) for item in items]
        vectors: dict[str, np.ndarray] = {}
        missing: dict[str, Item] = {}
        for digest, item in zip(digests, items, strict=True):
            try:
                vectors[digest] = np.load(self._path(digest), allow_pickle=False)
            except (OSError, ValueError):
                missing[digest] = item
        if missing:
            with self._lock:  # one batch on the device at a time
                ignored = Quarantine(self._cache / "unused", 1.0, writes=False)
                encoded, valid = self._model.encode_valid(
                    list(missing.values()), list(missing), ignored
                )
            readable = [digest for digest, good in zip(missing, valid, strict=True) if good]
            for digest, vector in zip(readable, encoded, strict=True):
                vectors[digest] = vector
                write_array(self._path(digest), vector)
        return np.array(
            [
                float(vectors[text] @ vectors[video]) if {text, video} <= vectors.keys() else np.nan
                for text, video in zip(digests[: len(texts)], digests[len(texts) :], strict=True)
            ]
        )

    def _path(self, digest: str) -> Path:
        return self._cache / digest[:2] / f"{digest}.npy"


def _digest(item: Item) -> str:
    kind, data = (b"text", item.text.encode()) if item.text else (b"video", item.video)
    return hashlib.sha256(kind + b"\0" + data).hexdigest()[:32]
