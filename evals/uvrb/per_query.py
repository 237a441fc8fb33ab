"""The score of every query, stored next to `results.json` to compare models.

OUTPUT/per_query/<SET>.npz contains, in the order of queries.jsonl:

    ids         str [Q]
    score       float64 [Q], the set's metric; its mean is the score in `results.json`
    first_rank  float64 [Q], the rank of the best positive; infinite without any
    <metric>    float64 [Q], additional metrics, such as `ndcg@10`
    metric      the name of the set's metric

Other runs (`untrained`, `shuffled`, ...) have a subfolder each.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write

_FIXED = ("ids", "score", "first_rank", "metric")


@dataclass(frozen=True)
class PerQuery:
    """See above; `metrics` are the additional metrics by name."""

    ids: np.ndarray
    metric: str
    score: np.ndarray
    first_rank: np.ndarray
    metrics: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        """Writes an .npz atomically, without pickles."""
        arrays = {
            "ids": self.ids,
            "metric": np.array(self.metric),
            "score": self.score,
            "first_rank": self.first_rank,
            **self.metrics,
        }
        atomic_write(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def read(cls, path: Path) -> "PerQuery":
        """Raises UserError for a file that is missing or damaged."""
        if not path.is_file():
            raise UserError(f"{path}: missing; score that model again to write it")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            fields = {name: arrays.pop(name) for name in _FIXED}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: unreadable scores of queries ({error})") from error
        shapes = {one.shape for one in (fields["ids"], fields["score"], fields["first_rank"])}
        if len(shapes) != 1 or fields["score"].ndim != 1 or not len(fields["score"]):
            raise UserError(f"{path}: unreadable scores of queries (arrays of {sorted(shapes)})")
        if not np.isfinite(fields["score"]).all():
            raise UserError(f"{path}: unreadable scores of queries (a score is not finite)")
        fields["metric"] = str(fields["metric"])
        return cls(**fields, metrics=arrays)
