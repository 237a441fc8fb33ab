"""The import as an Apache Beam pipeline: many files at once, on one machine or many."""

import json
from collections.abc import Iterator
from pathlib import Path

from data.pairs.importer import Source, outcomes
from data.pairs.rows import read_rows
from gve_jax.errors import UserError, install_command

try:
    import apache_beam as beam
except ImportError as error:
    raise UserError(
        f"--beam needs Apache Beam, which is not installed: {install_command('beam')}"
    ) from error

RUNNER = "DirectRunner"


class Rows(beam.PTransform):
    """The (key, record) of a source; a line of JSON per pair goes into files at `log`."""

    def __init__(self, source: Source, log: str):
        super().__init__()
        self._source, self._log = source, log

    def expand(self, begin):
        source = self._source
        found = (
            begin
            | beam.Create([str(path) for path in source.files])
            | beam.Reshuffle()  # a worker a file
            | beam.FlatMap(_read)
            | beam.FlatMap(_convert, source).with_outputs("log", main="pairs")
        )
        found["log"] | "log" >> beam.io.WriteToText(self._log, num_shards=1)
        return found["pairs"]


def _read(file: str) -> Iterator[tuple]:
    return read_rows(Path(file))


def _convert(located: tuple, source: Source) -> Iterator:
    location, row = located
    for number, (record, line) in enumerate(outcomes(source, location, row)):
        yield beam.pvalue.TaggedOutput("log", json.dumps(line))
        if record is not None:
            yield f"{location}/{number}", record
