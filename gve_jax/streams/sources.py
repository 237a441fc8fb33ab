"""The sources of an experiment: those of one or of many directories of pairs."""

import glob
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from gve_jax.errors import UserError
from gve_jax.streams.pairs import PairSources


class Sources:
    """Sources by name, wherever they lie; reads records by (source, index). Pickles by its paths.

    Args:
      parts: (suffix, directory) of TFDS directories. The suffix, unless empty, is added to the
        names of that directory's sources: `T2V_whole` of ("synth", DIR) is `T2V_whole_synth`.
      chosen: patterns that match whole names; (): all sources.

    Attributes:
      sizes, bytes: of each chosen source, by sorted name.
      known: all names, chosen or not.

    Raises:
      UserError: as `PairSources`; two sources of one name; a pattern that matches none.
    """

    def __init__(self, parts: Sequence[tuple[str, str]], chosen: Sequence[str] = ()):
        self.parts, self.chosen = tuple(parts), tuple(chosen)
        found: dict[str, tuple[PairSources, str]] = {}
        for suffix, directory in self.parts:
            part = PairSources(directory)
            for name in part.sizes:
                known = f"{name}_{suffix}" if suffix else name
                if known in found:
                    raise UserError(
                        f"data.pairs: source {known!r} is in {found[known][0].directory} and in "
                        f"{directory}; give one of them a name, as NAME={directory}"
                    )
                found[known] = part, name
        self.known = sorted(found)
        self._found = {name: found[name] for name in self._choose()}
        self.sizes = {name: part.sizes[own] for name, (part, own) in self._found.items()}
        self.bytes = {name: part.bytes[own] for name, (part, own) in self._found.items()}

    def __reduce__(self):
        return Sources, (self.parts, self.chosen)

    def _choose(self) -> list[str]:
        if not self.chosen:
            return self.known
        kept, names = set(), self.known
        for pattern in self.chosen:
            try:
                matched = [name for name in names if re.fullmatch(pattern, name)]
            except re.error as error:
                raise UserError(f"data.sources: {pattern!r} is no pattern: {error}") from error
            if not matched:
                where = ", ".join(directory for _, directory in self.parts)
                raise UserError(f"data.sources: no source {pattern!r} in {where} "
                                f"(there are {', '.join(names)})")  # fmt: skip
            kept.update(matched)
        return [name for name in names if name in kept]

    def check(self, batch_sizes: Mapping[str, int]) -> None:
        """As `PairSources.check`, of every directory in turn."""
        for part in dict.fromkeys(part for part, _ in self._found.values()):
            part.check(
                {own: batch_sizes[name] for name, (of, own) in self._found.items() if of is part}
            )

    def read(self, source: str, indices: np.ndarray) -> list[dict]:
        """Records as `{"id", "task", "query", "positive", "negatives"}` of items."""
        part, own = self._found[source]
        return part.read(own, indices)


def parse(given: str) -> list[tuple[str, str]]:
    """(suffix, directory) of `config.data.pairs`: `DIR`, `NAME=DIR`, several by commas, with `*`.

    Raises:
      UserError: a pattern of paths that matches nothing; an empty entry.
    """
    parts = []
    for entry in given.split(","):
        suffix, _, path = entry.strip().rpartition("=")
        if not path or (suffix and not re.fullmatch(r"\w+", suffix)):
            raise UserError(f"data.pairs: {entry!r} is neither DIR nor NAME=DIR")
        if glob.has_magic(path):
            matched = sorted(filter(os.path.isdir, glob.glob(path)))
            if not matched:
                raise UserError(f"data.pairs: no directory matches {path}")
        else:
            matched = [path]
        parts += [(suffix, directory) for directory in matched]
    return parts
