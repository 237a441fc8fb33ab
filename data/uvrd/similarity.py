"""Cosine similarities of captions and their videos by a GVE, with a cache of vectors."""

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gve_jax.media.item import Item
from gve_jax.media.quarantine import Quarantine
from gve_jax.retrieval.embedding import Encoder
from gve_jax.retrieval.store import VectorStore


class Similarity:
    """Callable that compares texts and videos; threads may share it.

    Args:
      model: `gve_jax.GVE`, or another encoder.
      cache: folder of a store of vectors for each fingerprint of a model.
    """

    def __init__(self, model: Encoder, cache: Path):
        self._model, self._lock = model, threading.Lock()
        fingerprint = json.loads(json.dumps(dict(model.fingerprint), sort_keys=True))
        digest = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:16]
        self._store = VectorStore(cache / digest, fingerprint, model.embedding_dim)

    def __call__(self, texts: Sequence[str], videos: Sequence[bytes]) -> np.ndarray:
        """float64 [N] cosines of texts[i] and videos[i]; NaN where one cannot be encoded."""
        items = [Item(text=text) for text in texts] + [Item(video=video) for video in videos]
        keys = [_key(item) for item in items]
        with self._lock:  # one batch on the device at a time
            self._encode(dict(zip(keys, items, strict=True)))
            rows = self._store.read(keys)
        vectors = np.full((len(keys), self._store.dim), np.nan, np.float32)
        vectors[rows.valid] = rows.vectors
        return np.array(
            [
                float(text @ video)
                for text, video in vectors.reshape(2, len(texts), -1).swapaxes(0, 1)
            ]
        )

    def _encode(self, items: dict[str, Item]) -> None:
        """Stores the missing vectors; unreadable items are tried again by the next call."""
        stored = self._store.read(list(items)).valid
        missing = [key for key, is_stored in zip(items, stored, strict=True) if not is_stored]
        if missing:
            ignored = Quarantine(self._store.folder / "unused", 1.0, writes=False)
            vectors, valid = self._model.encode_valid(
                [items[key] for key in missing], missing, ignored
            )
            readable = [key for key, good in zip(missing, valid, strict=True) if good]
            if readable:
                self._store.write(readable, vectors, np.ones(len(readable), bool))


def _key(item: Item) -> str:
    kind, data = (b"text", item.text.encode()) if item.text else (b"video", item.video)
    return hashlib.sha256(kind + b"\0" + data).hexdigest()[:32]
