"""The cost of a score: seconds in the model, tokens, bytes of media and of embeddings.

Embeddings are stored, so a command that resumes embeds only a part of a set. OUTPUT/cost.json sums
the costs of all commands for each set (on host 0 only). It is written after each set, so the cost
of a set that was not finished before a kill is not included.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data.uvrb.reader import RetrievalSet
from gve_jax.errors import UserError
from gve_jax.media.quarantine import Quarantine
from gve_jax.retrieval.embedding import Encoder
from gve_jax.retrieval.store import StoredRows
from gve_jax.storage.files import write_json

GB = 1e9


class Meter:
    """Wraps an encoder; `spent` has the items, seconds and tokens of all calls so far.

    Tokens are None unless the encoder has `tokens_encoded`. All other attributes are the encoder's.
    """

    def __init__(self, model: Encoder):
        self.model = model
        self.items, self.seconds = 0, 0.0

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def encode_valid(
        self, inputs: Sequence[dict], ids: Sequence[str], quarantine: Quarantine
    ) -> tuple[np.ndarray, np.ndarray]:
        start = time.perf_counter()
        result = self.model.encode_valid(inputs, ids=ids, quarantine=quarantine)
        self.seconds += time.perf_counter() - start
        self.items += len(inputs)
        return result

    @property
    def spent(self) -> dict[str, float | None]:
        tokens = getattr(self.model, "tokens_encoded", None)
        return {"items": self.items, "embed_seconds": self.seconds, "tokens": tokens}


class Ledger:
    """Costs of all commands with one OUTPUT, by run (`model`, `untrained`, ...) and set.

    Raises:
      UserError: OUTPUT/cost.json is damaged.
    """

    def __init__(self, path: Path):
        self.path, self._spent = path, {}
        if path.exists():
            try:
                self._spent = json.loads(path.read_text(encoding="utf-8"))
                for sets in self._spent.values():
                    for one in sets.values():
                        dict(one)
            except (ValueError, AttributeError, TypeError) as error:
                raise UserError(f"{path}: unreadable costs ({error}); delete it") from error

    def add(self, label: str, name: str, before: Mapping, after: Mapping) -> dict:
        """Adds `after` minus `before` to the costs of a run and a set; returns their sum."""
        sums = self._spent.setdefault(label, {}).setdefault(name, {})
        for key, value in after.items():
            new = None if value is None else value - before[key]
            old = sums.get(key, 0)
            if None in (new, old) and after["items"] > before["items"]:
                sums[key] = None  # a sum without the unknown part would be wrong
            elif new is not None:
                sums[key] = (old or 0) + new
            else:
                sums[key] = old
        if jax.process_index() == 0:
            write_json(self.path, self._spent)
        return {**sums, "embed_seconds": round(sums["embed_seconds"], 3)}


def sizes(found: RetrievalSet, sides: Sequence[StoredRows]) -> dict[str, float | None]:
    """GB of the distinct media of a set, and of its embeddings on disk.

    `media_gb` is None if media are no longer on disk, such as those of a removed extraction.
    """
    media = {one.video for one in found.corpus}
    media |= {medium for query in found.queries for medium in (query.image, query.video) if medium}
    try:
        size = sum(_bytes(path) for path in media) / GB
    except FileNotFoundError:
        size = None
    return {
        "media_gb": size,
        "embeddings_gb": sum(side.vectors.nbytes for side in sides) / GB,
    }


def _bytes(path: Path) -> int:
    """Size of a file, or of the frames in a folder."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.iterdir())
    return path.stat().st_size
