"""The same parts as a pipeline of Apache Beam: a worker a part, on one machine or many."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from data.uvrd.compose import ASKED
from data.uvrd.part import Parts, make_part
from data.uvrd.run import DESCRIPTION, Job, add_usage, split
from gve_jax.errors import UserError
from gve_jax.streams.pairs import pair_features

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
except ImportError as error:
    raise UserError(
        "--beam needs Apache Beam, which is not installed: pip install 'gve_jax[synth,beam]'"
    ) from error


def _options(arguments: list[str]) -> PipelineOptions:
    options = PipelineOptions(arguments)
    options.view_as(SetupOptions).save_main_session = False
    return options


def make_parts(job: Job, arguments: list[str]) -> int:
    """Makes the parts that are missing; the number of all. The work folder and the input must be
    the same files on every worker."""
    missing, total = [], 0
    for number, entries in job.entries():
        total = number + 1
        if not job.parts.done(number):
            missing.append((number, entries))
    if missing:
        asyncio.run(_check(job))
        with beam.Pipeline(options=_options(arguments)) as pipeline:
            (
                pipeline
                | beam.Create(missing)
                | beam.Reshuffle()  # each part on its own: one that fails is done again elsewhere
                | beam.ParDo(_MakePart(job))
            )
    return total


async def _check(job: Job) -> None:
    async with job.workshop(None) as shop:
        if any(job.settings.pairs[name] for name in ASKED):
            await shop.server.check()


class _MakePart(beam.DoFn):
    def __init__(self, job: Job):
        self._job = job

    def setup(self) -> None:
        self._embedder = self._job.load_embedder()

    def process(self, element):
        number, entries = element
        if not self._job.parts.done(number):  # else made before the worker that made it was lost
            asyncio.run(self._make(number, entries))

    async def _make(self, number: int, entries: list) -> None:
        async with self._job.workshop(self._embedder) as shop:
            try:
                await make_part(number, entries, shop, self._job.parts)
            finally:
                add_usage(self._job.work, shop)


def write_splits(
    building: Path, parts: Parts, names: list[str], total: int, arguments: list[str]
) -> None:
    """The parts' records -> the directory, written and shuffled by TFDS."""
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    generate = {split(name): lambda name=name: _Records(parts, name, total) for name in names}
    builder = Synthesized(generate=generate, data_dir=str(building / "tfds"))
    config = tfds.download.DownloadConfig(beam_options=_options(arguments), try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where it writes, for now
        builder.download_and_prepare(download_config=config)
    Path(builder.data_dir).rename(building / "pairs")


class Synthesized(tfds.core.GeneratorBasedBuilder):
    """Writes the directory of synthesized pairs.

    Args:
      generate: by split, what makes its transform of Apache Beam, of (key, record).
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


class _Records(beam.PTransform):
    """(id, record) of all pairs of a type."""

    def __init__(self, parts: Parts, name: str, total: int):
        super().__init__()
        self._parts, self._name, self._total = parts, name, total

    def expand(self, begin):
        return (
            begin
            | beam.Create(range(self._total))
            | beam.Reshuffle()
            | beam.FlatMap(_read, self._parts, self._name)
        )


def _read(number: int, parts: Parts, name: str) -> Iterator[tuple[str, dict]]:
    features = pair_features()
    for data in parts.records(number, name):
        record = features.deserialize_example_np(data)
        yield record["id"].decode(), record
