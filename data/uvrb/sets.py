"""Finds and opens the sets of a command: extracted folders, archives, or a cache.

For each set, in this order:

    DATA/UVRB/NAME/                         extracted by the user
    DATA[/UVRB]/NAME.tar.gz.part00, ...     extracted into CACHE/UVRB/NAME when first needed
    CACHE/UVRB/NAME/                        extracted earlier; the archive may be deleted

With `one_at_a_time` an extraction is removed when its embeddings are finished, so that only one set
is on disk. Its lists and digests stay: scoring again needs no media.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.uvrb.archives import find_parts
from data.uvrb.files import SEAL, Archived, Folder
from data.uvrb.reader import RetrievalSet, read_set
from data.uvrb.tasks import Task
from gve_jax.errors import UserError


class Sets:
    """Opens sets.

    Args:
      data: the directory that contains `UVRB/`, or the archives.
      cache: directory for extracted archives.
      digests: folder for the digests of extracted sets, so that files are hashed once.
      moment_pool: see `read_set`.
      media: False if only ids are needed.
      one_at_a_time: `each` extracts a set when it reaches it, and removes it afterwards.
      tick: called during extraction with the set's name, bytes read and total bytes of its archive.
    """

    def __init__(
        self,
        data: Path,
        cache: Path,
        digests: Path | None = None,
        *,
        moment_pool: str = "whole",
        media: bool = True,
        one_at_a_time: bool = False,
        tick: Callable[[str, int, int], None] = lambda name, done, total: None,
    ):
        self.data, self.cache, self._digests = data, cache, digests
        self.moment_pool, self._media = moment_pool, media
        self._one_at_a_time, self._tick = one_at_a_time, tick
        self._opened: dict[str, RetrievalSet] = {}
        self._sizes: dict[str, int] = {}
        self._tasks: tuple[Task, ...] = ()

    def check(self, tasks: Iterable[Task]) -> None:
        """Reads the sets that are folders and finds the archives of the others, before any work.

        Raises:
          UserError: see `open`.
        """
        self._tasks = tuple(tasks)
        for task in self._tasks:
            if self._locate(task) is None:
                self.open(task)

    @property
    def total(self) -> int:
        """Number of queries and documents of all checked sets; see `size`."""
        return self.size(self._tasks)

    def ready(self, tasks: Iterable[Task]) -> None:
        """Opens all sets, unless they are extracted one at a time."""
        for task in () if self._one_at_a_time else tasks:
            self.open(task)

    def each(self, tasks: Iterable[Task]) -> Iterator[RetrievalSet]:
        """The sets in order; with `one_at_a_time` each extraction is removed before the next."""
        for task in tasks:
            found = self.open(task)
            yield found
            if self._one_at_a_time:
                found.files.discard()

    def open(self, task: Task) -> RetrievalSet:
        """Reads one set; an archive is extracted first. Every host of the job calls it.

        Raises:
          UserError: see `read_set` and `archives.scan`; a set that cannot be found.
        """
        if task.name in self._opened:
            return self._opened[task.name]
        parts = self._locate(task)
        if parts is None:
            record = self._digests and self._digests / f"{task.name}.json"
            home, files = self.data, Folder(task.folder_in(self.data), record)
        else:
            home = self.cache
            tick = functools.partial(self._tick, task.name)
            files = Archived(task.name, parts, home / "UVRB" / task.name, tick)
        found = read_set(home, task, moment_pool=self.moment_pool, files=files, media=self._media)
        self._sizes[task.name] = len(found.queries) + len(found.corpus)
        if parts is None or not self._one_at_a_time:
            self._opened[task.name] = found
        return found

    def size(self, tasks: Iterable[Task]) -> int:
        """Number of queries and documents; the paper's for sets that are not extracted yet."""
        return sum(self._sizes.get(task.name, task.queries + task.corpus) for task in tasks)

    def _locate(self, task: Task) -> list[Path] | None:
        """Parts of the set's archive, [] if only the cache has the set, None if it is a folder."""
        if task.folder_in(self.data).is_dir():
            return None
        for folder in (self.data, self.data / "UVRB"):
            if parts := find_parts(folder, task.name):
                return parts
        if (self.cache / "UVRB" / task.name / SEAL).is_file():
            return []
        raise UserError(
            f"{task.name}: no such folder: {task.folder_in(self.data)}, and no "
            f"{task.name}.tar.gz.part00 in {self.data} (choose sets with --datasets)"
        )
