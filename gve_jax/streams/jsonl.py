"""Training pairs in JSONL files, with random access and without an import."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.streams.index import File, Index, open_index, stamp
from gve_jax.streams.pairs import too_small
from gve_jax.streams.rows import ANYWHERE, Reject, as_pair_item, check_pair, parse_line


class JsonlSources:
    """The sources of a set of JSONL files; reads records by (source, index).

    A source is all rows of one `task`, in the order of files and lines. A name without a modality
    pair gets that of its rows; rows without a task belong to a source named after their file.
    `open_index` has checked every row; a file that changes afterwards is refused.

    Attributes:
      location: the name in messages.
      sizes, bytes, digests: by source; digests are of the lines that hold its rows.
      duplicates: by source, number of negatives that equal their pair's query or positive.
    """

    def __init__(self, index: Index):
        self._index = index
        name, others = index.files[0].name, len(index.files) - 1
        self.location = f"{name} and {others:,} more" if others else name
        self.sizes = {name: part.size for name, part in index.parts.items()}
        self.bytes = {name: part.bytes for name, part in index.parts.items()}
        self.digests = {name: part.digest for name, part in index.parts.items()}
        self.duplicates = {name: part.duplicates for name, part in index.parts.items()}

    def __reduce__(self):
        return JsonlSources, (self._index,)

    def check(self, batch_sizes: Mapping[str, int]) -> None:
        """Checks that each source of `batch_sizes` fills one global batch of that many pairs.

        Raises:
          UserError: in one line, all sources that cannot.
        """
        if problems := too_small(self.sizes, batch_sizes):
            raise UserError(f"{self.location}: {'; '.join(problems)}")

    def paths(self) -> list[Path]:
        """The files."""
        return [Path(file.path) for file in self._index.files]

    def downloads(self, sources: Iterable[str]) -> list[tuple[str, Path]]:
        """Empty: GCS files were copied before their rows were indexed."""
        return []

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items.

        Raises:
          UserError: a file has changed; a link leads out of the file's folder.
        """
        part, indices = self._index.parts[source], np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < part.size:
            raise IndexError(f"{source} has {part.size} pairs, not {indices.max()}")
        rows = self._index.rows[part.first + indices]
        return [self._pair(source, part.negatives, *row) for row in rows.tolist()]

    def _pair(self, source: str, count: int, file: int, start: int, length: int, line: int) -> dict:
        rows_file = self._index.files[file]
        location = f"{rows_file.name}:{line}"
        try:
            # Opened for each row: there may be more files than a process can keep open.
            opened = os.open(rows_file.path, os.O_RDONLY)
            try:
                if stamp(opened) != self._index.stamps[file]:
                    raise UserError(
                        f"{location}: the file has changed since the command began; restore it "
                        "and repeat the command, or start again with another output folder"
                    )
                data = os.pread(opened, length, start)
            finally:
                os.close(opened)
            row = parse_line(data)
            id, task, items = check_pair(row, ANYWHERE if rows_file.media else None)
        except (OSError, Reject) as error:
            raise UserError(f"{location}: can no longer be read ({error})") from error
        query, positive, *negatives = [
            as_pair_item(item, rows_file.folder, location) for item in items[: 2 + count]
        ]
        return {
            "id": id or f"{os.path.basename(rows_file.path)}:{line}",
            "task": task or source,
            "query": query,
            "positive": positive,
            "negatives": negatives,
        }


def open_jsonl(files: Sequence[File], cache: Path) -> JsonlSources:
    """Opens the sources of files; stores their index below `cache`. Raises as `open_index`."""
    return JsonlSources(open_index(files, cache / "index"))
