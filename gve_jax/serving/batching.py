"""Decodes and encodes the items of many requests at once.

Items are decoded in the order of their requests by as many threads, with a sandboxed process each,
as there are cores. One thread runs the model. In a vector, the last bits depend on the shapes and
neighbours of its batch, so there are two ways to form batches (`merge`):

* the items of a request are a batch of their own. A vector is then, to the byte, that of
  `GVE.encode` for the same list of inputs, whatever other clients do;
* the items of all requests that are ready are packed together. Faster for many small requests;
  vectors are those of `encode` up to the rounding of the model's dtype.
"""

import asyncio
import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from gve_jax.distributed.cores import usable_cores
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import Row
from gve_jax.media.item import Item
from gve_jax.media.sandbox import Failure
from gve_jax.serving.errors import RequestError

TEXTS = 64  # texts that a thread tokenizes before it serves another request
MERGED = 8  # times the batch size: most items that are packed together
AHEAD = 128  # media that are decoded or being decoded, and not yet encoded


class RowEncoder(Protocol):
    """The part of `gve_jax.GVE` that a server uses."""

    embedding_dim: int

    def prepare(self, item: Item, prompt: str | None = None) -> Row | Failure: ...

    def encode_rows(self, rows: Sequence[Row], batch_size: int = 32) -> np.ndarray: ...


@dataclasses.dataclass
class Encoded:
    """Hidden states of the items of a request, float32 [N, D], and their numbers of tokens."""

    hidden: np.ndarray
    tokens: list[int]


@dataclasses.dataclass(eq=False)
class _Job:
    """The items of a request that are ready to be encoded; `dropped` once nobody waits for it."""

    rows: list[Row]
    done: asyncio.Future
    dropped: bool = False


class Batcher:
    """Encodes items of requests; made and used in one event loop.

    Args:
      model: the encoder.
      merge: whether items of several requests share a batch, see above.
      batch_size: as of `GVE.encode`.
      observe: is called with (items, seconds) of each batch, in the encoder's thread.
    """

    def __init__(
        self,
        model: RowEncoder,
        *,
        merge: bool = False,
        batch_size: int = 32,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ):
        self._model, self._merge, self._batch_size = model, merge, batch_size
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._ready: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._in_order, self._room = asyncio.Lock(), asyncio.Condition()
        self._media = 0
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    async def encode(self, items: list[Item], prompt: str | None = None) -> Encoded:
        """Decodes and encodes the items of a request.

        If the caller is cancelled, what has not begun is dropped.

        Raises:
          RequestError: an item that cannot be read, by its index; the model failed.
        """
        media = sum(item.image is not None or item.video is not None for item in items)
        await self._enter(media)
        job = None
        try:
            rows = await self._prepare(items, prompt)
            job = _Job(rows, self._loop.create_future())
            self._ready.put(job)
            hidden = await job.done
            return Encoded(hidden, [len(row.tokens) for row in rows])
        finally:
            if job is not None:
                job.dropped = True
                del job  # its error holds this frame
            async with self._room:
                self._media -= media
                self._room.notify_all()

    async def decode(self, function: Callable, *args):
        """`function(*args)` in a thread of those that decode."""
        return await self._loop.run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Ends the threads once they have finished what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ready.put(None)
        self._thread.join()

    async def _enter(self, media: int) -> None:
        """Waits until `media` more items may be decoded; requests enter in order."""
        if not media:
            return
        async with self._in_order, self._room:
            await self._room.wait_for(lambda: not self._media or self._media + media <= AHEAD)
            self._media += media

    async def _prepare(self, items: list[Item], prompt: str | None) -> list[Row]:
        groups: list[list[int]] = []
        texts: list[int] = []
        for index, item in enumerate(items):
            if item.image is None and item.video is None:
                texts.append(index)
            else:
                groups.append([index])
        groups += [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
        rows: list[Row | None] = [None] * len(items)

        def prepare(indices: list[int]) -> None:
            for index in indices:
                found = self._model.prepare(items[index], prompt)
                if isinstance(found, Failure):
                    raise RequestError(400, f"input {index}: {found.reason}", "input")
                rows[index] = found

        tasks = [self._loop.run_in_executor(self._pool, prepare, group) for group in groups]
        try:
            await asyncio.gather(*tasks)
        except UserError as error:  # options that do not fit the model
            raise RequestError(400, str(error), "input") from None
        finally:
            while tasks:  # emptied: their errors hold this frame
                tasks.pop().cancel()
        return rows

    def _run(self) -> None:
        """The encoder's thread."""
        ended = False
        while not ended:
            job = self._ready.get()
            if job is None:
                return
            jobs, count = [job], len(job.rows)
            while self._merge and count < MERGED * self._batch_size:
                try:
                    job = self._ready.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    ended = True
                    break
                jobs.append(job)
                count += len(job.rows)
            self._encode([job for job in jobs if not job.dropped])
            del job, jobs  # nothing of a request stays while the next one is waited for

    def _encode(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        rows = [row for job in jobs for row in job.rows]
        began = time.perf_counter()
        try:
            hidden = self._model.encode_rows(rows, self._batch_size)
        except Exception as error:  # the server outlives what the model or the device may raise
            if len(jobs) > 1:  # one request must not fail the others
                for job in jobs:
                    self._encode([job])
                return
            traceback.print_exception(error)
            reason = str(error) if isinstance(error, UserError) else "see the server's log"
            self._answer(jobs[0], RequestError(500, f"the model failed: {reason}"))
            return
        self._observe(len(rows), time.perf_counter() - began)
        start = 0
        for job in jobs:
            self._answer(job, hidden[start : start + len(job.rows)])
            start += len(job.rows)

    def _answer(self, job: _Job, result: np.ndarray | RequestError) -> None:
        def answer() -> None:
            if job.done.done():  # cancelled: the client went away
                return
            if isinstance(result, RequestError):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)

        self._loop.call_soon_threadsafe(answer)
