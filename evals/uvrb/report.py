"""The HTML report: one file that needs no network and runs no script (templates: report.html and
macros.html)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from data.uvrb.reader import RetrievalSet
from data.uvrb.tasks import ABILITY
from evals.uvrb import figures, published
from evals.uvrb.compare import p_value
from evals.uvrb.evaluate import Example, Scored
from evals.uvrb.output import (
    bounds,
    cost_cells,
    heading,
    not_released,
    number,
    other_scores,
    paired_comparisons,
)
from evals.uvrb.pictures import Pictures
from evals.uvrb.scores import ABILITIES, AVERAGES
from evals.uvrb.sweep import KINDS
from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write

MOST_CARDS = 3  # sets whose scores are shown at the top where there is no average
LONG_TEXT = 260  # characters of a query shown before it is folded
CELLS = ("AVG-A", "AVG-D", *ABILITIES)
_ABILITY_NAMES = {
    "TXT": "textual",
    "CMP": "composed",
    "VIS": "visual",
    "CG": "coarse-grained",
    "FG": "fine-grained",
    "LC": "long-context",
    "S": "spatial",
    "T": "temporal",
    "PR": "partially relevant",
    "AVG-A": "mean of the first six",
    "AVG-D": "mean of the sets",
}


def template(name: str = "report.html") -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name)


def write(path: Path, results: Mapping, shown: Mapping[str, dict], workdir: Path | None) -> None:
    """Writes the report.

    Args:
      path: the HTML file.
      results: contents of `results.json`.
      shown: `examples` of each set.
      workdir: the training run, for its curves; without one the page has no such sections.

    Raises:
      UserError: the training records are damaged.
    """
    datasets = results["datasets"]
    lines = None if workdir is None else _records(workdir, "metrics.jsonl")
    page = template().render(
        results=results,
        items=sum(one["queries"] + one["corpus"] for one in datasets.values()),
        cards=list(_cards(results)),
        sets=_sets(results),
        not_released=not_released(results),
        costs=_costs(datasets),
        abilities=_abilities(results),
        differences=list(_differences(results)),
        sweeps=list(_sweeps(results)),
        published=published_models(results, _correlations()),
        training=None if lines is None else _training(lines),
        curriculum=None if lines is None else _curriculum(workdir, lines),
        examples=[shown[name] for name in datasets if name in shown],
        heading=heading(results),
        released=len(ABILITY.keys() & datasets.keys()),
        digests=_digests(results),
        long_text=LONG_TEXT,
        unreadable=[
            [name, *record["quarantined"].values()]
            for name, record in datasets.items()
            if any(record["quarantined"].values())
        ],
    )
    atomic_write(path, lambda file: file.write(page.encode()))


def examples(found: RetrievalSet, scored: Scored, pictures: Pictures) -> dict:
    """The retrieved examples of one set; reads their media."""
    return {
        "task": found.task,
        "score": number(scored.record["score"]),
        "failures": int((scored.per_query.score == 0).sum()),
        "queries": len(found.queries),
        "corpus": len(found.corpus),
        "cards": [_example(found, example, pictures) for example in scored.examples],
    }


def _example(found: RetrievalSet, example: Example, pictures: Pictures) -> dict:
    query = found.queries[example.query]
    ranks = range(1, 1 + len(example.documents))
    ranked = list(zip(ranks, example.documents, example.cosines, strict=True))
    if example.right not in example.documents:
        ranked.append((example.rank, example.right, example.cosine))
    documents = []
    for position, (rank, index, cosine) in enumerate(ranked):
        document = found.corpus[index]
        right = document.id in query.positives
        alt = f"rank {rank}, {'right' if right else 'wrong'}"
        picture = Markup(pictures.clip(document.video, alt))
        gap = position == len(example.documents)
        documents.append(
            {
                "rank": rank,
                "right": right,
                "gap": gap,
                "picture": picture,
                "id": document.id,
                "file": _inside(found, document.video),
                "cosine": number(cosine),
            }
        )
    images = []
    if query.image:
        images.append(Markup(pictures.image(query.image, "image of the query")))
    if query.video:
        images.append(Markup(pictures.clip(query.video, "clip of the query")))
    return {
        "id": query.id,
        "files": [_inside(found, path) for path in (query.image, query.video) if path],
        "rank": example.rank,
        "success": example.success,
        "text": query.text,
        "pictures": images,
        "documents": documents,
    }


def _inside(found: RetrievalSet, path: Path) -> str:
    """A medium's path inside the folder of its set."""
    return path.relative_to(found.root.resolve()).as_posix()


def _digests(results: Mapping) -> list[list[str]]:
    """Digests of each set: what must be equal for scores to be comparable."""
    return [
        [name, *(digests[key] or "" for key in ("queries", "corpus", "positives", "media"))]
        for name, digests in results["digests"].items()
    ]


def _cards(results: Mapping) -> Iterator[tuple[str, str]]:
    """(value, caption) of the figures at the top."""
    averages, own = results["averages"], results["datasets"].keys() - ABILITY.keys()
    if averages["AVG-D"] is None and len(results["datasets"]) <= MOST_CARDS:
        own = results["datasets"]
    for name in (name for name in results["datasets"] if name in own):
        record = results["datasets"][name]
        yield number(record["score"]), f"{name}, {record['metric']}"
        yield number(record["chance"]), f"{name}, chance"
    for name, what in (("AVG-D", "mean over the sixteen sets"), ("AVG-A", "mean over abilities")):
        if averages[name] is not None:
            yield number(averages[name]), f"{name}, {what}"
    if averages["AVG-D"] is not None:
        others = {"chance": results["chance"], "the untrained model": results.get("untrained")}
        for name, other in others.items():
            if other:
                base = other["averages"]["AVG-D"]
                yield f"{averages['AVG-D'] / base:.1f}×" if base else "—", f"{name} (AVG-D)"
    for order, control in results.get("controls", {}).items():
        for name, one in control["paired"]["datasets"].items():
            yield f"{one['difference']:+.3f}", f"{name}, over {order} frames"


def _sets(results: Mapping) -> dict:
    untrained = results["untrained"]["datasets"] if "untrained" in results else None
    controls = {name: one["datasets"] for name, one in results.get("controls", {}).items()}
    others, rows = other_scores(results), []
    for name, record in results["datasets"].items():
        cells = [name, ABILITY.get(name, "own"), record["metric"], number(record["score"])]
        cells += [bounds(record["interval"]), number(record["chance"])]
        cells += [number(scores.get(name)) for scores in others.values()]
        rows.append(cells)
    return {
        "figure": Markup(figures.scores_by_set(results["datasets"], untrained, controls)),
        "columns": ["set", "ability", "metric", "score", "95 %", "chance", *others],
        "rows": rows,
    }


def _costs(datasets: Mapping[str, Mapping]) -> dict:
    """Size of each set, its further metrics, and its cost."""
    rows = []
    for name, record in datasets.items():
        cost, metrics = record["cost"], record["metrics"]
        items, median = cost.get("items"), metrics["median_rank"]
        cells = [name, f"{record['queries']:,}", f"{record['corpus']:,}"]
        cells += ["" if median is None else f"{median:g}", number(metrics["mrr"])]
        cells += [number(record["pessimistic"]), "" if items is None else f"{items:,}"]
        rows.append(cells + cost_cells(cost))
    columns = ["set", "queries", "videos", "median rank", "MRR", "pessimistic", "embedded"]
    return {"columns": columns + ["seconds", "tokens", "GB"], "rows": rows}


def _abilities(results: Mapping) -> dict | None:
    """The abilities that have all their sets, and the radar plot; None without any."""
    sides = {"model": results, "untrained": results.get("untrained"), "chance": results["chance"]}
    sides = {name: side for name, side in sides.items() if side}
    rows = []
    for part, names in (("abilities", ABILITIES), ("averages", AVERAGES)):
        for name in (name for name in names if results[part][name] is not None):
            score, *others = [number(side[part][name]) for side in sides.values()]
            interval = bounds(results["intervals"][part][name])
            rows.append([name, _ABILITY_NAMES[name], score, interval, *others])
    if not rows:
        return None
    found = {"columns": ["", "", "score", "95 %", *list(sides)[1:]], "rows": rows, "figure": None}
    found["averages"] = sum(results["averages"][name] is not None for name in AVERAGES)
    if None not in results["abilities"].values():  # a radar plot of a few would show zeros
        drawn = {name: side["abilities"] for name, side in sides.items()}
        drawn |= published_radar(results)
        found |= {"figure": Markup(figures.radar(drawn)), "rim": figures.rim(drawn)}
    return found


def _differences(results: Mapping) -> Iterator[dict]:
    """Each paired comparison as a figure and its averages."""
    for _, title, found in paired_comparisons(results):
        rows = [
            [
                name,
                f"{one['difference']:+.3f}",
                f"{one['interval'][0]:+.3f} to {one['interval'][1]:+.3f}",
                one.get("better", ""),
                one.get("worse", ""),
                p_value(one["p"]),
                p_value(one.get("p_holm")),
            ]
            for part in ("datasets", "averages")
            for name, one in found[part].items()
        ]
        yield {
            "title": title[0].upper() + title[1:],
            "figure": Markup(figures.differences(found["datasets"], title)),
            "rows": rows,
            "totals": len(found["averages"]),
        }


def _sweeps(results: Mapping) -> Iterator[dict]:
    """Scores over the number of frames and of tokens."""
    for kind, points in results.get("sweeps", {}).items():
        complete = [name for name in CELLS if _of_average(points[0], name) is not None]
        if complete:
            curves = {
                name: [
                    (p["value"], _of_average(p, name), _of_average(p["intervals"], name))
                    for p in points
                ]
                for name in complete
            }
        else:  # no ability has all its sets
            curves = {
                name: [
                    (p["value"], p["datasets"][name]["score"], p["datasets"][name]["interval"])
                    for p in points
                ]
                for name in points[0]["datasets"]
            }
        rows = [[p["value"], *(number(_of_average(p, name)) for name in CELLS)] for p in points]
        yield {
            "title": KINDS[kind].capitalize(),
            "figure": Markup(figures.curves(curves, KINDS[kind])),
            "columns": [kind, *CELLS],
            "rows": rows if complete else [],
        }


def _of_average(point: Mapping, name: str):
    return point["averages" if name in AVERAGES else "abilities"][name]


def published_models(results: Mapping, correlations: Markup | None = None) -> dict:
    """The paper's models by ability, with this one where all sets are the released ones."""
    rows = [(published.corrected(row), row) for row in published.published(later=True)]
    count, comparable = len(rows), _comparable(results)
    if comparable:
        model = {**results["abilities"], **results["averages"], "model": str(results["model"])}
        rows.append((model, {"misprints": (), "source": "this run"}))
    rows.sort(key=lambda pair: -pair[0]["AVG-A"])
    cells = [
        [
            row["model"],
            *(number(row[name]) + "*" * (name in printed["misprints"]) for name in CELLS),
            printed["source"],
        ]
        for row, printed in rows
    ]
    columns = ["model", *CELLS, "arXiv"]
    found = {"columns": columns, "rows": cells, "count": count, "comparable": comparable}
    return found | {"correlations": correlations}


def published_radar(results: Mapping) -> dict[str, dict]:
    """The abilities of the paper's two best models, if this run can be compared with them."""
    if not _comparable(results):
        return {}
    rows = {row["model"]: published.corrected(row) for row in published.published()}
    return {
        name: {ability: rows[name][ability] for ability in ABILITIES}
        for name in results["published"]["models"]
    }


def _comparable(results: Mapping) -> bool:
    return not results["published"]["differing"] and results["averages"]["AVG-D"] is not None


def _correlations() -> Markup:
    """Heat maps of the paper's analysis, over all published rows."""
    rows = [published.corrected(row) for row in published.published(later=True)]
    panels = {
        name.capitalize(): published.correlations(rows, statistic)
        for name, statistic in published.STATISTICS.items()
    }
    return Markup(figures.heat_maps(panels, published.CELLS))


def _training(lines: list[dict] | str) -> dict:
    if isinstance(lines, str):
        return {"missing": lines}
    sources = any(key.startswith("loss/") for line in lines for key in line)
    return {
        "missing": None,
        "curves": Markup(figures.training_curves(lines)),
        "losses": Markup(figures.loss_by_source(lines)) if sources else None,
    }


def _curriculum(workdir: Path, lines: list[dict] | str) -> dict:
    records = _records(workdir, "curriculum.json")
    if isinstance(records, str):
        return {"missing": records}
    stages = records[0].get("stages")
    if not stages:
        return {"missing": f"{workdir}/curriculum.json has no stage yet."}
    losses = None if isinstance(lines, str) else _stage_losses(stages, lines)
    rows = [
        [
            f"{stage['stage']} (σ {stage['sigma']:.2f})",
            name,
            f"{stage['R'][name]:.3f}",
            f"{stage['P'][name]:.1%}",
            f"{stage['batches'].get(name, 0):,}",
            number(losses[position].get(name)) if losses else "",
        ]
        for position, stage in enumerate(stages)
        for name in stage["P"]
    ]
    return {"missing": None, "figure": Markup(figures.curriculum(stages, losses)), "rows": rows}


def _stage_losses(stages: Sequence[Mapping], lines: Sequence[Mapping]) -> list[dict[str, float]]:
    """Mean loss of each stage's recorded batches by source; sources without one are absent."""
    found = []
    for stage in stages:
        losses: dict[str, list[float]] = {}
        for line in lines:
            if stage["first_step"] <= line["step"] < stage["last_step"]:
                for name in stage["P"]:
                    if line.get(f"loss/{name}") is not None:
                        losses.setdefault(name, []).append(line[f"loss/{name}"])
        found.append({name: sum(values) / len(values) for name, values in losses.items()})
    return found


def _records(workdir: Path, name: str) -> list[dict] | str:
    """The records of a file of the training run, or a sentence that says what is missing."""
    path = workdir / name
    if not path.is_file():
        return f"{path} is missing."
    text = path.read_text(encoding="utf-8")
    if name.endswith(".json"):
        return [_parse(text, str(path))]
    lines = text.split("\n")
    lines.pop()  # empty, or a line that was cut off when the run was killed
    records = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]
    return records or f"{path} is empty."


def _parse(text: str, location: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{location}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{location}: expected a JSON object")
    return record
