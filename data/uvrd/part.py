"""Runs all stages on one part of the videos and stores the result atomically."""

import asyncio
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data.uvrd import pictures, text
from data.uvrd.client import ModelClient
from data.uvrd.compose import Composed, Video, compose
from data.uvrd.pictures import Clip, Decoder
from data.uvrd.settings import TYPES, Settings
from data.uvrd.similarity import Similarity
from data.uvrd.source import Entry
from gve_jax.media.item import Item, source_name
from gve_jax.media.quarantine import failure
from gve_jax.media.sandbox import Failure
from gve_jax.storage.artifacts import build_folder
from gve_jax.storage.files import write_json
from gve_jax.streams.pairs import pair_features
from gve_jax.streams.rows import Reject
from gve_jax.streams.writing import encoder

STAGES = ("videos", "captions", "decoded", "moving", "similar", "enriched")
_BLOCK = 64  # records read at a time


@dataclasses.dataclass
class Tally:
    """Counts of videos by stage, of rejects by reason and of pairs; distributions of scores."""

    funnel: Counter = dataclasses.field(default_factory=Counter)
    rejects: Counter = dataclasses.field(default_factory=Counter)  # by "stage: reason"
    asked: Counter = dataclasses.field(default_factory=Counter)  # requested pairs, by type
    pairs: Counter = dataclasses.field(default_factory=Counter)  # pairs written, by type
    scores: dict[str, Counter] = dataclasses.field(default_factory=dict)  # histograms, by score
    words: dict[str, Counter] = dataclasses.field(default_factory=dict)  # query lengths, by type
    kinds: Counter = dataclasses.field(default_factory=Counter)  # "profile ..." and "caption ..."

    def measure(self, name: str, value: float, step: float) -> None:
        key = f"{math.floor(value / step) * step:.6g}"
        self.scores.setdefault(name, Counter())[key] += 1

    def to_json(self) -> dict:
        return json.loads(json.dumps(vars(self)))

    def add(self, other: dict) -> None:
        """Adds the counts of another tally's `to_json`."""
        for name in ("funnel", "rejects", "asked", "pairs", "kinds"):
            getattr(self, name).update(other[name])
        for name in ("scores", "words"):
            for key, counts in other[name].items():
                getattr(self, name).setdefault(key, Counter()).update(counts)


@dataclasses.dataclass
class StageContext:
    """What the stages share. Without an `embedder`, captions are not compared with videos."""

    settings: Settings
    client: ModelClient
    decoder: Decoder
    embedder: Similarity | None
    threads: ThreadPoolExecutor

    async def run(self, function: Callable, *arguments):
        """Runs a blocking function in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, *arguments)


class Parts:
    """Finished parts in a folder, one subfolder each: `pairs.array_record` holds the records,
    `history.jsonl` a line per record, then `rejects.jsonl` and `part.json`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}"

    def is_done(self, number: int) -> bool:
        return (self.path(number) / "part.json").exists()

    def remove_retryable(self) -> None:
        """Removes parts with unreadable videos that may be readable now, to make them again; the
        model's answers stay in the cache."""
        for path in self.folder.glob("*/part.json"):
            if any(line.get("retry") for line in json.loads(path.read_text())["quarantined"]):
                shutil.rmtree(path.parent)

    def summary(self, number: int) -> dict:
        """The part's tally, its number of records by type, and its quarantine records."""
        return json.loads((self.path(number) / "part.json").read_text())

    def records(self, number: int, type: str) -> Iterator[bytes]:
        """Serialized records of a type, in order, read a block at a time."""
        first = 0
        for name, count in self.summary(number)["runs"]:
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
        pairs: Sequence[tuple[str, dict, dict]],
        rejects: Sequence[dict],
        tally: Tally,
        quarantined: Sequence[dict],
    ) -> None:
        """Orders pairs (type, record, history) by type; the order within a type is kept.

        Does nothing where another worker has written the same part.
        """

        def build(folder: Path) -> bool:
            self._write(folder, pairs, rejects, tally, quarantined)
            return True

        build_folder(self.path(number), build, lambda: self.is_done(number))

    def _write(self, building: Path, pairs, rejects, tally: Tally, quarantined) -> None:
        building.mkdir()
        encode = encoder(pair_features())
        writer = ArrayRecordWriter(str(building / "pairs.array_record"), "group_size:1")
        runs = []
        with open(building / "history.jsonl", "w", encoding="utf-8") as history:
            for name in TYPES:
                chosen = [pair for pair in pairs if pair[0] == name]
                runs.append((name, len(chosen)))
                for _, record, line in chosen:
                    writer.write(encode(record))
                    history.write(json.dumps(line) + "\n")
        writer.close()
        with open(building / "rejects.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in rejects)
        summary = tally.to_json() | {"runs": runs, "quarantined": list(quarantined)}
        write_json(building / "part.json", summary)


async def make_part(
    number: int,
    entries: Sequence[Entry],
    ctx: StageContext,
    parts: Parts,
    tick: Callable[[int], object] = lambda count: None,
) -> Tally:
    """Runs all stages on `entries` and stores the result as part `number`.

    Raises:
      UserError: the server failed too often; only the answers in the cache remain.
    """
    tally, rejects, quarantined = Tally(), [], []

    def reject(entry: Entry, stage: str, reason: str, detail: str) -> None:
        tally.rejects[f"{stage}: {reason}"] += 1
        line = {"video": entry.id, "path": entry.name, "stage": stage, "reason": reason}
        rejects.append(line | {"detail": _short(detail)})
        if stage in STAGES:
            tick(1)

    tally.funnel["videos"] = len(entries)
    accepted = []
    for entry in entries:  # captions first: they are the cheapest filter
        try:
            if entry.problem:
                raise Reject(*entry.problem)
            accepted.append((entry, text.accept(entry.caption, ctx.settings.text)))
        except Reject as why:
            reject(entry, "captions", why.reason, why.detail)
    tally.funnel["captions"] = len(accepted)

    decoded = await asyncio.gather(*(ctx.run(_decode, entry, ctx) for entry, _ in accepted))
    videos = []
    for (entry, caption), result in zip(accepted, decoded, strict=True):
        if isinstance(result, Failure):
            reject(entry, "decoded", "unreadable video", result.reason)
            item = Item(video=entry.video)
            quarantined.append(failure(entry.id, item, *dataclasses.astuple(result)))
        elif isinstance(result, Reject):
            reject(entry, "decoded", result.reason, result.detail)
        else:
            tally.funnel["decoded"] += 1
            data, digest, clip, motion = result
            tally.measure("motion", motion, 0.002)
            if motion < ctx.settings.video.least_motion:
                reject(entry, "moving", "static video", f"motion {motion:.4f}")
                continue
            videos.append(Video(entry, data, digest, caption, clip, {"motion": motion}))
    tally.funnel["moving"] = len(videos)

    videos = await _filter_by_similarity(videos, ctx, tally, reject)
    tally.funnel["similar"] = len(videos)

    async def compose_one(video: Video) -> Composed:
        composed = await compose(video, ctx.client, ctx.decoder, ctx.settings, ctx.run)
        tick(1)
        return composed

    # Waits for all videos even if one fails, so that the answers of the others reach the cache.
    results = await asyncio.gather(*map(compose_one, videos), return_exceptions=True)
    pairs = []
    for video, composed in zip(videos, results, strict=True):
        if isinstance(composed, BaseException):
            raise composed
        pairs += composed.pairs
        tally.funnel["enriched"] += bool(composed.pairs)
        for name, reason, detail in composed.rejects:
            tally.asked[name] += 1
            reject(video.entry, name, reason, detail)
    for name, record, history in pairs:
        tally.asked[name] += 1
        tally.pairs[name] += 1
        if record["query"]["text"]:
            tally.words.setdefault(name, Counter())[str(history["words"])] += 1
        for key in ("profile", "caption"):
            if name == "T2V" and key in history:
                tally.kinds[f"{key} {history[key]}"] += 1
    await ctx.run(parts.write, number, pairs, rejects, tally, quarantined)
    return tally


def _decode(entry: Entry, ctx: StageContext):
    """Returns (bytes, digest, frames, motion) of a video, or a Failure or Reject."""
    began, rules = time.perf_counter(), ctx.settings.video
    try:
        data = entry.data()
    except OSError as error:
        seconds = time.perf_counter() - began
        return Failure(f"{entry.name}: {error.strerror}", seconds, retry=True)
    if len(data) > rules.most_bytes:
        return Reject("file too large", f"{len(data)} bytes")
    clip: Clip | Failure = ctx.decoder.decode(data)
    if isinstance(clip, Failure):
        return dataclasses.replace(clip, reason=clip.reason.replace(source_name(data), entry.name))
    if not rules.least_seconds <= clip.seconds <= rules.most_seconds:
        return Reject("video too short or too long", f"{clip.seconds:.2f} s")
    digest = hashlib.sha256(data).hexdigest()
    return data, digest, clip, pictures.motion(clip.frames)


async def _filter_by_similarity(
    videos: list[Video], ctx: StageContext, tally: Tally, reject
) -> list[Video]:
    """Videos without a caption, or whose caption is similar enough."""
    captioned = [video for video in videos if video.caption]
    if ctx.embedder is None or not captioned:
        return videos
    texts, files = [video.caption for video in captioned], [video.data for video in captioned]
    similarities = await ctx.run(ctx.embedder, texts, files)
    cosines = dict(zip(map(id, captioned), similarities, strict=True))
    kept = []
    for video in videos:
        cosine = cosines.get(id(video))
        if cosine is None:
            kept.append(video)
        elif np.isnan(cosine):
            reject(video.entry, "similar", "caption or video the embedder cannot read", "")
        else:
            tally.measure("similarity", cosine, 0.05)
            if cosine < ctx.settings.similarity:
                reject(video.entry, "similar", "caption unlike its video", f"cosine {cosine:.3f}")
            else:
                scores = video.scores | {"similarity": float(cosine)}
                kept.append(dataclasses.replace(video, scores=scores))
    return kept


def _short(detail: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(detail.split()))[:200]
