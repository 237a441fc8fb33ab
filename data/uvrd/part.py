"""All stages over one part of the videos, and what is kept of it: whole, or not at all."""

import asyncio
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data.pairs.rows import Reject
from data.uvrd import pictures, text
from data.uvrd.compose import Made, Video, compose
from data.uvrd.pictures import Clip, Decoder
from data.uvrd.server import Server
from data.uvrd.settings import TYPES, Settings
from data.uvrd.similarity import Similarity
from data.uvrd.source import Entry
from gve_jax.media.isolation import Failure
from gve_jax.media.item import Item, source_name
from gve_jax.media.quarantine import failure
from gve_jax.storage.files import write_json
from gve_jax.streams.pairs import pair_features
from gve_jax.streams.writing import encoder

STAGES = ("videos", "captions", "decoded", "moving", "similar", "enriched")
_BLOCK = 64  # records read at a time


@dataclasses.dataclass
class Tally:
    """What became of videos: how many passed each stage, why others did not, what was measured."""

    funnel: Counter = dataclasses.field(default_factory=Counter)
    rejects: Counter = dataclasses.field(default_factory=Counter)  # by "stage: reason"
    asked: Counter = dataclasses.field(default_factory=Counter)  # pairs, by type
    pairs: Counter = dataclasses.field(default_factory=Counter)
    scores: dict[str, Counter] = dataclasses.field(default_factory=dict)  # rounded, of all judged
    words: dict[str, Counter] = dataclasses.field(default_factory=dict)  # of queries, by type
    kinds: Counter = dataclasses.field(default_factory=Counter)  # "profile ..." and "caption ..."

    def measure(self, name: str, value: float, step: float) -> None:
        key = f"{math.floor(value / step) * step:.6g}"
        self.scores.setdefault(name, Counter())[key] += 1

    def told(self) -> dict:
        """As JSON has it, and `add` takes it."""
        return json.loads(json.dumps(vars(self)))

    def add(self, other: dict) -> None:
        for name in ("funnel", "rejects", "asked", "pairs", "kinds"):
            getattr(self, name).update(other[name])
        for name in ("scores", "words"):
            for key, counts in other[name].items():
                getattr(self, name).setdefault(key, Counter()).update(counts)


@dataclasses.dataclass
class Workshop:
    """What the stages share. `embedder` is None where captions are not compared."""

    settings: Settings
    server: Server
    decoder: Decoder
    embedder: Similarity | None
    threads: ThreadPoolExecutor

    async def run(self, function: Callable, *arguments):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, *arguments)


class Parts:
    """The finished parts below a folder, one folder each: `pairs.array_record` with all records,
    `history.jsonl` a line for each of them, `rejects.jsonl`, and `part.json`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}"

    def done(self, number: int) -> bool:
        return (self.path(number) / "part.json").exists()

    def forget_retryable(self) -> None:
        """Removes the parts that could not read a video which may be readable now, so that they are
        made again; the answers that they got are kept elsewhere."""
        for path in self.folder.glob("*/part.json"):
            told = json.loads(path.read_text())
            if any(line.get("retry") for line in told["quarantined"]):
                shutil.rmtree(path.parent)

    def told(self, number: int) -> dict:
        return json.loads((self.path(number) / "part.json").read_text())

    def records(self, number: int, type: str) -> Iterator[bytes]:
        """Serialized records of a type, in order; memory does not grow with the part."""
        first = 0
        for name, count in self.told(number)["runs"]:
            if name == type:
                break
            first += count
        reader = ArrayRecordReader(str(self.path(number) / "pairs.array_record"))
        try:
            for start in range(first, first + count, _BLOCK):
                yield from reader.read(list(range(start, min(start + _BLOCK, first + count))))
        finally:
            reader.close()

    def write(
        self,
        number: int,
        made: Sequence[tuple[str, dict, dict]],
        rejects: Sequence[dict],
        tally: Tally,
        quarantined: Sequence[dict],
    ) -> None:
        """Pairs are ordered by type, and within one as they came."""
        building = self.folder / f"{number:06}.{os.getpid()}.building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        encode = encoder(pair_features())
        writer = ArrayRecordWriter(str(building / "pairs.array_record"), "group_size:1")
        runs = []
        with open(building / "history.jsonl", "w", encoding="utf-8") as history:
            for name in TYPES:
                chosen = [pair for pair in made if pair[0] == name]
                runs.append((name, len(chosen)))
                for _, record, told in chosen:
                    writer.write(encode(record))
                    history.write(json.dumps(told) + "\n")
        writer.close()
        with open(building / "rejects.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in rejects)
        told = tally.told() | {"runs": runs, "quarantined": list(quarantined)}
        write_json(building / "part.json", told)
        if self.path(number).exists():  # another worker was given the same part, and was faster
            shutil.rmtree(building)
        else:
            os.rename(building, self.path(number))


async def make_part(
    number: int,
    entries: Sequence[Entry],
    shop: Workshop,
    parts: Parts,
    tick: Callable[[int], object] = lambda count: None,
) -> Tally:
    """Runs all stages over `entries` and keeps the result under `number`.

    Raises:
      UserError: the server gives up; nothing is kept then but the answers it has given.
    """
    tally, rejects, quarantined = Tally(), [], []

    def reject(entry: Entry, stage: str, reason: str, detail: str) -> None:
        tally.rejects[f"{stage}: {reason}"] += 1
        line = {"video": entry.id, "path": entry.name, "stage": stage, "reason": reason}
        rejects.append(line | {"detail": _short(detail)})
        if stage in STAGES:
            tick(1)

    tally.funnel["videos"] = len(entries)
    found = []
    for entry in entries:  # captions first: they cost nothing
        try:
            if entry.wrong:
                raise Reject(*entry.wrong)
            found.append((entry, text.accept(entry.caption, shop.settings.text)))
        except Reject as why:
            reject(entry, "captions", why.reason, why.detail)
    tally.funnel["captions"] = len(found)

    looks = await asyncio.gather(*(shop.run(_look, entry, shop) for entry, _ in found))
    videos = []
    for (entry, caption), seen in zip(found, looks, strict=True):
        if isinstance(seen, Failure):
            reject(entry, "decoded", "unreadable video", seen.reason)
            item = Item(video=entry.video)
            quarantined.append(failure(entry.id, item, *dataclasses.astuple(seen)))
        elif isinstance(seen, Reject):
            reject(entry, "decoded", seen.reason, seen.detail)
        else:
            tally.funnel["decoded"] += 1
            data, digest, clip, moved = seen
            tally.measure("motion", moved, 0.002)
            if moved < shop.settings.video.least_motion:
                reject(entry, "moving", "static video", f"motion {moved:.4f}")
                continue
            videos.append(Video(entry, data, digest, caption, clip, {"motion": moved}))
    tally.funnel["moving"] = len(videos)

    videos = await _similar(videos, shop, tally, reject)
    tally.funnel["similar"] = len(videos)

    async def one(video: Video) -> tuple[Video, Made]:
        made = await compose(video, shop.server, shop.decoder, shop.settings, shop.run)
        tick(1)
        return video, made

    # All are waited for even when one fails: the answers of the others are kept, not asked twice.
    results = await asyncio.gather(*map(one, videos), return_exceptions=True)
    made = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        video, found = result
        made += found.pairs
        tally.funnel["enriched"] += bool(found.pairs)
        for name, reason, detail in found.rejects:
            tally.asked[name] += 1
            reject(video.entry, name, reason, detail)
    for name, record, told in made:
        tally.asked[name] += 1
        tally.pairs[name] += 1
        if record["query"]["text"]:
            tally.words.setdefault(name, Counter())[str(told["words"])] += 1
        for key in ("profile", "caption"):
            if name == "T2V" and key in told:
                tally.kinds[f"{key} {told[key]}"] += 1
    await shop.run(parts.write, number, made, rejects, tally, quarantined)
    return tally


def _look(entry: Entry, shop: Workshop):
    """(bytes, digest, frames, motion) of a video; a Failure or a Reject if it has none."""
    began, rules = time.perf_counter(), shop.settings.video
    try:
        data = entry.data()
    except OSError as error:
        seconds = time.perf_counter() - began
        return Failure(f"{entry.name}: {error.strerror}", seconds, retry=True)
    if len(data) > rules.most_bytes:
        return Reject("file too large", f"{len(data)} bytes")
    clip: Clip | Failure = shop.decoder.whole(data)
    if isinstance(clip, Failure):
        return dataclasses.replace(clip, reason=clip.reason.replace(source_name(data), entry.name))
    if not rules.least_seconds <= clip.seconds <= rules.most_seconds:
        return Reject("video too short or too long", f"{clip.seconds:.2f} s")
    digest = hashlib.sha256(data).hexdigest()
    return data, digest, clip, pictures.motion(clip.frames)


async def _similar(videos: list[Video], shop: Workshop, tally: Tally, reject) -> list[Video]:
    told = [video for video in videos if video.caption]
    if shop.embedder is None or not told:
        return videos
    texts, files = [video.caption for video in told], [video.data for video in told]
    cosines = dict(zip(map(id, told), await shop.run(shop.embedder, texts, files), strict=True))
    kept = []
    for video in videos:
        cosine = cosines.get(id(video))
        if cosine is None:
            kept.append(video)
        elif np.isnan(cosine):
            reject(video.entry, "similar", "caption or video the embedder cannot read", "")
        else:
            tally.measure("similarity", cosine, 0.05)
            if cosine < shop.settings.similarity:
                reject(video.entry, "similar", "caption unlike its video", f"cosine {cosine:.3f}")
            else:
                scores = video.scores | {"similarity": float(cosine)}
                kept.append(dataclasses.replace(video, scores=scores))
    return kept


def _short(detail: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(detail.split()))[:200]
