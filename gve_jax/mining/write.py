"""Chooses negatives by a rule and writes the pairs with them, in whole or not at all."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.media.item import Item
from gve_jax.mining.corpus import MiningCorpus
from gve_jax.mining.search import Found
from gve_jax.retrieval.negatives import Rule
from gve_jax.storage.files import write_json
from gve_jax.streams.writing import pair_info, write_sources

MANIFEST = "mining.json"
NEGATIVES = "negatives.jsonl"
EDGES = np.round(np.linspace(-1, 1, 41), 2)  # of the histograms of cosines
_REMEDY = "widen --ranks, or raise --share or lower --margin (none: no limit)"
LOST = ("query unreadable", "positive unreadable", "too few negatives")


@dataclass
class Tally:
    """What became of a source's pairs."""

    pairs: int = 0
    mined: int = 0
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOST, 0))
    positives: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    negatives: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of both scores, and of ranks

    def add(self, positive: float, scores: np.ndarray, ranks: np.ndarray) -> None:
        self.mined += 1
        self.positives += np.histogram(np.clip(positive, -1, 1), EDGES)[0]
        self.negatives += np.histogram(np.clip(scores, -1, 1), EDGES)[0]
        self.sums += positive, scores.mean(), ranks.mean()

    def told(self) -> dict:
        names = ("positive score", "negative score", "rank")
        means = [round(float(s) / self.mined, 6) if self.mined else None for s in self.sums]
        return {
            "pairs": self.pairs,
            "mined": self.mined,
            "lost": self.lost,
            "share with too few negatives": self.lost[LOST[2]] / max(1, self.pairs),
            "means": dict(zip(names, means, strict=True)),
            "positive scores": self.positives.tolist(),
            "negative scores": self.negatives.tolist(),
        }


def write_mined(
    output: Path,
    world: MiningCorpus,
    queries: Found,
    positives: Found,
    look: Callable[[str, int], tuple[np.ndarray, np.ndarray]],
    rule: Rule,
    settings: Mapping,
    advance: Callable[[int], None],
    max_lost_share: float,
) -> dict[str, dict]:
    """Writes OUTPUT and returns what became of each source.

    Args:
      look: a pair, by source and index, to its documents (numbers in the corpus) and their scores.
      settings: of the manifest, what was asked and what the vectors are of.
      advance: called for every pair.
      max_lost_share: of all pairs, those that may get too few negatives.

    Raises:
      UserError: more of them, or no pair that is left; a document that a pair cannot hold.
    """
    building = output.with_name(output.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    tallies = {name: Tally() for name in world.query}
    try:
        with open(building / NEGATIVES, "w", encoding="utf-8") as told:
            records = {
                name: _records(
                    world, name, queries, positives, look, rule, tallies[name], told, advance
                )
                for name in world.query
            }
            info = pair_info(
                "mined", "Training pairs with mined hard negatives; see README.md.", building
            )
            counts = write_sources(building / "pairs", info, records)
        few, total = (
            sum(part(tally) for tally in tallies.values())
            for part in (lambda tally: tally.lost[LOST[2]], lambda tally: tally.pairs)
        )
        check_few(few, total, rule.count, max_lost_share)
        if not any(counts.values()):
            raise UserError(f"none of {total} pairs got {rule.count} negatives: {_REMEDY}")
        os.replace(building / NEGATIVES, building / "pairs" / NEGATIVES)
        sources = {name: tally.told() for name, tally in tallies.items()}
        edges = {"edges of the histograms": EDGES.tolist()}
        (building / "pairs" / "README.md").write_text(card(output.name, sources, settings))
        write_json(building / "pairs" / MANIFEST, dict(settings) | edges | {"sources": sources})
        os.rename(building / "pairs", output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return sources


def check_few(few: int, pairs: int, negatives: int, max_lost_share: float) -> None:
    """UserError where more than a share of the pairs got fewer negatives than were asked for."""
    if few > max_lost_share * pairs:
        raise UserError(
            f"{few} of {pairs} pairs got fewer than {negatives} negatives, above "
            f"--max-lost-share {max_lost_share:g}: {_REMEDY}"
        )


def _records(world, name, queries, positives, look, rule, tally, told, advance) -> Iterator[dict]:
    source = zlib.crc32(name.encode())
    for index, (query, positive) in enumerate(
        zip(world.query[name], world.positive[name], strict=True)
    ):
        tally.pairs += 1
        advance(1)
        rows = queries.row[query], positives.row[positive]
        if min(rows) < 0:
            tally.lost[LOST[0] if rows[0] < 0 else LOST[1]] += 1
            continue
        own = float(queries.vectors[rows[:1]][0] @ positives.vectors[rows[1:]][0])
        documents, scores = look(name, index)
        at = rule.pick(scores, own, (source, index))
        if len(at) < rule.count:
            tally.lost[LOST[2]] += 1
            continue
        tally.add(own, scores[at], at + 1)
        (pair,) = world.sources.read(name, np.array([index]))
        chosen = [int(document) for document in documents[at]]
        line = {
            "source": name,
            "id": pair["id"],
            "positive_score": round(own, 6),
            "negatives": [
                {"id": world.corpus.ids[d], "score": round(float(s), 6), "rank": int(r)}
                for d, s, r in zip(chosen, scores[at], at + 1, strict=True)
            ],
        }
        told.write(json.dumps(line) + "\n")
        yield {
            "id": pair["id"],
            "task": pair["task"],
            "query": stored(pair["query"], pair["id"]),
            "positive": stored(pair["positive"], pair["id"]),
            "negatives": [
                stored(world.corpus.read(d, d + 1)[0], world.corpus.ids[d]) for d in chosen
            ],
        }


def stored(item: Item, id: str) -> dict:
    """An item as records hold it, its media's bytes inside.

    Raises:
      UserError: frames, or sampling options of its own, which a record has no field for.
    """
    options = [
        key
        for key, value in vars(item).items()
        if value not in (None, "forward") and key not in ("text", "instruction", "image", "video")
    ]
    if options:
        raise UserError(f"document {id!r} has {options[0]}, which a pair cannot hold")
    media = {}
    for key in ("image", "video"):
        medium = getattr(item, key)
        if isinstance(medium, str) and not os.path.isdir(medium):
            medium = Path(medium).read_bytes()
        if not isinstance(medium, bytes | None):
            raise UserError(f"document {id!r} is a video of frames, which a pair cannot hold")
        media[key] = medium or b""
    return {"text": item.text or "", "instruction": item.instruction or "", **media}


def card(name: str, sources: Mapping[str, dict], settings: Mapping) -> str:
    """The README.md of a directory."""
    asked = settings["asked"]
    head = ["source", "pairs", "mined", *LOST, "positive's score", "negatives' score", "rank"]
    lines = [
        f"# {name}\n",
        f"Training pairs with {asked['negatives']} mined hard negatives each, as "
        "`gve_jax.streams.pairs` reads them: ArrayRecord through TFDS, one split a source, media "
        f"in the records. `{NEGATIVES}` names each pair's negatives with score and rank, "
        f"`{MANIFEST}` has histograms of the scores.\n",
        "| " + " | ".join(head) + " |",
        "| --- |" + " ---: |" * (len(head) - 1),
    ]
    for source, told in sorted(sources.items()):
        counts = [told["pairs"], told["mined"], *(told["lost"][why] for why in LOST)]
        cells = [source, *(f"{n:,}" for n in counts), *map(number, told["means"].values())]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "What was asked:\n",
        *(f"    {key} = {value}" for key, value in asked.items() if key != "files"),
    ]
    return "\n".join(lines) + "\n"


def number(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.3f}"
