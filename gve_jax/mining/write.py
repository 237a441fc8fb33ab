"""Chooses negatives by a rule and writes the pairs with them."""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.media.item import Item
from gve_jax.mining.corpus import MiningCorpus
from gve_jax.mining.search import ItemVectors
from gve_jax.retrieval.negatives import Rule
from gve_jax.storage.artifacts import build_folder
from gve_jax.storage.files import write_json
from gve_jax.streams.pairs import item_fields
from gve_jax.streams.writing import pair_info, write_sources

MANIFEST = "mining.json"
NEGATIVES = "negatives.jsonl"
EDGES = np.round(np.linspace(-1, 1, 41), 2)  # of the histograms of cosines
_REMEDY = "widen --ranks, or raise --share or lower --margin (none: no limit)"
# Why a pair is left out.
LOST = QUERY_UNREADABLE, POSITIVE_UNREADABLE, TOO_FEW = (
    "query unreadable",
    "positive unreadable",
    "too few negatives",
)


@dataclass
class Tally:
    """Counts of a source's pairs, and histograms of the scores of those that were mined."""

    pairs: int = 0
    mined: int = 0
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOST, 0))
    positives: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    negatives: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    sums: np.ndarray = field(
        default_factory=lambda: np.zeros(3)
    )  # of positive scores, mean negative scores and mean ranks

    def add(self, positive: float, scores: np.ndarray, ranks: np.ndarray) -> None:
        self.mined += 1
        self.positives += np.histogram(np.clip(positive, -1, 1), EDGES)[0]
        self.negatives += np.histogram(np.clip(scores, -1, 1), EDGES)[0]
        self.sums += positive, scores.mean(), ranks.mean()

    def to_json(self) -> dict:
        names = ("positive score", "negative score", "rank")
        means = [round(float(s) / self.mined, 6) if self.mined else None for s in self.sums]
        return {
            "pairs": self.pairs,
            "mined": self.mined,
            "lost": self.lost,
            "share with too few negatives": self.lost[TOO_FEW] / max(1, self.pairs),
            "means": dict(zip(names, means, strict=True)),
            "positive scores": self.positives.tolist(),
            "negative scores": self.negatives.tolist(),
        }


def write_mined(
    output: Path,
    mining: MiningCorpus,
    queries: ItemVectors,
    positives: ItemVectors,
    find: Callable[[str, int], tuple[np.ndarray, np.ndarray]],
    rule: Rule,
    settings: Mapping,
    advance: Callable[[int], None],
    max_lost_share: float,
) -> dict[str, dict]:
    """Writes OUTPUT and returns each source's `Tally.to_json`.

    Args:
      find: returns the ranked documents (numbers in the corpus) and their scores for a pair, given
        by source and index.
      settings: fields of the manifest.
      advance: called with 1 for every pair.
      max_lost_share: the share of all pairs that may get too few negatives.

    Raises:
      UserError: the share is exceeded; no pair got enough negatives; a document that a pair cannot
        hold.
    """

    def build(pairs: Path) -> dict[str, dict]:
        tallies = {name: Tally() for name in mining.query}
        negatives = pairs.parent / NEGATIVES
        with open(negatives, "w", encoding="utf-8") as log:
            records = {
                name: _records(mining, name, queries, positives, find, rule, tally, log, advance)
                for name, tally in tallies.items()
            }
            description = "Training pairs with mined hard negatives; see README.md."
            counts = write_sources(pairs, pair_info("mined", description, pairs), records)
        few = sum(tally.lost[TOO_FEW] for tally in tallies.values())
        total = sum(tally.pairs for tally in tallies.values())
        check_few(few, total, rule.count, max_lost_share)
        if not any(counts.values()):
            raise UserError(f"no pair of {total} got {rule.count} negatives: {_REMEDY}")
        os.replace(negatives, pairs / NEGATIVES)
        sources = {name: tally.to_json() for name, tally in tallies.items()}
        edges = {"edges of the histograms": EDGES.tolist()}
        (pairs / "README.md").write_text(card(output.name, sources, settings))
        write_json(pairs / MANIFEST, dict(settings) | edges | {"sources": sources})
        return sources

    return build_folder(output, build, lambda: None)


def check_few(few: int, pairs: int, negatives: int, max_lost_share: float) -> None:
    """Raises UserError where more than a share of the pairs got too few negatives."""
    if few > max_lost_share * pairs:
        raise UserError(
            f"{few} of {pairs} pairs got fewer than {negatives} negatives, above "
            f"--max-lost-share {max_lost_share:g}: {_REMEDY}"
        )


def _records(mining, name, queries, positives, find, rule, tally, log, advance) -> Iterator[dict]:
    source = zlib.crc32(name.encode())
    for index, (query, positive) in enumerate(
        zip(mining.query[name], mining.positive[name], strict=True)
    ):
        tally.pairs += 1
        advance(1)
        rows = queries.row[query], positives.row[positive]
        if min(rows) < 0:
            tally.lost[QUERY_UNREADABLE if rows[0] < 0 else POSITIVE_UNREADABLE] += 1
            continue
        score = float(queries.vectors[rows[:1]][0] @ positives.vectors[rows[1:]][0])
        documents, scores = find(name, index)
        picked = rule.pick(scores, score, (source, index))
        if len(picked) < rule.count:
            tally.lost[TOO_FEW] += 1
            continue
        tally.add(score, scores[picked], picked + 1)
        (pair,) = mining.sources.read(name, np.array([index]))
        chosen = [int(document) for document in documents[picked]]
        line = {
            "source": name,
            "id": pair["id"],
            "positive_score": round(score, 6),
            "negatives": [
                {"id": mining.documents.ids[d], "score": round(float(s), 6), "rank": int(r)}
                for d, s, r in zip(chosen, scores[picked], picked + 1, strict=True)
            ],
        }
        log.write(json.dumps(line) + "\n")
        yield {
            "id": pair["id"],
            "task": pair["task"],
            "query": stored(pair["query"], pair["id"]),
            "positive": stored(pair["positive"], pair["id"]),
            "negatives": [
                stored(mining.documents.read(d, d + 1)[0], mining.documents.ids[d]) for d in chosen
            ],
        }


def stored(item: Item, id: str) -> dict:
    """Returns the fields of a record for an item, with the bytes of its media.

    Raises:
      UserError: frames or sampling options, for which a record has no field.
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
    return item_fields(item.text or "", instruction=item.instruction or "", **media)


def card(name: str, sources: Mapping[str, dict], settings: Mapping) -> str:
    """The README.md of a directory of mined pairs."""
    asked = settings["asked"]
    head = ["source", "pairs", "mined", *LOST, "positive score", "negative score", "rank"]
    lines = [
        f"# {name}\n",
        f"Training pairs with {asked['negatives']} mined hard negatives each, as "
        "`gve_jax.streams.pairs` reads them: ArrayRecord through TFDS, one split a source, media "
        f"in the records. `{NEGATIVES}` names each pair's negatives with score and rank, "
        f"`{MANIFEST}` has histograms of the scores.\n",
        "| " + " | ".join(head) + " |",
        "| --- |" + " ---: |" * (len(head) - 1),
    ]
    for source, tally in sorted(sources.items()):
        counts = [tally["pairs"], tally["mined"], *(tally["lost"][why] for why in LOST)]
        cells = [source, *(f"{n:,}" for n in counts), *map(format_mean, tally["means"].values())]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Options:\n",
        *(f"    {key} = {value}" for key, value in asked.items() if key != "files"),
    ]
    return "\n".join(lines) + "\n"


def format_mean(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.3f}"
