"""Runs all parts of an input, in this process or with Beam, and writes the output directory."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.uvrd import card, page, prompts
from data.uvrd.client import ModelClient, Usage
from data.uvrd.compose import PROMPTS, SOURCE
from data.uvrd.part import Parts, StageContext, Tally, make_part
from data.uvrd.pictures import Decoder
from data.uvrd.settings import TYPES, Settings
from data.uvrd.similarity import Similarity
from data.uvrd.source import Entry, is_folder_of_videos, read_entries, stamps
from gve_jax.errors import UserError
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.artifacts import REMEDY, build_folder, read_manifest
from gve_jax.storage.files import check_or_write_manifest, write_json
from gve_jax.storage.locks import lock_for_process
from gve_jax.streams.writing import pair_info, write_encoded

VERSION = "1"  # raised when the same answers give other pairs
MANIFEST = "synthesis.json"
DESCRIPTION = "Training pairs, synthesized by data.uvrd; see README.md beside this file."
LOGS = ("history.jsonl", "rejects.jsonl")  # a line per pair, a line per reject


@dataclasses.dataclass(frozen=True)
class Job:
    """The arguments of one synthesis; can be pickled for Beam's workers.

    Attributes:
      source, root: the input, and the folder that its relative paths start from.
      output: the directory to write; `OUTPUT.work` beside it holds finished parts.
      server, model: base URL of the server, and the model's name on it.
      embedder: a GVE's directory or Hub id; "" to not compare captions.
      cache: folder of answers and vectors, which several outputs may share.
    """

    source: Path
    output: Path
    server: str
    model: str
    settings: Settings
    embedder: str = ""
    root: Path | None = None
    cache: Path | None = None
    license: str = ""
    command: str = ""

    @property
    def work(self) -> Path:
        return self.output.with_name(self.output.name + ".work")

    @property
    def parts(self) -> Parts:
        return Parts(self.work / "parts")

    def entries(self) -> Iterator[tuple[int, list[Entry]]]:
        """The input, divided into numbered parts."""
        entries = iter(read_entries(self.source, self.root))
        chunks = iter(lambda: list(itertools.islice(entries, self.settings.run.part)), [])
        yield from enumerate(chunks)

    def identity(self) -> dict:
        """Everything that decides what the output holds, as JSON values."""
        fields = {
            "version": VERSION,
            "input": stamps(self.source),
            "model": self.model,
            "embedder": self.embedder,
            "prompts": prompts.records(),
            "settings": self.settings.identity(),
        }
        return json.loads(json.dumps(fields))

    def client(self) -> ModelClient:
        cache = self.cache or self.work / "cache"
        return ModelClient(self.server, self.model, self.settings, cache / "answers")

    @contextlib.asynccontextmanager
    async def context(self, embedder: Similarity | None) -> AsyncIterator[StageContext]:
        """What `make_part` needs; appends the client's usage to `usage.jsonl` at the end."""
        decoder = Decoder(self.settings)
        threads = ThreadPoolExecutor(self.settings.run.decoders + 2)
        try:
            async with self.client() as client:
                try:
                    yield StageContext(self.settings, client, decoder, embedder, threads)
                finally:
                    line = dataclasses.asdict(client.usage) | {"faults": client.faults}
                    with open(self.work / "usage.jsonl", "a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
        finally:
            threads.shutdown(cancel_futures=True)
            decoder.close()

    async def check_server(self) -> None:
        """Raises UserError if a type of pairs needs the model and the server does not have it."""
        if any(self.settings.pairs[name] for name in PROMPTS):
            async with self.client() as client:
                await client.check()

    def load_embedder(self) -> Similarity | None:
        if not self.embedder:
            return None
        from gve_jax import GVE

        model = GVE.from_pretrained(self.embedder, limits=self.settings.limits)
        return Similarity(model, (self.cache or self.work / "cache") / "vectors")


def synthesize(
    job: Job,
    tick: Callable[[int], object] = lambda count: None,
    embedder: Similarity | None = None,
    beam: list[str] | None = None,
) -> dict:
    """Writes `job.output` and returns its manifest; resumes from finished parts.

    Args:
      tick: called with the number of further videos that are done.
      embedder: used instead of the one that `job.embedder` names.
      beam: options of Apache Beam; None to run in this process.

    Raises:
      UserError: an unusable input or server, an output or work folder of another command, too many
        unreadable videos, too many failed calls.
    """
    if is_folder_of_videos(job.source) and job.settings.text.require:
        raise UserError(
            f"{job.source}: videos without captions; give a .jsonl file of them, or "
            "--config.text.require=False"
        )
    identity = job.identity()
    if (manifest := _read_manifest(job.output, identity)) is not None:
        return manifest
    with lock_for_process(job.work):
        check_or_write_manifest(job.work / "asked.json", identity, REMEDY)
        job.parts.remove_retryable()
        if beam is not None:
            from data.uvrd import beam as pipeline  # UserError where Beam is not installed

            total = pipeline.make_parts(job, beam)
        else:
            total = asyncio.run(_make_parts(job, embedder or job.load_embedder(), tick))
        return _assemble(job, identity, total, beam)


async def _make_parts(job: Job, embedder: Similarity | None, tick: Callable) -> int:
    """Makes the missing parts, `run.ahead` at once; returns the number of all parts."""
    parts, total, checked = job.parts, 0, False
    tasks: set[asyncio.Task] = set()
    async with job.context(embedder) as ctx:
        try:
            for number, entries in job.entries():
                total = number + 1
                if parts.is_done(number):
                    tick(len(entries))
                    continue
                if not checked:
                    await job.check_server()
                    checked = True
                while len(tasks) >= job.settings.run.ahead:
                    tasks = await _wait_for_one(tasks)
                tasks.add(asyncio.create_task(make_part(number, entries, ctx, parts, tick)))
            while tasks:
                tasks = await _wait_for_one(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return total


async def _wait_for_one(tasks: set[asyncio.Task]) -> set[asyncio.Task]:
    """Returns the tasks that are still running; raises what a finished one has raised."""
    done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return running


def read_usage(work: Path) -> tuple[Usage, dict[str, int]]:
    """Sums over all runs: the usage, and the faults of calls and answers by reason."""
    usage, faults = Usage(), {}
    for line in open(work / "usage.jsonl", encoding="utf-8"):
        record = json.loads(line)
        for reason, count in record.pop("faults").items():
            faults[reason] = faults.get(reason, 0) + count
        usage.add(record)
    return usage, faults


def _read_manifest(output: Path, identity: dict) -> dict | None:
    """The manifest of a finished output; None where there is none yet."""
    return read_manifest(output, MANIFEST, "a synthesis", identity, section="asked")


def _assemble(job: Job, identity: dict, total: int, beam: list[str] | None) -> dict:
    """Joins the parts into a directory of pairs with logs, dataset card and page."""
    manifest = build_folder(
        job.output,
        lambda pairs: _join_parts(job, pairs, identity, total, beam),
        lambda: _read_manifest(job.output, identity),
    )
    shutil.rmtree(job.parts.folder)  # the cache stays
    return manifest


def _join_parts(job: Job, pairs: Path, identity: dict, total: int, beam: list[str] | None) -> dict:
    parts, tally, failures = job.parts, Tally(), []
    for number in range(total):
        summary = parts.summary(number)
        tally.add(summary)
        failures += summary["quarantined"]
    (job.work / "quarantine.jsonl").unlink(missing_ok=True)  # of an earlier attempt
    quarantine = Quarantine(job.work / "quarantine.jsonl", job.settings.run.max_bad_share)
    for line in failures:
        quarantine.record(**line)
    quarantine.check(tally.funnel["videos"])
    names = [name for name in TYPES if tally.pairs[name]]
    if not names:
        rejects = ", ".join(f"{count} {why!r}" for why, count in tally.rejects.most_common(5))
        raise UserError(f"{job.source}: no pairs; rejected: {rejects}")
    if beam is not None:
        from data.uvrd import beam as pipeline

        pipeline.write_splits(pairs, parts, names, total, beam)
    else:
        info = pair_info("synthesized", DESCRIPTION, pairs)
        splits = {split_name(name): _records(parts, total, name) for name in names}
        write_encoded(pairs, info, splits)
    for name in LOGS:
        with open(pairs / name, "wb") as file:
            for number in range(total):
                file.write((parts.path(number) / name).read_bytes())
    if quarantine.count:
        shutil.copy(quarantine.path, pairs / "quarantine.jsonl")
    usage, faults = read_usage(job.work)
    calls = job.settings.calls
    manifest = {
        "asked": identity,
        "tally": tally.to_json(),
        "usage": dataclasses.asdict(usage),
        "faults": faults,
        "cost": usage.cost(calls.price_in, calls.price_out),
    }
    write_json(pairs / MANIFEST, manifest)
    readme = card.text(job.output.name, manifest, job.license, job.command)
    (pairs / "README.md").write_text(readme, encoding="utf-8")
    page.write(pairs, manifest)
    return manifest


def split_name(type: str) -> str:
    return f"{type}_{SOURCE}"


def _records(parts: Parts, total: int, type: str) -> Iterator[bytes]:
    for number in range(total):
        yield from parts.records(number, type)
