"""The report's sections on what goes beyond one score: intervals, differences, sweeps, costs, and
the models of the paper."""

import html
from collections.abc import Mapping

from data.uvrb.tasks import TASKS
from evals.uvrb import figures, published
from evals.uvrb.compare import p_value
from evals.uvrb.markup import missing, number, table
from evals.uvrb.output import compared, cost_cells
from evals.uvrb.scores import ABILITIES, AVERAGES

_CELLS = ("AVG-A", "AVG-D", *ABILITIES)


def bounds(interval) -> str:
    return "" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"


def released(results: Mapping) -> str:
    """Says which sets are not the released ones, and why the paper is not beside them."""
    differing = results["published"]["differing"]
    if not differing:
        return ""
    first = next(iter(differing))
    return missing(
        f"Not the released sets: sizes differ on {len(differing)} of {len(results['datasets'])} "
        f"({first} has {differing[first]}). The paper's scores do not stand beside them."
    )


def sizes_and_costs(results: Mapping) -> str:
    """How large each set is, its further metrics, and what it has cost."""
    rows = []
    for task in TASKS:
        if record := results["datasets"].get(task.name):
            one, metrics = record["cost"], record["metrics"]
            items, median = one.get("items"), metrics["median_rank"]
            cells = [f"{record['queries']:,}", f"{record['corpus']:,}"]
            cells += ["" if median is None else f"{median:g}", number(metrics["mrr"])]
            cells += [number(record["pessimistic"]), "" if items is None else f"{items:,}"]
            rows.append([task.name, *cells, *cost_cells(one)])
    columns = ["set", "queries", "videos", "median rank", "MRR", "pessimistic", "embedded"]
    columns += ["seconds", "tokens", "GB"]
    return f"""<details><summary>Sizes, further metrics and costs</summary>
<p class="muted">“Pessimistic” is the score with every tie resolved against the model; “embedded”
counts items; then seconds in the model and in ranking, tokens through the decoder, GB of media
and embeddings. What several sets share is embedded, and counted, with the first of them.</p>
{table(columns, rows, numeric_from=1)}</details>"""


def differences(results: Mapping) -> str:
    """Each paired comparison as a figure and its averages; empty where there is none."""
    parts = []
    for _, title, found in compared(results):
        rows = [
            [
                name,
                f"{one['difference']:+.3f}",
                f"{one['interval'][0]:+.3f} to {one['interval'][1]:+.3f}",
                f"{one.get('better', '')}",
                f"{one.get('worse', '')}",
                html.escape(p_value(one["p"])),
                html.escape(p_value(one.get("p_holm"))),
            ]
            for part in ("datasets", "averages")
            for name, one in found[part].items()
        ]
        columns = ["", "difference", "95 %", "better", "worse", "p", "p (Holm)"]
        totals = len(found["averages"])
        parts.append(f"""<h3>{html.escape(title[0].upper() + title[1:])}</h3>
<figure class="wide">{figures.differences(found["datasets"], title)}</figure>
{table(columns, rows, numeric_from=1, totals=totals)}""")
    if not parts:
        return ""
    return f"""<section id="differences"><h2>Differences</h2>
<p class="muted">Paired by query: points are differences of scores, lines hold 95 % of those of
resamples. p is the chance of so large a difference if both were alike, by flipping the signs of the
queries' differences; Holm's holds for all sets together. “Better” and “worse” count
queries.</p>{"".join(parts)}</section>"""


def sweeps(results: Mapping) -> str:
    """Scores over the number of frames and of tokens; empty where neither was swept."""
    parts = []
    for kind, points in results.get("sweeps", {}).items():
        rows = [
            [str(point["value"]), *(number(_cell(point, name)) for name in _CELLS)]
            for point in points
        ]
        drawn = [name for name in _CELLS if _cell(points[0], name) is not None]
        if drawn:
            curves = {
                name: [
                    (point["value"], _cell(point, name), _interval(point, name)) for point in points
                ]
                for name in drawn
            }
        else:  # no ability is whole: the sets
            curves = {
                name: [
                    (
                        point["value"],
                        point["datasets"][name]["score"],
                        point["datasets"][name]["interval"],
                    )
                    for point in points
                ]
                for name in points[0]["datasets"]
            }
        what = {"frames": "frames of a video", "tokens": "tokens of a frame, at most"}[kind]
        parts.append(f"""<h3>{what.capitalize()}</h3>
<figure class="wide">{figures.curves(curves, what)}</figure>
{table([kind, *_CELLS], rows, numeric_from=0) if drawn else ""}""")
    if not parts:
        return ""
    return f"""<section id="sweeps"><h2>Sweeps</h2>
<p class="muted">The same weights, asked with other numbers of frames and tokens; each panel has its
own scale, bands hold 95 % of resamples.</p>{"".join(parts)}</section>"""


def published_models(results: Mapping) -> str:
    """The paper's models by ability, this one among them where all sets are the released ones."""
    rows = [(published.corrected(row), row) for row in published.published(later=True)]
    whole = not results["published"]["differing"] and results["averages"]["AVG-D"] is not None
    if whole:
        own = {**results["abilities"], **results["averages"], "model": str(results["model"])}
        rows.append((own, {"misprints": (), "source": "this run"}))
    rows.sort(key=lambda pair: -pair[0]["AVG-A"])
    cells = [
        [
            html.escape(row["model"]),
            *(number(row[name]) + "*" * (name in printed["misprints"]) for name in _CELLS),
            html.escape(printed["source"]),
        ]
        for row, printed in rows
    ]
    note = (
        ""
        if whole
        else (" This run is not among them: it did not score the sixteen released sets.")
    )
    return f"""<section id="published"><h2>Published models</h2>
<p class="muted">By ability, from the tables of arXiv 2510.27571; cells with * are misprints there,
recomputed from its table of sets. Rows of another source are computed from that paper's sets by the
same rules.{note}</p>
{table(["model", *_CELLS, "arXiv"], cells, numeric_from=1)}</section>"""


def correlations() -> str:
    """The heat maps of the paper's analysis, over all published rows."""
    rows = [published.corrected(row) for row in published.published(later=True)]
    panels = {
        name.capitalize(): published.correlations(rows, statistic)
        for name, statistic in published.STATISTICS.items()
    }
    return f"""<section id="correlations"><h2>Correlations</h2>
<p class="muted">Over the {len(rows)} published models above: do models that are good at one ability
tend to be good at another? So few models leave wide intervals: of sixteen, a correlation of 0.5 is
compatible with anything from 0 to 0.8.</p>
<figure class="wide">{figures.heat_maps(panels, published.CELLS)}</figure></section>"""


def published_radar(results: Mapping) -> dict[str, dict]:
    """The paper's two best models for the radar plot, where this run can stand beside them."""
    theirs = results["published"]
    if theirs["differing"] or results["averages"]["AVG-D"] is None:
        return {}
    rows = {row["model"]: published.corrected(row) for row in published.published()}
    return {
        name: {ability: rows[name][ability] for ability in ABILITIES} for name in theirs["models"]
    }


def _cell(point: Mapping, name: str) -> float | None:
    return point["averages" if name in AVERAGES else "abilities"][name]


def _interval(point: Mapping, name: str):
    return point["intervals"]["averages" if name in AVERAGES else "abilities"][name]
