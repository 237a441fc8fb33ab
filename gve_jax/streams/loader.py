"""Reads, decodes and pads pairs in workers, and places batches on the mesh."""

import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping

import grain
import jax
import numpy as np

from gve_jax.distributed import hosts
from gve_jax.distributed.sharding import ROWS, place_batch
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Bucket, Buckets, collate, join, need, widen
from gve_jax.inputs.counts import Counts
from gve_jax.inputs.preprocess import Row
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item
from gve_jax.media.quarantine import failure
from gve_jax.model.batch import Batch
from gve_jax.streams.semaphores import claim_semaphores
from gve_jax.streams.shared_arrays import IS_SUPPORTED, Received, SendArrays, SenderLost
from gve_jax.streams.sources import Sources

_DIED = re.compile(r"Worker process was terminated .* exit code (-?\d+)")
# Signals of schedulers and terminals to all processes of a run: the trainer handles them.
_HANDLED = (signal.SIGTERM, signal.SIGINT)
_REMEDY = "if memory ran out, reduce data.workers; repeat the command to resume"


@dataclasses.dataclass(frozen=True)
class LoadPairs(grain.transforms.Map):
    """Reads, decodes and pads the local part of a global batch; runs in workers, in numpy only.

    Media are decoded in a sandbox (`gve_jax.media.sandbox`).
    """

    sources: Sources
    preprocess: Isolated
    buckets: Buckets
    # Rows that this process loads of a global batch, by the size of the batch; None: all.
    rows: Mapping[int, tuple[int, ...]] | None = None

    def map(self, element) -> dict:
        source, indices = element
        if self.rows is not None:
            indices = np.asarray(indices)[list(self.rows[len(indices)])]
        pairs = self.sources.read(source, indices)
        sides = ["query", "positive"] + [f"negative{k}" for k in range(len(pairs[0]["negatives"]))]
        items = [_side(pair, side) for pair in pairs for side in sides]
        # Ids of pairs may repeat; source and index are unique.
        names = [f"{source}#{i}:{pair['id']}" for i, pair in zip(indices, pairs, strict=True)]
        ids = [f"{name}/{side}" for name in names for side in sides]
        results = list(self.preprocess.map(items, self.buckets.fit))
        failures = [
            failure(id, item, *dataclasses.astuple(result))
            for id, item, result in zip(ids, items, results, strict=True)
            if isinstance(result, Failure)
        ]
        rows = [results[at : at + len(sides)] for at in range(0, len(results), len(sides))]
        # A pair with an unreadable side stays in the batch, so that shapes are static; the loss
        # skips it.
        valid = np.array([all(isinstance(row, Row) for row in pair) for pair in rows])
        contents = np.array(
            [content_id(*pair) for pair in zip(items, results, strict=True)], np.int32
        )
        contents = contents.reshape(len(pairs), len(sides))
        blank = _blank(self.preprocess)
        batch = {
            "source": source,
            "ids": names,
            "failures": failures,
            "valid": valid,
            "query_id": contents[:, 0],
            "positive_id": contents[:, 1],
            "negative_id": contents[:, 2:],
        }
        used, needs, counts = Counter(), {}, {}
        for number, side in enumerate(sides):
            column = [row[number] if ok else blank for row, ok in zip(rows, valid, strict=True)]
            needs[side] = need(column)
            batch[side] = collate(column, self.buckets.hold(needs[side]), self.preprocess.spec)
            counts[side] = Counts.of_rows(column)
            used.update(tokens=int(counts[side].tokens), patches=int(counts[side].patches))
        return batch | {"used": dict(used), "needs": needs, "counts": counts}

    def sync_across_hosts(self, batch: dict) -> dict:
        """Pads the batch to the same shapes on all hosts and shares their failures and counts.

        Every host calls it for every batch, in the main thread, while the previous step runs.
        """
        local = {key: batch[key] for key in ("ids", "failures", "used", "counts")}
        local["needs"] = {side: dataclasses.astuple(size) for side, size in batch["needs"].items()}
        gathered, sides = hosts.gather(local), list(batch["needs"])
        batch, slots = dict(batch), Counter()
        for side in batch.pop("needs"):
            size = self.buckets.hold(join([Bucket(*other["needs"][side]) for other in gathered]))
            batch[side] = widen(batch[side], size, self.preprocess.spec)
            slots.update(tokens=batch[side]["tokens"].size, patches=batch[side]["patch_mask"].size)
        used = sum((Counter(other["used"]) for other in gathered), Counter())
        # Hosts that share rows, along the tensor axis, report the same ids.
        ids = dict.fromkeys(id for other in gathered for id in other["ids"])
        failures = {line["id"]: line for other in gathered for line in other["failures"]}
        return batch | {
            "ids": list(ids),
            "failures": list(failures.values()),
            "used": dict(used),
            "counts": {
                side: Counts.sum(other["counts"][side] for other in gathered) for side in sides
            },
            "slots": {name: count * len(gathered) for name, count in slots.items()},
        }


def local_rows(mesh: jax.sharding.Mesh, size: int) -> tuple[int, ...]:
    """The rows of a global batch of `size` on the devices of this process."""
    sharding = jax.sharding.NamedSharding(mesh, ROWS)
    slices = sharding.addressable_devices_indices_map((size,)).values()
    return tuple(sorted({row for (rows,) in slices for row in range(*rows.indices(size))}))


def _side(pair: dict, side: str) -> Item:
    if side.startswith("negative"):
        return pair["negatives"][int(side.removeprefix("negative"))]
    return pair[side]


def content_id(item: Item, row: Row | Failure) -> int:
    """Returns an int32 hash of an item's text, pixels and timing, by which the loss leaves out
    negatives that duplicate a positive. Paths, instructions and unreadable media are ignored."""
    digest = zlib.crc32((item.text or "").encode())
    if isinstance(row, Row) and len(row.visual_tokens):
        for patches in row.patches:
            digest = zlib.crc32(np.ascontiguousarray(patches), digest)
        # Relative to the first, which depends on the length of the text.
        positions = row.positions[:, row.visual_tokens]
        digest = zlib.crc32(np.ascontiguousarray(positions - positions[:, :1]), digest)
    return digest - 2**31


def _blank(preprocess: Isolated) -> Row:
    return preprocess(Item(text="."))


@dataclasses.dataclass
class PairBatch:
    """A global batch of one source on the mesh; `negatives` holds K batches of B items."""

    source: str
    ids: list[str]  # of the pairs, unique: source#number:id
    failures: list[dict]
    used: dict[str, int]  # tokens and patches without padding
    slots: dict[str, int]  # tokens and patches with padding
    counts: dict[str, Counts]  # by side
    # Inputs of the step: query, positive, negatives, valid, query_id, positive_id, negative_id.
    arrays: dict


def read_ahead(
    dataset: grain.MapDataset, load: LoadPairs, workers: int, buffer: int = 16
) -> grain.IterDataset:
    """Decodes batches ahead of the step in `workers` processes, or in threads if it is 0."""
    threads = 1 if workers else 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    stream = dataset.map(load).to_iter_dataset(options)
    if workers:
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
        claim_semaphores()
        if IS_SUPPORTED:
            stream = stream.map(SendArrays())
        stream = stream.mp_prefetch(processes, worker_init_fn=_start_worker)
    return stream


def _start_worker(index: int, count: int) -> None:
    """Lowers the priority of a worker and makes it exit when its parent does.

    Otherwise the workers of a killed run would stay and keep their memory.
    """
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)
    # The trainer has said it once.
    warnings.filterwarnings("ignore", "decoding processes are not fully sandboxed")
    os.nice(3)  # the step has priority on a machine with few cores
    # Not `os.getppid()`: the parent may have died while this process imported its modules.
    parent = multiprocessing.parent_process().pid

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def to_device(batch: Mapping, mesh: jax.sharding.Mesh) -> PairBatch:
    """Places a decoded batch on the mesh, with rows sharded over (data, fsdp)."""
    if not IS_SUPPORTED:
        # grain's shared memory, which arrays on a CPU device would alias.
        batch = jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, dict(batch))
    negatives = [f"negative{number}" for number in range(batch["negative_id"].shape[1])]
    arrays = {
        "query": Batch(**batch["query"]),
        "positive": Batch(**batch["positive"]),
        "negatives": [Batch(**batch[key]) for key in negatives],
        **{key: batch[key] for key in ("valid", "query_id", "positive_id", "negative_id")},
    }
    fields = {key: batch[key] for key in ("source", "ids", "failures", "used", "slots", "counts")}
    return PairBatch(**fields, arrays=place_batch(arrays, mesh))


def _next(iterator: Iterator[dict]) -> dict | None:
    """The next decoded batch; None after the last."""
    try:
        batch = next(iterator, None)
        return batch.take() if isinstance(batch, Received) else batch
    except SenderLost:
        raise UserError(f"a decoding process of data.workers was killed; {_REMEDY}") from None
    except RuntimeError as error:  # grain has no special class for it
        if match := _DIED.search(str(error)):
            raise UserError(_describe_exit(int(match[1]))) from error
        raise


def _describe_exit(code: int) -> str:
    try:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    except ValueError:  # a real-time signal has no name
        how = f"was killed by signal {-code}"
    return f"a decoding process of data.workers {how}; {_REMEDY}"


def device_batches(
    stream: grain.IterDataset, mesh: jax.sharding.Mesh, load: LoadPairs
) -> Iterator[PairBatch]:
    """Yields the batches of a stream on the mesh; stops the workers when it ends for any reason.

    Raises:
      UserError: a worker was killed or exited.
    """
    iterator = iter(stream)
    try:
        # Workers start with the first batch and inherit the mask, so that these signals cannot
        # stop them before they ignore them.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            batch = _next(iterator)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        while batch is not None:
            yield to_device(load.sync_across_hosts(batch), mesh)
            batch = _next(iterator)
    finally:
        # Left to the garbage collector, the shared memory of workers would leak.
        iterator.close()
