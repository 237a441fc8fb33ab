"""Runs the parts in an Apache Beam pipeline and writes the output with TFDS."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from data.uvrd.part import Parts, make_part
from data.uvrd.run import DESCRIPTION, Job, split_name
from gve_jax.errors import UserError, install_command
from gve_jax.streams.pairs import pair_features

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
except ImportError as error:
    raise UserError(
        f"--beam needs Apache Beam, which is not installed: {install_command('synth,beam')}"
    ) from error


def _options(arguments: list[str]) -> PipelineOptions:
    options = PipelineOptions(arguments)
    options.view_as(SetupOptions).save_main_session = False
    return options


def make_parts(job: Job, arguments: list[str]) -> int:
    """Makes the missing parts; returns the number of all parts.

    The work folder and the input must be the same files on every worker."""
    missing, total = [], 0
    for number, entries in job.entries():
        total = number + 1
        if not job.parts.is_done(number):
            missing.append((number, entries))
    if missing:
        asyncio.run(job.check_server())
        with beam.Pipeline(options=_options(arguments)) as pipeline:
            (
                pipeline
                | beam.Create(missing)
                | beam.Reshuffle()  # no fusion: a failed part is retried alone
                | beam.ParDo(_MakePart(job))
            )
    return total


class _MakePart(beam.DoFn):
    def __init__(self, job: Job):
        self._job = job

    def setup(self) -> None:
        self._embedder = self._job.load_embedder()

    def process(self, element):
        number, entries = element
        if not self._job.parts.is_done(number):  # else a worker made it and was lost afterwards
            asyncio.run(self._make(number, entries))

    async def _make(self, number: int, entries: list) -> None:
        async with self._job.context(self._embedder) as ctx:
            await make_part(number, entries, ctx, self._job.parts)


def write_splits(
    pairs: Path, parts: Parts, names: list[str], total: int, arguments: list[str]
) -> None:
    """Writes the parts' records to the directory `pairs`, shuffled by TFDS."""
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    generate = {split_name(name): lambda name=name: _read(parts, name, total) for name in names}
    builder = Synthesized(generate=generate, data_dir=str(pairs.parent / "tfds"))
    config = tfds.download.DownloadConfig(beam_options=_options(arguments), try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints the temporary directory
        builder.download_and_prepare(download_config=config)
    Path(builder.data_dir).rename(pairs)


class Synthesized(tfds.core.GeneratorBasedBuilder):
    """Writes the directory of synthesized pairs.

    Args:
      generate: by split, a function that returns a Beam transform to (key, record).
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, generate: dict[str, Callable], **kwargs):
        self._generate = generate
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description=DESCRIPTION, features=pair_features()
        )

    def _split_generators(self, dl_manager) -> dict[str, object]:
        return {name: make() for name, make in self._generate.items()}

    def _generate_examples(self):
        raise NotImplementedError  # `generate` does it


@beam.ptransform_fn
def _read(begin, parts: Parts, name: str, total: int):
    """(id, record) of all pairs of a type."""
    numbers = begin | beam.Create(range(total)) | beam.Reshuffle()
    return numbers | beam.FlatMap(_read_part, parts, name)


def _read_part(number: int, parts: Parts, name: str) -> Iterator[tuple[str, dict]]:
    features = pair_features()
    for data in parts.records(number, name):
        record = features.deserialize_example_np(data)
        yield record["id"].decode(), record
