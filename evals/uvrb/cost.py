"""What a score has cost: seconds in the model, tokens, bytes of media and of embeddings.

Embeddings are kept, so a command that resumes embeds less than the set has. OUTPUT/cost.json adds
up what all commands have spent on each set (of several hosts, the first one's part). It is written
after each set: what a killed command had spent on its unfinished set is not in it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data.uvrb.reader import RetrievalSet
from evals.uvrb.embeddings import Encoder, Side
from gve_jax.errors import UserError
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.files import write_json

GB = 1e9


class Meter:
    """An encoder that counts: `spent` holds items, seconds and tokens of all calls so far.

    Tokens are known where the encoder has `tokens_encoded`, else None. All other attributes are
    the encoder's.
    """

    def __init__(self, model: Encoder):
        self.model = model
        self.items, self.seconds = 0, 0.0

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def encode_valid(
        self, inputs: Sequence[dict], ids: Sequence[str], quarantine: Quarantine
    ) -> tuple[np.ndarray, np.ndarray]:
        began = time.perf_counter()
        result = self.model.encode_valid(inputs, ids=ids, quarantine=quarantine)
        self.seconds += time.perf_counter() - began
        self.items += len(inputs)
        return result

    @property
    def spent(self) -> dict[str, float | None]:
        tokens = getattr(self.model, "tokens_encoded", None)
        return {"items": self.items, "embed_seconds": self.seconds, "tokens": tokens}


class Ledger:
    """What all commands with one OUTPUT have spent, by run (`model`, `untrained`, ...) and set.

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
        """The sum for a run and a set, this command's `after` less `before` in it."""
        sums = self._spent.setdefault(label, {}).setdefault(name, {})
        for key, value in after.items():
            new = None if value is None else value - before[key]
            old = sums.get(key, 0)
            # Unknown once is unknown for good: half a count would look like a count.
            sums[key] = (
                None
                if None in (new, old) and after["items"] > before["items"]
                else (old if new is None else (old or 0) + new)
            )
        if jax.process_index() == 0:
            write_json(self.path, self._spent)
        return {**sums, "embed_seconds": round(sums["embed_seconds"], 3)}


def sizes(found: RetrievalSet, sides: Sequence[Side]) -> dict[str, float | None]:
    """GB of the distinct media of a set, and of its embeddings as they lie on disk.

    The media are None where they are not on disk any more, as those of an archive.
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
    """Of a file, or of the frames in a folder."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.iterdir())
    return path.stat().st_size
