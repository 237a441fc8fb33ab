"""Embeds the pending files of an index: several are decoded at a time, and each is committed once
all its moments have vectors."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from gve_jax.index.folder import File
from gve_jax.index.frames import Moment, image_moment, video_moments
from gve_jax.index.store import Media, Store, Unreadable
from gve_jax.index.windows import Windows
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.errors import MediaError
from gve_jax.media.sandbox import Sandbox
from gve_jax.media.suffixes import media_kind
from gve_jax.storage.digests import file_sha256

AHEAD = 32  # decoded moments that wait for the encoder
BATCHES = 4  # batches of moments that are passed to the encoder at once
_POLL = 0.2  # seconds after which a waiting thread looks whether it should stop


@dataclasses.dataclass
class _Begun:
    """A file that is being read."""

    file: File
    kind: str = "video"
    sha256: str = ""
    duration: float = 0.0
    moments: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    vectors: list[np.ndarray] = dataclasses.field(default_factory=list)
    expected: int | None = None  # number of moments, once all are decoded
    reason: str | None = None  # why it cannot be read
    copied: Media | None = None  # a file of the index with the same content


@dataclasses.dataclass
class Outcome:
    """What became of the pending files, by path."""

    added: list[str] = dataclasses.field(default_factory=list)
    changed: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[Unreadable] = dataclasses.field(default_factory=list)
    busy: list[str] = dataclasses.field(default_factory=list)
    moments: int = 0


class Reasons:
    """Stands in for a quarantine: the reason of each failed id."""

    def __init__(self):
        self.reasons: dict[str, str] = {}

    def record(self, id: str, path: str, reason: str, seconds: float, retry=False, stamp=None):
        self.reasons[id] = reason


def embed_pending(
    store: Store,
    files: Sequence[File],
    model,
    sandbox: Sandbox,
    policy: Windows,
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    known_bad: Iterable[Unreadable] = (),
    advance: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Adds the vectors of files to the index.

    Args:
      store: locked by this process.
      model: a `GVE`, or an object with its `encode_valid` and `preprocess.spec`.
      known_bad: contents that are not read again, as they could not be read.
      advance: called with the number of files that are finished.

    Raises:
      UserError: of the model.
    """
    embedding = _Embedding(store, model, policy, prompt, batch_size, advance)
    contents = _Contents(store, sandbox, policy, model.preprocess.spec, known_bad)
    with contextlib.closing(_read_ahead(files, contents.read, sandbox.processes)) as events:
        for begun, event in events:
            embedding.take(begun, event)
        embedding.flush()
    return embedding.outcome


class _Contents:
    """Reads files to moments, in several threads."""

    def __init__(self, store: Store, sandbox: Sandbox, policy, spec: InputSpec, known_bad):
        self._sandbox, self._policy, self._spec = sandbox, policy, spec
        self._media = {media.sha256: media for media in store.media.values()}
        self._bad = {bad.sha256: bad for bad in known_bad}

    def read(self, file: File) -> Iterator[tuple[_Begun, Moment | str]]:
        """Yields the moments of a file, then "end", "bad" or "busy"."""
        begun = _Begun(file)
        try:
            begun.sha256 = file.sha256 or file_sha256(file.real)
            if (copied := self._media.get(begun.sha256)) and file.is_unchanged():
                begun.copied, begun.kind, begun.duration = copied, copied.kind, copied.duration
                yield begun, "end"
                return
            if bad := self._bad.get(begun.sha256):
                begun.reason = bad.reason
            else:
                yield from self._moments(begun)
        except (MediaError, OSError) as error:
            text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            begun.reason = text.removeprefix(f"{file.real}: ")
        if not file.is_unchanged():
            yield begun, "busy"
        else:
            yield begun, "end" if begun.reason is None else "bad"

    def _moments(self, begun: _Begun) -> Iterator[tuple[_Begun, Moment]]:
        path = begun.file.real
        begun.kind = media_kind(path) or "video"
        if begun.kind == "image":
            moments = iter([image_moment(self._sandbox, path, self._spec)])
        else:
            begun.duration, moments = video_moments(self._sandbox, path, self._policy, self._spec)
        count = 0
        for moment in moments:
            count += 1
            yield begun, moment
        begun.expected = count


class _Embedding:
    """Collects moments of several files to batches; commits files that are complete."""

    def __init__(self, store: Store, model, policy, prompt, batch_size: int, advance: Callable):
        self._store, self._model, self._prompt = store, model, prompt
        self._batch_size, self._advance = batch_size, advance
        self._waiting: list[tuple[_Begun, Moment]] = []
        self._ended: list[_Begun] = []
        self.outcome = Outcome()

    def take(self, begun: _Begun, event: Moment | str) -> None:
        if isinstance(event, Moment):
            self._waiting.append((begun, event))
            if len(self._waiting) >= self._batch_size * BATCHES:
                self.flush()
        elif event == "end":
            self._ended.append(begun)
            if not any(waits is begun for waits, _ in self._waiting):
                self._commit()
        else:
            self._waiting = [pair for pair in self._waiting if pair[0] is not begun]
            if event == "busy":
                self.outcome.busy.append(begun.file.path)
            else:
                self._record(begun)
            self._advance(1)

    def flush(self) -> None:
        """Embeds the moments that wait, and commits the files that are complete."""
        pairs, self._waiting = self._waiting, []
        if pairs:
            items, reasons = [moment.item for _, moment in pairs], Reasons()
            ids = [str(number) for number in range(len(pairs))]
            vectors, valid = self._model.encode_valid(
                items, ids, reasons, prompt=self._prompt, batch_size=self._batch_size
            )
            rows = iter(vectors)
            for number, (begun, moment) in enumerate(pairs):
                if valid[number]:
                    begun.moments.append((moment.start_sec, moment.end_sec))
                    begun.vectors.append(next(rows))
                else:
                    begun.reason = reasons.reasons.get(str(number), "cannot be embedded")
        self._commit()

    def _commit(self) -> None:
        left = []
        for begun in self._ended:
            if begun.reason is None and begun.copied is None:
                if len(begun.vectors) < begun.expected:
                    left.append(begun)
                    continue
            if begun.reason is not None:
                self._record(begun)
            else:
                self._add(begun)
            self._advance(1)
        self._ended = left

    def _add(self, begun: _Begun) -> None:
        file, old = begun.file, self._store.paths.get(begun.file.path)
        if begun.copied is not None:
            source = self._store.media.get(begun.copied.id, begun.copied)
            rows = slice(source.row, source.row + source.count)
            vectors, moments = (array[rows] for array in self._store.open_shard(source.shard))
        else:
            vectors, moments = np.stack(begun.vectors), np.array(begun.moments)
        others = [] if old is None else [{"remove": old}]
        if file.path in self._store.unreadable:
            others.append({"forget": file.path})
        fields = {"path": file.path, "kind": begun.kind, "sha256": begun.sha256}
        fields |= {"size": file.size, "mtime_ns": file.mtime_ns, "duration": begun.duration}
        self._store.add(fields, vectors, moments, others)
        (self.outcome.added if old is None else self.outcome.changed).append(file.path)
        self.outcome.moments += len(vectors)

    def _record(self, begun: _Begun) -> None:
        file, old = begun.file, self._store.paths.get(begun.file.path)
        record = Unreadable(file.path, begun.reason, begun.sha256, file.size, file.mtime_ns)
        known = self._store.unreadable.get(file.path)
        others = [] if old is None else [{"remove": old}]
        self._store.commit([*others, {"unreadable": dataclasses.asdict(record)}])
        if known is None or (known.reason, known.sha256) != (record.reason, record.sha256):
            self.outcome.unreadable.append(record)


def _read_ahead(
    files: Sequence[File], read: Callable[[File], Iterator], threads: int
) -> Iterator[tuple[_Begun, Moment | str]]:
    """The events of `read` of all files; those of a file are in order."""
    events: queue.Queue = queue.Queue(AHEAD)
    todo, lock, stop = iter(files), threading.Lock(), threading.Event()

    def put(event) -> bool:
        while not stop.is_set():
            try:
                events.put(event, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    file = next(todo, None)
                if file is None:
                    break
                for event in read(file):
                    if not put(event):
                        return
        except BaseException as error:  # raised again in the thread that embeds
            put(error)
        put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(files)))]
    for worker in workers:
        worker.start()
    try:
        running = len(workers)
        while running:
            event = events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        stop.set()
        deadline = time.monotonic() + 5
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
