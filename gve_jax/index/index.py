"""Class `Index`: the moments of a media folder, kept up to date, and searched."""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gve_jax.distributed.cores import usable_cores
from gve_jax.errors import UserError
from gve_jax.index import databases, folder, frames
from gve_jax.index.databases import Database, Origin
from gve_jax.index.filters import METADATA, Filters, read_metadata
from gve_jax.index.query import Hit, Snapshot
from gve_jax.index.store import FORMAT, SETTINGS, Media, Store, Unreadable, create_store, moment_id
from gve_jax.index.update import Outcome, embed_pending
from gve_jax.index.windows import Windows
from gve_jax.inputs.user_inputs import read_inputs
from gve_jax.media.dataset_paths import path_to_text, text_to_path
from gve_jax.media.errors import MediaError
from gve_jax.media.isolation import is_untrusted
from gve_jax.media.item import Item, is_frames
from gve_jax.media.limits import Limits
from gve_jax.media.sandbox import Sandbox
from gve_jax.storage.digests import json_sha256
from gve_jax.storage.files import atomic_write, check_record
from gve_jax.storage.filesystem import as_local_path
from gve_jax.storage.locks import is_free, lock_for_process

DTYPES = ("float32", "float16")
MERGE = 0.1  # see `Snapshot.hits`


@dataclasses.dataclass(frozen=True)
class Changes:
    """What an update did, in numbers of files; `unreadable` has those that were not known yet."""

    new: int = 0
    gone: int = 0
    changed: int = 0
    moved: int = 0
    moments: int = 0
    unreadable: tuple[Unreadable, ...] = ()
    busy: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.new:,} new, {self.gone:,} gone, {self.changed:,} changed, {self.moved:,} moved"
        )


class Index:
    """An index of the moments of a media folder, made by `create` and opened by `open`.

    Searching is safe in several threads. One process at a time may change an index; others can
    search it meanwhile, and see the changes after `refresh`.

    Attributes:
      folder: of the index.
      media_folder: which it is of.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        model: Any = None,
        *,
        load: Callable[[str], Any] | None = None,
        limits: Limits | None = None,
        processes: int | None = None,
        sandbox: Sandbox | None = None,
    ):
        self.folder = as_local_path(path)
        self._store = Store(self.folder)
        self._model, self._load = None, load or _load
        self._given, self._snapshot, self._metadata = model, None, None
        self._lock = threading.RLock()
        self._shared = sandbox is not None
        self._sandbox = sandbox or Sandbox(limits or Limits(), processes or usable_cores())

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        media: str | os.PathLike,
        model: Any,
        *,
        windows: Windows | None = None,
        prompt: str | None = None,
        dtype: str = "float32",
        **options,
    ) -> "Index":
        """Makes an empty index; `update` fills it.

        Args:
          path: an absent or empty folder.
          media: the folder of videos and images.
          model: a `GVE`, or the directory or Hub id of one.
          windows: how videos are divided (default: by shots).
          prompt: instruction of the moments (default: none).
          dtype: of the stored vectors; "float16" halves the index.
          options: as of `open`.

        Raises:
          UserError: the folder is in use; another index is in it, and which field differs.
        """
        root, index = Path(os.path.abspath(as_local_path(media))), as_local_path(path)
        if not root.is_dir():
            raise UserError(f"{root}: no such directory")
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
        name = model if isinstance(model, str | os.PathLike) else None
        loaded = (options.get("load") or _load)(os.fspath(name)) if name is not None else model
        settings = {
            "media": os.fspath(root),
            "model": _model_name(name, loaded),
            "fingerprint": _plain(loaded.fingerprint),
            "prompt": prompt,
            "windows": dataclasses.asdict(windows or Windows()),
            "dim": int(loaded.embedding_dim),
            "dtype": dtype,
        }
        with lock_for_process(index):
            if not (index / SETTINGS).exists():
                if not is_free(index):
                    raise UserError(f"{index} is not empty and not an index (no {SETTINGS})")
                create_store(index, settings)
        opened = cls(index, loaded, **options)
        now = {"format": FORMAT} | {key: settings[key] for key in settings if key != "model"}
        old = {key: value for key, value in opened._store.settings.items() if key != "model"}
        check_record(index, old, now, "choose another index")
        return opened

    @classmethod
    def open(cls, path: str | os.PathLike, model: Any = None, **options) -> "Index":
        """Opens an index; its vectors are not read before a search.

        Args:
          model: a `GVE`, or the directory or Hub id of one (default: that of the index); loaded
            when it is first needed.
          options: `load`, a function that loads a model by its name; `limits` of a media file;
            `processes` that decode at once; or a `sandbox`, which stays the caller's.

        Raises:
          UserError: not an index, or damaged.
        """
        return cls(path, model, **options)

    def __len__(self) -> int:
        """Number of moments."""
        return sum(media.count for media in self._store.media.values())

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoding processes, unless they were given."""
        if not self._shared:
            self._sandbox.close()

    @property
    def settings(self) -> dict:
        return self._store.settings

    @property
    def fingerprint(self) -> str:
        """A digest of the model's fingerprint, as the server of vectors sends it."""
        return json_sha256(self.settings["fingerprint"], sort_keys=True)[:16]

    @property
    def origin(self) -> Origin:
        """What databases know the moments of this index by."""
        own = {key: value for key, value in self.settings.items() if key != "model"}
        return Origin(self.fingerprint, json_sha256(own, sort_keys=True)[:16])

    @property
    def media_folder(self) -> Path:
        return Path(self.settings["media"])

    @property
    def windows(self) -> Windows:
        return Windows(**self.settings["windows"])

    @property
    def files(self) -> list:
        """The files of the index, `gve_jax.index.store.Media`, in the order of their paths."""
        return sorted(self._store.media.values(), key=lambda media: media.path)

    def find(self, path: str) -> Media | None:
        """The file of a path, as hits have it; None if the index has no such file."""
        store = self._store
        return store.media.get(store.paths.get(path, -1))

    @property
    def unreadable(self) -> list[Unreadable]:
        """The files that could not be read, in the order of their paths."""
        return [self._store.unreadable[path] for path in sorted(self._store.unreadable)]

    @property
    def sandbox(self) -> Sandbox:
        """The decoding processes of this index."""
        return self._sandbox

    @property
    def model(self) -> Any:
        """The encoder.

        Raises:
          UserError: its fingerprint differs from that of the index; it names the field.
        """
        with self._lock:
            if self._model is None:
                model = self._given if self._given is not None else self.settings["model"]
                if model is None:
                    raise UserError(
                        f"{self.folder}: does not record a model's location; give the model"
                    )
                if isinstance(model, str | os.PathLike):
                    model = self._load(os.fspath(model))
                old, new = self.settings["fingerprint"], _plain(model.fingerprint)
                remedy = "use the model of the index, or make another index"
                check_record(f"{self.folder}: fingerprint of the model", old, new, remedy)
                self._model = model
            return self._model

    # ---- changes -----------------------------------------------------------------------------

    def update(
        self,
        *,
        retry: bool = False,
        follow_links: bool = False,
        metadata: str | os.PathLike | None = None,
        batch_size: int = 32,
        report: Callable[[str], object] = lambda line: None,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Changes:
        """Brings the index up to date with its media folder. It may be killed at any time: what
        was finished stays.

        Args:
          retry: reads unreadable files again although they have not changed.
          follow_links: follows links in the folder, also out of it.
          metadata: JSONL of the user's metadata (default: metadata.jsonl in the media folder).
          batch_size: moments in a batch of the encoder.
          report: called with lines about files that were passed over.
          progress: called with the numbers of finished and of pending files.

        Raises:
          UserError: another process writes the index, which the message names; the folder is
            missing or empty; another model.
        """
        root = self.media_folder
        with self._writing() as store:
            self._copy_metadata(metadata)
            files = folder.list_media(root, follow_links=follow_links, report=report)
            found = folder.compare(store, files, root, retry)
            known_bad = [] if retry else list(store.unreadable.values())
            store.commit(found.operations())
            outcome = self._embed(store, found.pending, known_bad, batch_size, progress)
            store.compact()
            busy = (*found.busy, *outcome.busy)
            return Changes(
                new=len(outcome.added),
                gone=len(found.gone),
                changed=len(outcome.changed),
                moved=len(found.moved),
                moments=outcome.moments,
                unreadable=tuple(outcome.unreadable),
                busy=tuple(sorted(busy)),
            )

    def add(self, path: str | os.PathLike) -> Changes:
        """Adds a file in the media folder, or replaces its moments if it has changed.

        Args:
          path: absolute, or relative to the media folder.

        Raises:
          UserError: the file is missing, unreadable or not in the media folder.
        """
        real = os.path.abspath(os.path.join(self.media_folder, path))
        name = os.path.relpath(real, self.media_folder)
        if name.split(os.sep)[0] == os.pardir:
            raise UserError(f"{real} is not in the media folder {self.media_folder}")
        file = folder.look_at(real, name.replace(os.sep, "/"))
        if file is None:
            raise UserError(f"{real}: no such file")
        with self._writing() as store:
            media = store.media.get(store.paths.get(file.path, -1))
            if media and (media.size, media.mtime_ns) == (file.size, file.mtime_ns):
                return Changes()
            outcome = self._embed(store, [file], [], 32, lambda done, total: None)
            if bad := outcome.unreadable or [
                store.unreadable[path] for path in [file.path] if path in store.unreadable
            ]:
                raise UserError(f"{real}: {bad[0].reason}")
            if outcome.busy:
                raise UserError(f"{real}: changed while it was read; repeat the call")
            return Changes(
                new=len(outcome.added), changed=len(outcome.changed), moments=outcome.moments
            )

    def remove(self, path: str | os.PathLike) -> None:
        """Removes the moments of a file. `update` adds it again if it is still in the folder.

        Raises:
          UserError: the index has no such file.
        """
        name = self._name(path)
        with self._writing() as store:
            if name not in store.paths:
                raise UserError(f"{self.folder}: has no file {name!r}")
            store.commit([{"remove": store.paths[name]}])
            store.compact()

    def refresh(self) -> bool:
        """Reads what another process has changed; returns whether there was a change."""
        with self._lock:
            if not self._store.is_stale():
                return False
            self._replace(Store(self.folder))
            return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Store]:
        with lock_for_process(self.folder):
            store = Store(self.folder, write=True)
            try:
                yield store
            finally:
                store.close()
                self._replace(store)

    def _replace(self, store: Store) -> None:
        with self._lock:
            self._store, self._snapshot, self._metadata = store, None, None

    def _embed(self, store: Store, files, known_bad, batch_size: int, progress) -> Outcome:
        if not files:
            return Outcome()
        total, done = len(files), 0
        progress(0, total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        return embed_pending(
            store,
            files,
            self.model,
            self._sandbox,
            self.windows,
            prompt=self.settings["prompt"],
            batch_size=batch_size,
            known_bad=known_bad,
            advance=advance,
        )

    def _copy_metadata(self, given: str | os.PathLike | None) -> None:
        """Copies the user's metadata into the index, so that queries do not need the media."""
        source = as_local_path(given) if given is not None else self.media_folder / METADATA
        if given is None and not source.is_file():
            return
        read_metadata(source)
        data, copy = source.read_bytes(), self.folder / METADATA
        if not copy.exists() or copy.read_bytes() != data:
            atomic_write(copy, lambda file: file.write(data))

    # ---- queries -----------------------------------------------------------------------------

    def search(
        self,
        query: Any = None,
        k: int = 10,
        *,
        vector: np.ndarray | None = None,
        group_by: str = "moment",
        merge: float = MERGE,
        prompt: str | None = None,
        prompt_name: str | None = None,
        filters: Filters | None = None,
        store: Database | None = None,
        **conditions,
    ) -> list[Hit]:
        """The best hits of a query, exactly.

        Args:
          query: a text, an image, a video, a span of a video, or a mixture, in the forms of
            `GVE.encode`: `{"text": ..., "video": path, "video_start": 12, "video_end": 15}`. The
            path of a file of the index may be relative to the media folder.
          k: number of hits.
          vector: unit vector [D], instead of `query`.
          group_by: "moment", or "video" for one hit for each file.
          merge: see `gve_jax.index.query.Snapshot.hits`.
          prompt, prompt_name: instruction of the query, as of `GVE.encode_query`.
          filters, conditions: see `gve_jax.index.filters.Filters`; its fields may be given alone.
          store: a database that computes the scores, instead of the vectors of the index; see
            `write_to`.

        Raises:
          UserError: an unreadable query, another model than that of the index, a malformed filter,
            a database that does not have the moments of the index.
        """
        if (query is None) == (vector is None):
            raise UserError("give a query or a vector, and not both")
        filters = filters or Filters(**conditions)
        if vector is None:
            vector = self.encode_query(query, prompt=prompt, prompt_name=prompt_name)
        vector = np.asarray(vector, np.float32)
        if vector.shape != (self.settings["dim"],):
            raise UserError(f"a vector must be [{self.settings['dim']}], not {list(vector.shape)}")
        snapshot, metadata = self._opened()
        chosen = filters.choose(snapshot.media, metadata)
        options = {"group_by": group_by, "merge": merge, "metadata": metadata}
        if store is not None:
            origin = self.origin
            return databases.search(
                snapshot, store, vector, k, origin=origin, chosen=chosen, **options
            )
        return snapshot.hits(snapshot.scores(vector, chosen), k, **options)

    def write_to(
        self,
        store: Database,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> tuple[int, int]:
        """Makes a database hold the moments of this index, at the cost of what differs.

        Args:
          store: opened by `gve_jax.index.databases.open_database`.
          progress: called with the numbers of moments that are written and that are to be written.

        Returns:
          Numbers of moments that were added and removed.

        Raises:
          UserError: it has vectors of another model or index; another process writes the index.
        """
        with lock_for_process(self.folder):  # two at once would add moments twice
            self.refresh()
            return databases.synchronize(self._opened()[0], store, self.origin, progress)

    def export(self, output: str | os.PathLike) -> int:
        """Writes all moments as a table, FILE.parquet or FOLDER.lance; returns their number.

        See `gve_jax.index.export`.
        """
        from gve_jax.index.export import export  # needs pyarrow

        snapshot, metadata = self._opened()
        model = self.settings["fingerprint"]
        return export(snapshot, metadata, model, self.origin, as_local_path(output))

    def timeline(self, vector: np.ndarray, path: str | os.PathLike) -> list[tuple]:
        """The score of each moment of a file, as (start_sec, end_sec, score), in order."""
        name = self._name(path)
        snapshot, _ = self._opened()
        chosen = np.array([media.path == name for media in snapshot.media], bool)
        if not chosen.any():
            raise UserError(f"{self.folder}: has no file {name!r}")
        scores = snapshot.scores(np.asarray(vector, np.float32), chosen)
        rows = np.flatnonzero(scores > -np.inf).tolist()
        return [(*snapshot.spans[row].tolist(), float(scores[row])) for row in rows]

    def encode_query(
        self, query: Any, *, prompt: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """The unit vector of a query, float32 [D]; see `search`.

        A span of a video is embedded as a moment of that span is.
        """
        (item,) = read_inputs([query], single=True)
        item = self.decode_query(item)
        return self.model.encode_query([item], prompt=prompt, prompt_name=prompt_name)[0]

    def decode_query(self, item: Item) -> Item:
        """The item of a query with its files decoded in the sandbox, videos as moments are.

        Raises:
          UserError: a file that cannot be read.
        """
        try:
            return self._decoded(item)
        except MediaError as error:
            raise UserError(f"the query: {error}") from error

    def load_vectors(self) -> tuple[list[str], np.ndarray]:
        """The ids `path#start-end` of all moments, and their vectors float32 [N, D]."""
        snapshot, _ = self._opened()
        ids = []
        for number, media in enumerate(snapshot.media):
            first, stop = snapshot.edges[number : number + 2].tolist()
            ids += [moment_id(media, *snapshot.spans[row]) for row in range(first, stop)]
        return ids, snapshot.vectors()

    def _opened(self) -> tuple[Snapshot, Mapping[str, dict]]:
        with self._lock:
            if self._snapshot is None:
                try:
                    self._snapshot = Snapshot(self._store)
                except UserError:  # another process has compacted the index since it was opened
                    if not self.refresh():
                        raise
                    self._snapshot = Snapshot(self._store)
                path = self.folder / METADATA
                self._metadata = read_metadata(path) if path.is_file() else {}
            return self._snapshot, self._metadata

    def _decoded(self, item: Item) -> Item:
        if not is_untrusted(item):
            return item
        spec, changes = self.model.preprocess.spec, {}
        if isinstance(item.image, str | os.PathLike | bytes):
            source = self._find(item.image)
            changes["image"] = self._sandbox.frames(Item(image=source), spec).frames[0]
        if isinstance(item.video, str | os.PathLike | bytes):
            source = self._find(item.video)
            if not is_frames(source):
                name = "bytes" if isinstance(source, bytes) else os.fspath(source)
                start, end = item.video_start, item.video_end
                moment = frames.span_moment(self._sandbox, source, start, end, spec, name)
                changes |= {"video": moment.item.video, "fps": moment.item.fps}
                changes |= {"num_frames": moment.item.num_frames}
                changes |= {"video_start": None, "video_end": None}
        return dataclasses.replace(item, **changes)

    def _find(self, source: Any) -> Any:
        """A path as it is, or that of a file of the index, which may be relative to its folder."""
        if isinstance(source, bytes) or os.path.exists(source):
            return source
        name = os.fspath(source)
        if name in self._store.paths:
            return os.fspath(self.media_folder / text_to_path(name))
        return source

    def _name(self, path: str | os.PathLike) -> str:
        """The path of a file as the index has it."""
        text = os.fspath(path)
        if text in self._store.paths:
            return text
        real = os.path.abspath(os.path.join(self.media_folder, text))
        return path_to_text(os.path.relpath(real, self.media_folder).replace(os.sep, "/"))


def _load(name: str):
    from gve_jax.gve import GVE  # loads JAX, which reading an index does not need

    return GVE.from_pretrained(name)


def _model_name(name: str | os.PathLike | None, model) -> str | None:
    """What `open` can load the model from later: an absolute path, or a Hub id."""
    if name is None:
        source = getattr(model, "source", None)
        return None if not source else f"{source['repository']}@{source['revision']}"
    return os.path.abspath(name) if os.path.isdir(name) else os.fspath(name)


def _plain(fingerprint: Mapping) -> dict:
    return json.loads(json.dumps(dict(fingerprint)))
