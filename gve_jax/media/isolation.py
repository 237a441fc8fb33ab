"""Rows whose media are decoded in a sandbox."""

import collections
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.media.item import Item
from gve_jax.media.sandbox import Failure, Sandbox, attempt


class Isolated:
    """A `Preprocessor` whose files and bytes are decoded by the processes of a `Sandbox`.

    The processes send patches, and the caller makes the row. Texts, arrays and PIL images are the
    caller's and stay in its process. Thread-safe, and picklable, as `Sandbox` is.

    Args:
      preprocess: makes the rows; its limits apply to each item.
      processes: how many items are decoded at once.
    """

    def __init__(self, preprocess: Preprocessor, processes: int):
        self.preprocess = preprocess
        self.sandbox = Sandbox(preprocess.limits, processes)

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the idle processes; a later call starts new ones."""
        self.sandbox.close()

    @property
    def processes(self) -> int:
        return self.sandbox.processes

    @property
    def spec(self) -> InputSpec:
        return self.preprocess.spec

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle processes."""
        return self.sandbox.pids

    def __call__(self, item: Item) -> Row:
        """The row that `preprocess` makes of the item.

        Raises:
          MediaError: media that cannot be read, crashed their process, or exceeded a limit.
        """
        if not is_untrusted(item):
            return self.preprocess(item)
        return self.preprocess.row(item, self.sandbox.visuals(item, self.spec))

    def map(
        self, items: Iterable[Item], fit: Callable[[list[Row]], object] | None = None
    ) -> Iterator[Row | Failure]:
        """Rows and failures in the order of `items`, of which a few are decoded ahead.

        Args:
          fit: raises ValueError for a row that is too large, which is a failure, too.
        """
        ahead: collections.deque = collections.deque()
        with ThreadPoolExecutor(self.processes) as pool:
            try:
                for item in items:
                    ahead.append(pool.submit(self.attempt, item, fit))
                    if len(ahead) > 2 * self.processes:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def attempt(self, item: Item, fit: Callable | None = None) -> Row | Failure:
        """`__call__`, but an item that cannot be read, or does not `fit`, becomes a `Failure`."""
        began = time.perf_counter()
        row = attempt(self, item)
        try:
            if fit and isinstance(row, Row):
                fit([row])
        except ValueError as error:
            return Failure(str(error), time.perf_counter() - began)
        return row


def is_untrusted(item: Item) -> bool:
    """Whether an item has a medium that must be decoded: a file or encoded bytes."""
    media = [item.image]
    media += item.video if isinstance(item.video, list | tuple) else [item.video]
    return any(isinstance(medium, str | os.PathLike | bytes) for medium in media)
