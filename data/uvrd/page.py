"""Writes samples.html: counts, distributions and samples of a synthesis, in one file without
external resources."""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2
import numpy as np

from data.uvrd import pictures
from data.uvrd.part import STAGES
from data.uvrd.settings import TYPES
from gve_jax.media.item import Item
from gve_jax.streams.pairs import PairSources

FILE = "samples.html"
SAMPLES = 3  # of each type
_FRAMES = 6  # of a video
_WIDTH, _HEIGHT = 240, 92  # of a histogram
_STAGE_TEXT = {
    "videos": "given",
    "captions": "caption accepted",
    "decoded": "decoded, length accepted",
    "moving": "not static",
    "similar": "caption like its video",
    "enriched": "at least one pair",
}


def write(directory: Path, manifest: dict, samples: int = SAMPLES) -> None:
    """Writes FILE into a directory of pairs from its manifest, records and history."""
    tally, usage = manifest["tally"], manifest["usage"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template("page.html").render(
        asked=manifest["asked"],
        tiles={
            "videos": f"{tally['funnel'].get('videos', 0):,}",
            "pairs": f"{sum(tally['pairs'].values()):,}",
            "model calls": f"{usage['calls']:,}",
            "from the cache": f"{usage['cached']:,}",
            "tokens in / out": f"{usage['prompt_tokens']:,} / {usage['completion_tokens']:,}",
            "cost": f"{manifest['cost']:,.2f}",
        },
        stages=[(_STAGE_TEXT[stage], tally["funnel"].get(stage, 0)) for stage in STAGES],
        types=[(t, n, tally["pairs"].get(t, 0)) for t in TYPES if (n := tally["asked"].get(t, 0))],
        rejects=sorted(tally["rejects"].items(), key=lambda entry: -entry[1]),
        histograms=list(_histograms(tally, manifest["asked"]["settings"])),
        shares=list(_shares(tally["kinds"])),
        samples=list(_samples(directory, samples)),
        percent=lambda part, of: f"{100 * part / of if of else 0:.2f}",
    )
    (directory / FILE).write_text(text, encoding="utf-8")


def _histograms(tally: Mapping, settings: Mapping) -> Iterator[dict]:
    for name, title, step, limit in (
        ("similarity", "cosine of caption and video", 0.05, settings["similarity"]),
        ("motion", "motion", 0.002, settings["video"]["least_motion"]),
    ):
        if name in tally["scores"]:
            counts = {float(key): count for key, count in tally["scores"][name].items()}
            yield _histogram(f"{title} (line: least)", counts, step, limit)
    for name in TYPES:
        if name in tally["words"]:
            counts = {int(key): count for key, count in tally["words"][name].items()}
            step = max(1, math.ceil((max(counts) - min(counts) + 1) / 30))
            binned: dict[float, int] = {}
            for key, count in counts.items():
                start = float(key // step * step)
                binned[start] = binned.get(start, 0) + count
            yield _histogram(f"{name}: words of the query", binned, step)


def _histogram(
    title: str, counts: Mapping[float, int], step: float, limit: float | None = None
) -> dict:
    """Pixel coordinates of a histogram whose bins start at the keys and are `step` wide."""
    low, high = min(counts), max(counts) + step
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    scale, most = _WIDTH / (high - low), max(counts.values())
    heights = {key: _HEIGHT * count / most for key, count in counts.items()}
    return {
        "title": title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "bars": [
            ((key - low) * scale, _HEIGHT - height, max(1.0, step * scale - 1), height)
            for key, height in heights.items()
        ],
        "limit": None if limit is None else (limit - low) * scale,
        "low": low,
        "high": high,
    }


def _shares(kinds: Mapping[str, int]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    for group in ("profile", "caption"):
        rows = [(key.split()[1], n) for key, n in sorted(kinds.items()) if key.startswith(group)]
        if rows:
            yield f"T2V by {group}", rows


def _samples(directory: Path, samples: int) -> Iterator[tuple[str, int, list[dict]]]:
    """(split, its size, evenly spaced pairs)."""
    sources = PairSources(directory)
    chosen = {}
    for name in sorted(sources.sizes, key=lambda name: TYPES.index(name.split("_")[0])):
        size = sources.sizes[name]
        rows = sorted({n * (size - 1) // max(1, samples - 1) for n in range(min(samples, size))})
        chosen[name] = sources.read(name, np.array(rows))
    ids = {pair["id"] for pairs in chosen.values() for pair in pairs}
    history = {}
    for line in open(directory / "history.jsonl", encoding="utf-8"):
        record = json.loads(line)
        if record["id"] in ids:
            history[record["id"]] = json.dumps(record, indent=1, ensure_ascii=False)
    with pictures.thumbnails(_FRAMES) as frames_of:

        def shown(item: Item) -> dict:
            media = {"image": item.image, "video": item.video}
            strips = [frames_of(kind, data) for kind, data in media.items() if data is not None]
            encoded = [[base64.b64encode(jpeg).decode() for jpeg in strip] for strip in strips]
            return {"text": item.text, "strips": encoded}

        for name, pairs in chosen.items():
            shown_pairs = [
                {
                    "id": pair["id"],
                    "query": shown(pair["query"]),
                    "positive": shown(pair["positive"]),
                    "history": history[pair["id"]],
                }
                for pair in pairs
            ]
            yield name, sources.sizes[name], shown_pairs
