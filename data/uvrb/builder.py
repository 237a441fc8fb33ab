"""The TFDS builder of UVRB: a configuration for each set, splits `queries` and `corpus`.

Records have the same fields in both splits; unused ones are empty:

    id, text, instruction      of a query; a document has only an id
    image, video               bytes of the file, or by reference its path below `media_root`
    frames, fps                a video that is a folder of frames: their bytes in order (none by
                               reference: `video` is the folder), and their rate
    positives, candidates      ids of documents; candidates only if the query has its own pool
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data.uvrb.reader import Document, Query, RetrievalSet
from data.uvrb.sets import Sets
from data.uvrb.tasks import TASKS, Task
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from gve_jax.media.frames import in_order
from gve_jax.storage.artifacts import build_folder
from gve_jax.streams.pairs import MEDIA_ROOT
from gve_jax.streams.writing import write_sources

VERSION = "1.0.0"
SPLITS = ("queries", "corpus")


class UVRB(tfds.core.GeneratorBasedBuilder):
    """One set of UVRB.

    `build` writes a set of any size. `download_and_prepare` writes the same up to 1 GB per split:
    above that, TFDS sorts in files that it opens with TensorFlow, which is not installed.

    Args:
      source: opens the set.
      by_reference: stores paths instead of media.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=task.name) for task in TASKS]

    def __init__(self, *, source: Sets, by_reference: bool = False, **kwargs):
        self._source, self._by_reference, self._found = source, by_reference, None
        super().__init__(file_format="array_record", **kwargs)

    @property
    def found(self) -> RetrievalSet:
        """The set, read once. Raises UserError if it is invalid."""
        if self._found is None:
            (task,) = (task for task in TASKS if task.name == self.builder_config.name)
            self._found = self._source.open(task)
            self._found.files.ensure()
        return self._found

    def records(self, split: str) -> Iterator[dict]:
        """The records of a split, in the order of its list."""
        for entry in getattr(self.found, split):
            yield _record(self.found, entry, self._by_reference)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        names = ("id", "text", "instruction", "image", "video")
        lists = ("frames", "positives", "candidates")
        features = dict.fromkeys(names, text) | {"fps": tfds.features.Scalar(np.float32)}
        features |= {name: tfds.features.Sequence(text) for name in lists}
        metadata = {"pool": self.found.pool}
        if self._by_reference:
            metadata[MEDIA_ROOT] = str(self.found.root.resolve())
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"UVRB {self.builder_config.name}: {self.found.task.source}.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://huggingface.co/datasets/Alibaba-NLP/UVRB",
            metadata=tfds.core.MetadataDict(metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        yield from enumerate(self.records(split))


def build(
    source: Sets,
    task: Task,
    output: Path,
    by_reference: bool = False,
    tick: Callable[[int], None] = lambda records: None,
) -> Path:
    """Writes one set to OUTPUT/uvrb/NAME/1.0.0, record by record, unless it exists.

    Args:
      tick: called as records are written.

    Returns:
      The folder; `tfds.builder_from_directory` reads it.

    Raises:
      UserError: an invalid set, or one that was written with other settings.
    """
    target = output / "uvrb" / task.name / VERSION

    def written() -> Path | None:
        if not target.exists():
            return None
        _compare(target, source.moment_pool if task.kind == "CMP" else "whole", by_reference)
        return target

    def write(building: Path) -> Path:
        builder = UVRB(
            source=source, by_reference=by_reference, config=task.name, data_dir=str(output)
        )

        def counted(split: str) -> Iterator[dict]:
            for record in builder.records(split):
                yield record
                tick(1)

        write_sources(building, builder.info, {split: counted(split) for split in SPLITS})
        return target

    return build_folder(target, write, written)


def read(directory: str | os.PathLike, split: str) -> Iterator[dict]:
    """Records of a written set, see above; media by reference are paths below the set's folder.

    Raises:
      UserError: not a written set, or a path outside the folder.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(directory))
    except Exception as error:
        raise UserError(f"{directory}: not a UVRB set as TFDS ({error})") from error
    root = (builder.info.metadata or {}).get(MEDIA_ROOT)
    for record in builder.as_data_source(split=split):
        plain = {name: record[name].decode() for name in ("id", "text", "instruction")}
        for name in ("image", "video"):
            value = bytes(record[name])
            if root is not None:
                value = str(inside(root, value.decode(), name)) if value else ""
            plain[name] = value
        plain["frames"] = [bytes(frame) for frame in record["frames"]]
        plain["fps"] = float(record["fps"]) or None
        for name in ("positives", "candidates"):
            plain[name] = tuple(bytes(id).decode() for id in record[name])
        yield plain


def _record(found: RetrievalSet, entry: Query | Document, by_reference: bool) -> dict:
    query = entry if isinstance(entry, Query) else None
    candidates: Sequence[str] = ()
    if query and found.candidates:
        candidates = found.candidates[found.query_index[query.id]]
    rate = found.files.rate(entry.video) if entry.video else None
    record = {
        "id": entry.id,
        "text": query.text if query else "",
        "instruction": found.task.instruction if query else "",
        "image": _medium(found, query and query.image, by_reference),
        "video": "",
        "frames": [],
        "fps": rate or 0.0,
        "positives": list(query.positives) if query else [],
        "candidates": list(candidates),
    }
    if rate and not by_reference:
        paths = in_order(entry.video, str(entry.video))
        record["frames"] = [Path(path).read_bytes() for path in paths]
    else:
        record["video"] = _medium(found, entry.video, by_reference)
    return record


def _medium(found: RetrievalSet, path: Path | None, by_reference: bool) -> str | bytes:
    if not path:
        return ""
    return str(path.relative_to(found.root.resolve())) if by_reference else path.read_bytes()


def _compare(target: Path, pool: str, by_reference: bool) -> None:
    try:
        metadata = tfds.builder_from_directory(str(target)).info.metadata or {}
    except Exception as error:
        raise UserError(f"{target}: not a UVRB set as TFDS ({error}); delete it") from error
    for name, old, new in (
        ("--moment-pool", metadata.get("pool"), pool),
        ("--by-reference", MEDIA_ROOT in metadata, by_reference),
    ):
        if old != new:
            raise UserError(f"{target}: written with {name} = {old}, now {new}; delete it")
