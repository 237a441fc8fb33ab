"""The TFDS builder of imported pairs, and the import from files into a directory."""

import contextlib
import io
import json
import os
from array import array
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from data.pairs import card, importer
from data.pairs.importer import Source, Tally
from data.pairs.rows import input_files
from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.artifacts import build_folder, read_manifest
from gve_jax.storage.files import write_json
from gve_jax.streams.pairs import MEDIA_ROOT, pair_features
from gve_jax.streams.writing import write_sources

VERSION = "2"  # of what is written for the same rows
MANIFEST = "import.json"
REJECTS = "rejects.jsonl"


class Imported(tfds.core.GeneratorBasedBuilder):
    """Imported pairs, one split a source.

    Without Beam it only describes the directory: above 1 GB of a split, TFDS sorts what a generator
    yields with TensorFlow, which is not installed (see `_write_in_order`).

    Args:
      sources: whose rows are read.
      generate: makes a source's transform of Apache Beam, of (key, record).
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, sources: list[Source], generate: Callable | None = None, **kwargs):
        self._sources, self._generate = sources, generate
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        root = self._sources[0].root.resolve()
        by_reference = self._sources[0].by_reference
        return tfds.core.DatasetInfo(
            builder=self,
            description="Training pairs, imported by data.pairs; see README.md beside this file.",
            features=pair_features(),
            metadata=tfds.core.MetadataDict({MEDIA_ROOT: str(root)} if by_reference else {}),
            disable_shuffling=self._generate is None,
        )

    def _split_generators(self, dl_manager) -> dict[str, object]:
        return {source.name: self._generate(source) for source in self._sources}

    def _generate_examples(self):
        raise NotImplementedError  # `generate` does it


def run_import(
    output: Path,
    inputs: list[str],
    format: str,
    *,
    media_root: Path | None = None,
    negatives: int | None = None,
    by_reference: bool = False,
    corpus: list[str] | None = None,
    max_reject_share: float = 0.01,
    license: str = "",
    beam: bool = False,
    command: str = "",
) -> dict[str, Tally]:
    """Imports `NAME=PATH` inputs into `output`; what became of each source's rows.

    An import that was done before is not repeated unless its files have changed.

    Raises:
      UserError: an input that is no source; two of one name; `output` holds something else; more
        rejects than the share: they are then in `OUTPUT.rejects.jsonl`.
    """
    output = output.resolve()
    config = {
        "version": VERSION,
        "inputs": inputs,
        "format": format,
        "media_root": None if media_root is None else str(media_root),
        "negatives": negatives,
        "by_reference": by_reference,
        "corpus": corpus or [],
        "license": license,
        "files": _stamps([text.partition("=")[2] for text in inputs] + (corpus or [])),
    }
    pipeline = None
    if beam:
        from data.pairs import beam as pipeline  # says in one line when Beam is not installed

    def build(pairs: Path) -> dict[str, Tally]:
        rules = format, media_root, negatives, by_reference
        try:
            tallies = _build(pairs, inputs, corpus, pipeline, max_reject_share, output, rules)
        finally:
            importer.close_corpus()
        fields = {name: vars(tally) for name, tally in tallies.items()}
        write_json(pairs / MANIFEST, config | {"sources": fields})
        text = card.text(output.name, format, tallies, license, command, by_reference)
        (pairs / "README.md").write_text(text)
        return tallies

    return build_folder(output, build, lambda: _read_import(output, config))


def _read_import(output: Path, config: dict) -> dict[str, Tally] | None:
    manifest = read_manifest(output, MANIFEST, "an import", config)
    if manifest is None:
        return None
    return {name: card.tally(value) for name, value in manifest["sources"].items()}


def _stamps(paths: list[str]) -> dict[str, list[int]]:
    stamps = {}
    for path in paths:
        for file in input_files(path, print):
            stat = file.stat()
            stamps[str(file)] = [stat.st_size, stat.st_mtime_ns]
    return stamps


def _build(pairs: Path, inputs, corpus, pipeline, max_share, output, rules) -> dict[str, Tally]:
    """Writes the directory `pairs` and its rejects, with temporary files beside it."""
    format, media_root, negatives, by_reference = rules
    scratch = pairs.parent
    rejects = scratch / REJECTS
    tallies: dict[str, Tally] = {}
    contents: dict[str, array] = {}
    with open(rejects, "w", encoding="utf-8") as file:

        def log(line: dict) -> None:
            tallies.setdefault(line["source"], Tally()).add(line)
            if "contents" in line:
                contents.setdefault(line["source"], array("Q")).extend(line["contents"])
            if "reason" in line:
                file.write(json.dumps(line, ensure_ascii=True) + "\n")

        index = importer.index_corpus(corpus, scratch / "corpus.db", log) if corpus else None
        sources = [
            importer.open_source(text, format, media_root, negatives, by_reference, index)
            for text in inputs
        ]
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise UserError(f"two inputs are named {max(names, key=names.count)!r}")
        if by_reference and len({source.root.resolve() for source in sources}) > 1:
            raise UserError("--by-reference needs one --media-root for all inputs")
        with progress_bar("percent", redirect_stdout=False) as progress:
            total = sum(path.stat().st_size for source in sources for path in source.files)
            bar = progress.add_task("rows", total=total if pipeline is None else None)

            if pipeline is None:
                _write_in_order(pairs, sources, log, lambda read: progress.advance(bar, read))
            else:
                _write_by_beam(pairs, sources, pipeline)
        if pipeline is not None:
            for path in sorted((scratch / "log").glob("*")):
                for line in open(path, encoding="utf-8"):
                    log(json.loads(line))
    for source in sources:
        tally = tallies.get(source.name, Tally())
        tally.crossed = importer.count_crossed(contents.get(source.name, ()))
        lost, total = sum(tally.rejects.values()), tally.pairs + sum(tally.rejects.values())
        if lost > max_share * total:
            saved = output.with_name(f"{output.name}.{REJECTS}")
            os.replace(rejects, saved)
            raise UserError(
                f"source {source.name!r}: {lost} of {total} pairs are rejects, above "
                f"--max-reject-share {max_share:g}; most: {tally.rejects.most_common(1)[0][0]!r}; "
                f"all are in {saved}"
            )
    os.replace(rejects, pairs / REJECTS)
    output.with_name(f"{output.name}.{REJECTS}").unlink(missing_ok=True)  # of an earlier attempt
    return tallies


def _write_in_order(pairs: Path, sources: list[Source], log, tick) -> None:
    """Writes what TFDS would, record by record: memory does not grow with a source."""
    info = Imported(sources=sources, data_dir=str(pairs.parent)).info
    records = {source.name: importer.run(source, log, tick) for source in sources}
    for name, count in write_sources(pairs, info, records).items():
        if not count:
            raise UserError(f"source {name!r}: its files changed, no pair is left in them")


def _write_by_beam(pairs: Path, sources: list[Source], pipeline) -> None:
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()  # ours counts all sources
    builder = Imported(
        sources=sources,
        generate=lambda source: pipeline.Rows(source, str(pairs.parent / "log" / source.name)),
        data_dir=str(pairs.parent / "tfds"),
    )
    config = tfds.download.DownloadConfig(beam_runner=pipeline.RUNNER, try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where it writes, for now
        builder.download_and_prepare(download_config=config)
    os.rename(builder.data_dir, pairs)
