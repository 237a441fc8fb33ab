"""The score of every query, kept beside `results.json` so that two models can be compared.

OUTPUT/per_query/<SET>.npz holds, in the order of queries.jsonl:

    ids         str [Q]
    score       float64 [Q], the set's own metric; their mean is the score in `results.json`
    first_rank  float64 [Q], the rank of the best positive; infinite where none was ranked
    <metric>    float64 [Q], the further metrics, such as `ndcg@10`
    metric      the name of the set's own metric

The same of other runs (`untrained`, `shuffled`, ...) lies in a folder of that name.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write

_OWN = ("ids", "score", "first_rank", "metric")


@dataclass(frozen=True)
class PerQuery:
    """See above; `metrics` holds the further metrics by name."""

    ids: np.ndarray
    metric: str
    score: np.ndarray
    first_rank: np.ndarray
    metrics: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        """An .npz, whole or not at all, without a pickle in it."""
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
        """Raises UserError for a file that is missing, damaged or something else."""
        if not path.is_file():
            raise UserError(f"{path}: missing: score that model again, it is written with the set")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            own = {name: arrays.pop(name) for name in _OWN}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: unreadable scores of queries ({error})") from error
        shapes = {one.shape for one in (own["ids"], own["score"], own["first_rank"])}
        if len(shapes) != 1 or own["score"].ndim != 1 or not len(own["score"]):
            raise UserError(f"{path}: unreadable scores of queries (arrays of {sorted(shapes)})")
        if not np.isfinite(own["score"]).all():
            raise UserError(f"{path}: unreadable scores of queries (a score is not finite)")
        return cls(own["ids"], str(own["metric"]), own["score"], own["first_rank"], arrays)
