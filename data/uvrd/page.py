"""samples.html: what came of a synthesis, to look at, in one file that loads nothing else."""

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from data.uvrd import pictures
from data.uvrd.part import STAGES
from data.uvrd.settings import TYPES
from gve_jax.media.item import Item
from gve_jax.streams.pairs import PairSources

FILE = "samples.html"
SAMPLES = 3  # of each type
_FRAMES = 6  # of a video
_STAGE_TEXT = {
    "videos": "given",
    "captions": "caption accepted",
    "decoded": "decoded, length accepted",
    "moving": "not static",
    "similar": "caption like its video",
    "enriched": "at least one pair",
}


def write(directory: Path, manifest: dict, samples: int = SAMPLES) -> None:
    """Writes FILE into a directory of pairs, of its manifest, its records and its history."""
    asked, tally, usage = manifest["asked"], manifest["tally"], manifest["usage"]
    settings = asked["settings"]
    pairs = sum(tally["pairs"].values())
    prompts = ", ".join(f"{p['name']} {p['version']}" for p in asked["prompts"].values())
    tiles = {
        "videos": f"{tally['funnel'].get('videos', 0):,}",
        "pairs": f"{pairs:,}",
        "model calls": f"{usage['calls']:,}",
        "from the cache": f"{usage['cached']:,}",
        "tokens in / out": f"{usage['prompt_tokens']:,} / {usage['completion_tokens']:,}",
        "cost": f"{manifest['cost']:,.2f}",
    }
    body = [
        "<h1>Synthesized pairs</h1>",
        f'<p class="muted">model <code>{_h(asked["model"])}</code> · prompts {_h(prompts)} · '
        f"embedder <code>{_h(asked['embedder'] or 'none')}</code></p>",
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{v}</b>{k}</div>' for k, v in tiles.items())
        + "</div>",
        "<h2>Videos by stage</h2>",
        _bars([(_STAGE_TEXT[s], tally["funnel"].get(s, 0)) for s in STAGES]),
        "<h2>Pairs by type</h2>",
        '<p class="muted">Pale: asked for. Full: made.</p>',
        _made(tally),
        "<h2>Rejects by stage and reason</h2>",
        _bars(sorted(tally["rejects"].items(), key=lambda e: -e[1]), "rejects")
        or '<p class="muted">None.</p>',
        "<h2>Distributions</h2>",
        '<div class="panels">',
        *_panels(tally, settings),
        "</div>",
        "<h2>Samples</h2>",
        *_samples(directory, samples),
    ]
    style = (Path(__file__).parent / "page.css").read_text()
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Synthesized pairs</title><style>{style}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )
    (directory / FILE).write_text(text, encoding="utf-8")


def _h(text: object) -> str:
    return html.escape(str(text))


def _bars(rows: Iterable[tuple[str, int]], kind: str = "") -> str:
    rows = list(rows)
    most = max((count for _, count in rows), default=0) or 1
    cells = [
        f'<div>{_h(name)}</div><div class="track"><div class="fill" '
        f'style="width:{100 * count / most:.2f}%"></div></div><div class="num">{count:,}</div>'
        for name, count in rows
    ]
    return f'<div class="bars {kind}">{"".join(cells)}</div>' if cells else ""


def _made(tally: Mapping) -> str:
    most = max(tally["asked"].values(), default=0) or 1
    cells = []
    for name in TYPES:
        asked, made = tally["asked"].get(name, 0), tally["pairs"].get(name, 0)
        if asked:
            cells.append(
                f'<div>{name}</div><div class="track"><div class="fill ask" '
                f'style="width:{100 * asked / most:.2f}%"><div class="fill" '
                f'style="width:{100 * made / asked:.2f}%"></div></div></div>'
                f'<div class="num">{made:,} of {asked:,}</div>'
            )
    return f'<div class="bars">{"".join(cells)}</div>'


def _panels(tally: Mapping, settings: Mapping) -> Iterable[str]:
    scores = tally["scores"]
    limits = {"similarity": settings["similarity"], "motion": settings["video"]["least_motion"]}
    steps = {"similarity": 0.05, "motion": 0.002}
    for name, what in (("similarity", "cosine of caption and video"), ("motion", "motion")):
        if name in scores:
            counts = {float(key): count for key, count in scores[name].items()}
            yield _panel(f"{what} (line: least)", counts, steps[name], limits[name])
    for name in TYPES:
        if name in tally["words"]:
            counts = {float(key): count for key, count in tally["words"][name].items()}
            step = max(1, math.ceil((max(counts) - min(counts) + 1) / 30))
            binned: dict[float, int] = {}
            for key, count in counts.items():
                place = float(key // step * step)
                binned[place] = binned.get(place, 0) + count
            yield _panel(f"{name}: words of the query", binned, step)
    shares = sorted(tally["kinds"].items())
    for group in ("profile", "caption"):
        rows = [(key.split()[1], n) for key, n in shares if key.startswith(group)]
        if rows:
            yield f'<div class="panel"><b>T2V by {group}</b>{_bars(rows)}</div>'


def _panel(title: str, counts: Mapping[float, int], step: float, limit: float | None = None) -> str:
    """A histogram: bins begin at the keys and are `step` wide."""
    low, high = min(counts), max(counts) + step
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    width, height = 240, 92
    scale = width / (high - low)
    most = max(counts.values())
    bars = "".join(
        f'<rect x="{(key - low) * scale:.1f}" y="{height - height * n / most:.1f}" '
        f'width="{max(1.0, step * scale - 1):.1f}" height="{height * n / most:.1f}"/>'
        for key, n in counts.items()
    )
    line = ""
    if limit is not None:
        x = (limit - low) * scale
        line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
    return (
        f'<div class="panel"><b>{_h(title)}</b><svg viewBox="0 -4 {width} {height + 20}" '
        f'role="img" aria-label="{_h(title)}">{bars}{line}<path d="M0 {height}H{width}"/>'
        f'<text x="0" y="{height + 13}">{low:g}</text><text x="{width}" y="{height + 13}" '
        f'text-anchor="end">{high:g}</text></svg></div>'
    )


def _samples(directory: Path, samples: int) -> Iterable[str]:
    sources = PairSources(directory)
    chosen = {}
    for name in sorted(sources.sizes, key=lambda name: TYPES.index(name.split("_")[0])):
        size = sources.sizes[name]
        places = sorted({n * (size - 1) // max(1, samples - 1) for n in range(min(samples, size))})
        chosen[name] = sources.read(name, np.array(places))
    wanted = {pair["id"] for pairs in chosen.values() for pair in pairs}
    history = {}
    for line in open(directory / "history.jsonl", encoding="utf-8"):
        told = json.loads(line)
        if told["id"] in wanted:
            history[told["id"]] = told
    with pictures.thumbnails(_FRAMES) as frames_of:
        for name, pairs in chosen.items():
            yield f"<h3>{name} · {sources.sizes[name]:,} pairs</h3>"
            for pair in pairs:
                told = json.dumps(history[pair["id"]], indent=1, ensure_ascii=False)
                yield (
                    f'<div class="pair">{_side("query", pair["query"], frames_of)}'
                    f"{_side('finds', pair['positive'], frames_of)}<details>"
                    f"<summary>history of {_h(pair['id'])}</summary><pre>{_h(told)}</pre>"
                    "</details></div>"
                )


def _side(label: str, item: Item, frames_of) -> str:
    parts = []
    if item.text:
        parts.append(f'<div class="text">{_h(item.text)}</div>')
    for medium, kind in ((item.image, "image"), (item.video, "video")):
        if medium is not None:
            shown = "".join(
                f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(one).decode()}">'
                for one in frames_of(kind, medium)
            )
            parts.append(f'<div class="strip">{shown}</div>')
    return f'<div class="side"><span>{label}</span><div>{"".join(parts)}</div></div>'
