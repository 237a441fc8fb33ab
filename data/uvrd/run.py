"""All parts of an input, on this machine or by Apache Beam, and the directory that they make."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.uvrd import card, page, prompts
from data.uvrd.compose import ASKED, SOURCE
from data.uvrd.part import Parts, Tally, Workshop, make_part
from data.uvrd.pictures import Decoder
from data.uvrd.server import Server, Usage
from data.uvrd.settings import TYPES, Settings
from data.uvrd.similarity import Similarity
from data.uvrd.source import Entry, is_folder_of_videos, read_entries, stamps
from gve_jax.errors import UserError
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.files import check_or_write_manifest, check_record, write_json
from gve_jax.storage.locks import lock_for_process
from gve_jax.streams.writing import pair_info, write_encoded

VERSION = "1"  # of what is made of the same answers
MANIFEST = "synthesis.json"
REMEDY = "remove it or use another --output"
DESCRIPTION = "Training pairs, synthesized by data.uvrd; see README.md beside this file."
SIDE = ("history.jsonl", "rejects.jsonl")  # a line a pair, a line a reject


@dataclasses.dataclass(frozen=True)
class Job:
    """One command; pickles, for workers elsewhere.

    Attributes:
      source, root: what videos are of, and the folder that their paths may not leave.
      output: the directory to make; `OUTPUT.work` beside it holds what a repeated command goes on
        from.
      server, model: whom to ask.
      embedder: a GVE's directory; "" compares no captions.
      cache: the folder of answers and vectors, which outputs may share.
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
        """The parts of the input by number."""
        found = read_entries(self.source, self.root)
        yield from enumerate(_chunks(found, self.settings.run.part))

    def asked(self) -> dict:
        """What another value of makes another output."""
        kept = {
            "version": VERSION,
            "input": stamps(self.source),
            "model": self.model,
            "embedder": self.embedder,
            "prompts": prompts.records(),
            "settings": self.settings.kept(),
        }
        return json.loads(json.dumps(kept))

    @contextlib.asynccontextmanager
    async def workshop(self, embedder: Similarity | None):
        cache, run = self.cache or self.work / "cache", self.settings.run
        server = Server(self.server, self.model, self.settings, cache / "answers")
        decoder = Decoder(self.settings)
        threads = ThreadPoolExecutor(run.decoders + 2)
        try:
            async with server:
                yield Workshop(self.settings, server, decoder, embedder, threads)
        finally:
            threads.shutdown(cancel_futures=True)
            decoder.close()

    def load_embedder(self) -> Similarity | None:
        if not self.embedder:
            return None
        from gve_jax import GVE

        model = GVE.from_pretrained(self.embedder, limits=self.settings.limits)
        return Similarity(model, (self.cache or self.work / "cache") / "vectors")


def _chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    entries = iter(entries)
    while chunk := list(itertools.islice(entries, size)):
        yield chunk


def synthesize(
    job: Job,
    tick: Callable[[int], object] = lambda count: None,
    embedder: Similarity | None = None,
    beam: list[str] | None = None,
) -> dict:
    """Makes `job.output`; returns its manifest. What was done before is not done again.

    Args:
      job: what is made.
      tick: called with the number of videos that are done.
      embedder: instead of the one that `job.embedder` names.
      beam: options of Apache Beam; None runs the parts in this process.

    Raises:
      UserError: a bad input or server; an output or a work folder of another command; too many
        videos that cannot be read, too many calls that fail.
    """
    if is_folder_of_videos(job.source) and job.settings.text.require:
        raise UserError(
            f"{job.source}: videos without captions; give a .jsonl file of them, or "
            "--config.text.require=False"
        )
    asked = job.asked()
    if (done := _done(job.output, asked)) is not None:
        return done
    with lock_for_process(job.work):
        return _synthesize(job, asked, tick, embedder, beam)


def _synthesize(job: Job, asked: dict, tick, embedder: Similarity | None, beam) -> dict:
    check_or_write_manifest(job.work / "asked.json", asked, REMEDY)
    job.parts.forget_retryable()
    if beam is not None:
        from data.uvrd import beam as pipeline  # says in one line when Beam is not installed

        total = pipeline.make_parts(job, beam)
    else:
        total = asyncio.run(_make_parts(job, embedder or job.load_embedder(), tick))
    return _assemble(job, asked, total, beam)


async def _make_parts(job: Job, embedder: Similarity | None, tick: Callable) -> int:
    """Makes what is missing, `run.ahead` parts at once; the number of parts."""
    parts, total = job.parts, 0
    checked = not any(job.settings.pairs[name] for name in ASKED)
    working: set[asyncio.Task] = set()
    async with job.workshop(embedder) as shop:
        try:
            for number, entries in job.entries():
                total = number + 1
                if parts.done(number):
                    tick(len(entries))
                    continue
                if not checked:
                    await shop.server.check()
                    checked = True
                while len(working) >= job.settings.run.ahead:
                    working = await _some(working)
                working.add(asyncio.create_task(make_part(number, entries, shop, parts, tick)))
            while working:
                working = await _some(working)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            add_usage(job.work, shop)
    return total


async def _some(working: set[asyncio.Task]) -> set[asyncio.Task]:
    done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return working


def add_usage(work: Path, shop: Workshop) -> None:
    """A line for every process that has asked the server."""
    line = dataclasses.asdict(shop.server.usage) | {"faults": shop.server.faults}
    with open(work / "usage.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def usage_of(work: Path) -> tuple[Usage, dict[str, int]]:
    """The sum over all runs, and why answers were not good at once."""
    usage, faults = Usage(), {}
    for line in open(work / "usage.jsonl", encoding="utf-8"):
        record = json.loads(line)
        for why, count in record.pop("faults").items():
            faults[why] = faults.get(why, 0) + count
        usage.add(record)
    return usage, faults


def _done(output: Path, asked: dict) -> dict | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        found = json.loads((output / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{output} exists and is no synthesis; use another --output") from None
    check_record(output, found.get("asked"), asked, REMEDY)
    return found


def _assemble(job: Job, asked: dict, total: int, beam: list[str] | None) -> dict:
    """The parts -> a directory of pairs with their history, the card and the page."""
    parts, tally, failures = job.parts, Tally(), []
    for number in range(total):
        told = parts.told(number)
        tally.add(told)
        failures += told["quarantined"]
    (job.work / "quarantine.jsonl").unlink(missing_ok=True)  # of an earlier try: parts say it all
    quarantine = Quarantine(job.work / "quarantine.jsonl", job.settings.run.max_bad_share)
    for line in failures:
        quarantine.record(**line)
    quarantine.check(tally.funnel["videos"])
    names = [name for name in TYPES if tally.pairs[name]]
    if not names:
        why = ", ".join(f"{count} {reason!r}" for reason, count in tally.rejects.most_common(5))
        raise UserError(f"{job.source}: no pair came of it; rejected: {why}")
    building = job.work / "building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    if beam is not None:
        from data.uvrd import beam as pipeline

        pipeline.write_splits(building, parts, names, total, beam)
    else:
        info = pair_info("synthesized", DESCRIPTION, building)
        splits = {split(name): _of_type(parts, total, name) for name in names}
        write_encoded(building / "pairs", info, splits)
    made = building / "pairs"
    for name in SIDE:
        with open(made / name, "wb") as file:
            for number in range(total):
                file.write((parts.path(number) / name).read_bytes())
    if quarantine.count:
        shutil.copy(quarantine.path, made / "quarantine.jsonl")
    usage, faults = usage_of(job.work)
    calls = job.settings.calls
    manifest = {
        "asked": asked,
        "tally": tally.told(),
        "usage": dataclasses.asdict(usage),
        "faults": faults,
        "cost": usage.cost(calls.price_in, calls.price_out),
    }
    write_json(made / MANIFEST, manifest)
    told = card.text(job.output.name, manifest, job.license, job.command)
    (made / "README.md").write_text(told, encoding="utf-8")
    page.write(made, manifest)
    if job.output.exists():
        job.output.rmdir()  # empty: `_done` has looked
    os.rename(made, job.output)
    shutil.rmtree(building)
    shutil.rmtree(parts.folder)  # the answers and vectors stay
    return manifest


def split(name: str) -> str:
    return f"{name}_{SOURCE}"


def _of_type(parts: Parts, total: int, name: str) -> Iterator[bytes]:
    for number in range(total):
        yield from parts.records(number, name)
