"""The page a person looks at: one HTML file that opens without a network and runs no script."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.uvrb.reader import Query, RetrievalSet
from data.uvrb.tasks import NAMES, TASKS
from evals.uvrb import figures, markup, sections
from evals.uvrb.evaluate import Example, Scored
from evals.uvrb.output import other_scores
from evals.uvrb.pictures import Pictures
from evals.uvrb.scores import ABILITIES, AVERAGES
from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write

LONG_TEXT = 260  # characters of a query shown before it is folded

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
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write(path: Path, results: Mapping, shown: Mapping[str, str], workdir: Path | None) -> None:
    """Writes the report.

    Args:
      path: the HTML file.
      results: what `results.json` holds.
      shown: by set, what `examples` made of it.
      workdir: the training run, for its curves; None leaves them out and says so.

    Raises:
      UserError: the training records are damaged.
    """
    title = f"UVRB: {results['model']}"
    parts = {
        "Sets": _sets(results),
        "Abilities": _abilities(results),
        "Differences": sections.differences(results),
        "Sweeps": sections.sweeps(results),
        "Published": sections.published_models(results),
        "Correlations": sections.correlations(),
        "Training": _training(workdir),
        "Curriculum": _curriculum(workdir),
        "Retrieved examples": _examples(shown),
        "Method": _method(results),
    }
    parts = {name: part for name, part in parts.items() if part}
    body = "\n".join((_head(results, list(parts)), *parts.values()))
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = _PAGE.format(title=html.escape(title), style=style, body=body)
    atomic_write(path, lambda file: file.write(page.encode()))


def examples(found: RetrievalSet, scored: Scored, pictures: Pictures) -> str:
    """The retrieved examples of one set as HTML; its media are read now."""
    if not scored.examples:
        return ""
    task = found.task
    cards = "".join(_example(found, example, pictures) for example in scored.examples)
    score = markup.number(scored.record["score"])
    return f"""<h3 id="{task.name}">{task.name} · {task.label} {score}</h3>
<p class="muted">{html.escape(task.instruction)}</p>{cards}"""


# ---- sections ---------------------------------------------------------------------------------


def _head(results: Mapping, parts: Sequence[str]) -> str:
    chance, untrained = results["chance"], results.get("untrained")
    cards = []
    for name, what in (("AVG-D", "mean over the sixteen sets"), ("AVG-A", "mean over abilities")):
        if results["averages"][name] is not None:
            cards.append(markup.card(markup.number(results["averages"][name]), f"{name}, {what}"))
    if results["averages"]["AVG-D"] is not None:
        average = results["averages"]["AVG-D"]
        cards.append(markup.times(average, chance["averages"]["AVG-D"], "chance (AVG-D)"))
        if untrained:
            other = untrained["averages"]["AVG-D"]
            cards.append(markup.times(average, other, "the untrained model (AVG-D)"))
    for order, control in results.get("controls", {}).items():
        for name, one in control["paired"]["datasets"].items():
            cards.append(markup.card(f"{one['difference']:+.3f}", f"{name}, over {order} frames"))
    count = len(results["datasets"])
    items = sum(one["queries"] + one["corpus"] for one in results["datasets"].values())
    links = "".join(f'<a href="#{name.split()[-1].lower()}">{name}</a>' for name in parts)
    return f"""<header>
<h1>Universal video retrieval</h1>
<p class="lead">The model <code>{html.escape(str(results["model"]))}</code> on {count} of the
sixteen sets of UVRB: {items:,} queries and videos, {results["quarantined"]} of them unreadable.</p>
<nav>{links}</nav>
<div class="cards">{"".join(cards)}</div>
</header>"""


def _sets(results: Mapping) -> str:
    untrained = results["untrained"]["datasets"] if "untrained" in results else None
    controls = {name: one["datasets"] for name, one in results.get("controls", {}).items()}
    caption = "Bars are this model, with the interval that holds 95 % of the scores of resamples of"
    caption += " its queries; the vertical tick is chance: the score of a random order"
    caption += "; circles are the same architecture before training" if untrained else ""
    for order, mark in zip(controls, ("diamonds", "squares"), strict=False):
        caption += f"; {mark} are this model shown each video's frames {order}"
    others = other_scores(results)
    columns = ["set", "ability", "metric", "score", "95 %", "chance", *map(html.escape, others)]
    rows = []
    for task in TASKS:
        record = results["datasets"].get(task.name)
        if record is None:
            continue
        cells = [task.name, task.ability, task.label, markup.number(record["score"])]
        cells += [sections.bounds(record["interval"]), markup.number(record["chance"])]
        rows.append(cells + [markup.number(scores.get(task.name)) for scores in others.values()])
    return f"""<section id="sets"><h2>Scores by set</h2>
<figure class="wide">{figures.scores_by_set(results["datasets"], untrained, controls)}
<figcaption>{caption}.</figcaption></figure>
{markup.table(columns, rows, numeric_from=3)}
{sections.released(results)}{sections.sizes_and_costs(results)}</section>"""


def _abilities(results: Mapping) -> str:
    sides = {"model": results, "untrained": results.get("untrained"), "chance": results["chance"]}
    sides = {name: side for name, side in sides.items() if side}
    rows = []
    for part, names in (("abilities", ABILITIES), ("averages", AVERAGES)):
        for name in names:
            score, *others = [markup.number(side[part][name]) for side in sides.values()]
            interval = sections.bounds(results["intervals"][part][name])
            rows.append([name, _ABILITY_NAMES[name], score, interval, *others])
    columns = ["", "", "score", "95 %", *list(sides)[1:]]
    table = markup.table(columns, rows, numeric_from=2, totals=len(AVERAGES))
    known = results["abilities"]
    if all(value is None for value in known.values()):
        drawing = markup.missing("No ability has all of its sets scored in this run.")
    else:
        drawn_sides = {name: side["abilities"] for name, side in sides.items()}
        drawn_sides |= sections.published_radar(results)
        drawn, rim = figures.radar(drawn_sides), figures.rim(drawn_sides)
        note = " Abilities with unscored sets are drawn at 0." if None in known.values() else ""
        drawing = f"""<figure>{drawn}<figcaption>The nine abilities, 0 at the centre, {rim:g} at the
rim.{note}</figcaption></figure>"""
    return f"""<section id="abilities"><h2>Abilities</h2>
<p class="muted">As the paper computes them: FG is the mean of S, T and PR; TXT of CG, FG and
LC.</p><div class="split">{drawing}<div>{table}</div></div></section>"""


def _training(workdir: Path | None) -> str:
    lines = _records(workdir, "metrics.jsonl")
    if isinstance(lines, str):
        return f'<section id="training"><h2>Training</h2>{markup.missing(lines)}</section>'
    body = f"""<figure class="wide">{figures.training_curves(lines)}
<figcaption>Pale: every recorded step; strong: smoothed. Dashed lines: a new stage of the
curriculum, whose other mixture of sources moves loss and accuracy.</figcaption></figure>"""
    if any(key.startswith("loss/") for line in lines for key in line):
        body += f"""<h3>Loss by source</h3>
<figure class="wide">{figures.loss_by_source(lines)}
<figcaption>One panel for each source of pairs, over steps, all on one scale; the letters before
the underscore are the modalities of query and target.</figcaption></figure>"""
    return f'<section id="training"><h2>Training</h2>{body}</section>'


def _curriculum(workdir: Path | None) -> str:
    found = _records(workdir, "curriculum.json")
    if not isinstance(found, str) and not found[0].get("stages"):
        found = f"{workdir}/curriculum.json has no stage yet."
    if isinstance(found, str):
        return f'<section id="curriculum"><h2>Curriculum</h2>{markup.missing(found)}</section>'
    stages, lines = found[0]["stages"], _records(workdir, "metrics.jsonl")
    losses = None if isinstance(lines, str) else _stage_losses(stages, lines)
    rows = [
        [
            f"{stage['stage']} (σ {stage['sigma']:.2f})",
            name,
            f"{stage['R'][name]:.3f}",
            f"{stage['P'][name]:.1%}",
            f"{stage['batches'].get(name, 0):,}",
            markup.number(losses[number].get(name)) if losses else "",
        ]
        for number, stage in enumerate(stages)
        for name in stage["P"]
    ]
    columns = ["stage", "source", "R", "P", "batches", "mean loss"]
    numbers = markup.table(columns, rows, numeric_from=2)
    return f"""<section id="curriculum"><h2>Curriculum</h2>
<p class="muted">At the start of each stage R is measured, the mean cosine of the pairs of each
source, by the model itself or, before the first, by the prober of the configuration. P is the share
of batches that a source gets; the pyramid's is proportional to exp(R / σ), times the size of the
source if the configuration says so, and σ grows, so that what is aligned comes first and the rest
catches up.</p>
<figure class="wide">{figures.curriculum(stages, losses)}
<figcaption>Each column is a stage, named by its first step; a stronger colour is more.</figcaption>
</figure><details><summary>all numbers</summary>{numbers}</details>
</section>"""


def _stage_losses(stages: Sequence[Mapping], lines: Sequence[Mapping]) -> list[dict[str, float]]:
    """Mean loss of each stage's recorded batches by source; sources without one are absent."""
    found = []
    for stage in stages:
        sums: dict[str, list[float]] = {}
        for line in lines:
            if stage["first_step"] <= line["step"] < stage["last_step"]:
                for name in stage["P"]:
                    if line.get(f"loss/{name}") is not None:
                        sums.setdefault(name, []).append(line[f"loss/{name}"])
        found.append({name: sum(values) / len(values) for name, values in sums.items()})
    return found


def _examples(shown: Mapping[str, str]) -> str:
    parts = "".join(shown[name] for name in NAMES if name in shown)
    return f"""<section id="examples"><h2>Retrieved examples</h2>
<p class="muted">A few queries of each set, drawn at random, failures first. Beside each its best
videos as four frames from the first to the last, and, if it is not among them, the right one with
its rank. <span class="found">Green</span> is right, <span class="lost">red</span> is wrong.</p>
{parts}</section>"""


def _example(found: RetrievalSet, example: Example, pictures: Pictures) -> str:
    query = found.queries[example.query]
    places = list(enumerate(example.documents, start=1))
    if example.right not in example.documents:
        places.append((example.rank, example.right))
    rows = []
    for at, (rank, document) in enumerate(places):
        right = found.corpus[document].id in query.positives
        kind = ("right" if right else "wrong") + (" gap" if at == len(example.documents) else "")
        word = "right" if right else "wrong"
        picture = pictures.clip(found.corpus[document].video, f"rank {rank}, {word}")
        rows.append(f'<li class="{kind}"><span>{rank}. {word}</span>{picture}</li>')
    verdict = f"right video at rank {example.rank} of {len(found.corpus)}"
    tone = "found" if example.success else "lost"
    return f"""<div class="example"><div class="query">
<div class="verdict {tone}">{verdict}</div>{_query(query, pictures)}</div>
<ol class="documents">{"".join(rows)}</ol></div>"""


def _query(query: Query, pictures: Pictures) -> str:
    parts = []
    if query.image:
        parts.append(pictures.image(query.image, "image of the query"))
    if query.video:
        parts.append(pictures.clip(query.video, "clip of the query"))
    if len(query.text) > LONG_TEXT:
        start = html.escape(query.text[:LONG_TEXT])
        parts.append(
            f"<p>“{start}…</p><details><summary>all {len(query.text):,} characters"
            f"</summary><p>{html.escape(query.text)}</p></details>"
        )
    elif query.text:
        parts.append(f"<p>“{html.escape(query.text)}”</p>")
    return "".join(parts)


def _method(results: Mapping) -> str:
    rules = "".join(f"<li>{html.escape(rule)}</li>" for rule in results["rules"])
    settings = [[name, html.escape(str(value))] for name, value in results["fingerprint"].items()]
    unreadable = [
        [name, *(str(count) for count in record["quarantined"].values())]
        for name, record in results["datasets"].items()
        if any(record["quarantined"].values())
    ]
    lost = ""
    if unreadable:
        columns = ["set", "queries", "documents", "queries without positives"]
        lost = f"<h3>Unreadable</h3>{markup.table(columns, unreadable, numeric_from=1)}"
    fields = markup.table(["field", "value"], settings, numeric_from=2)
    return f"""<section id="method"><h2>Method</h2>
<p>Every query is ranked against its whole corpus by cosine, exactly. The whole command took
{results["seconds"]:,.0f} s.</p><ul>{rules}</ul>{lost}
<h3>Settings of the model</h3>{fields}</section>"""


# ---- pieces -----------------------------------------------------------------------------------


def _records(workdir: Path | None, name: str) -> list[dict] | str:
    """The records of a file of the training run, or a sentence that says what is missing."""
    if workdir is None:
        return f"No training run was given, so there is no {name}: add --run WORKDIR."
    path = workdir / name
    if not path.is_file():
        return f"{path} is missing."
    text = path.read_text(encoding="utf-8")
    if name.endswith(".json"):
        return [_json(text, str(path))]
    lines = text.split("\n")
    lines.pop()  # the rest after the last newline: empty, or a line that a kill tore
    found = [_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]
    return found or f"{path} is empty."


def _json(text: str, place: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object")
    return record
