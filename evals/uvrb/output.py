"""The files of an evaluation, and its printed tables."""

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.uvrb.tasks import ABILITY
from evals.mteb import files as mteb_files
from evals.uvrb.compare import p_value
from evals.uvrb.evaluate import Scored
from evals.uvrb.published import corrected, published
from evals.uvrb.scores import ABILITIES, AVERAGES
from gve_jax.storage.files import write_json


def write_scored(output: Path, label: str, scored: Mapping[str, Scored]) -> list[Path]:
    """Writes the scores of the queries of one run, and TREC run and qrels if there are any; returns
    the written files."""
    sub, written = () if label == "model" else (label,), []
    for name, one in scored.items():
        written.append(output.joinpath("per_query", *sub, f"{name}.npz"))
        one.per_query.write(written[-1])
        if one.run is not None:
            written += one.run.write(output.joinpath("trec", *sub), name)
    return written


def write_results(output: Path, results: Mapping) -> list[Path]:
    """Writes results.json, and the same for mteb; returns mteb's files."""
    folder = mteb_files.write(output, results, time.time())
    write_json(output / "results.json", results)
    return list(folder.iterdir())


def remove_stale(output: Path, written: Collection[Path]) -> list[str]:
    """Removes files of earlier commands that would be mistaken for those of this one.

    These are scores of queries, runs and qrels, and for mteb other revisions of the model. The
    files of this command are `written`.

    Returns:
      The removed files, relative to `output`.
    """
    found = [
        *output.glob("per_query/**/*.npz"),
        *output.glob("trec/**/*.run"),
        *output.glob("trec/**/*.qrels"),
    ]
    revisions = {path.parent for path in written if path.name == "model_meta.json"}
    for revision in {other for one in revisions for other in one.parent.iterdir()} - revisions:
        found += revision.glob("*.json")
    stale = sorted(set(found) - set(written))
    for path in stale:
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # if empty
    return [path.relative_to(output).as_posix() for path in stale]


# ---- tables --------------------------------------------------------------------------


def print_results(results: Mapping, console: Console, all_published: bool = False) -> None:
    """Prints tables of sets, abilities and comparisons, unreadable items, and the rules.

    Args:
      results: contents of `results.json`.
      console: where to print.
      all_published: whether to print the paper's sixteen models even if no set is comparable with
        theirs.
    """
    console.print(_sets(results))
    table = _abilities(results)
    if table.row_count:  # else no ability has all its sets
        console.print(table)
    differences = _differences(results)
    if differences.row_count:
        console.print(differences)
    others = [(what, one) for what, _, one in paired_comparisons(results)]
    others += [
        (f"{point['value']} {kind}", point)
        for kind, points in results.get("sweeps", {}).items()
        for point in points
    ]
    for what, one in others:
        for name, reason in one.get("refused", {}).items():
            console.print(escape(f"{name}: not compared, {what}: {reason}"))
    theirs = results["published"]
    if theirs["comparable"] or all_published:
        console.print(_published(results))
    if note := not_released(results):
        console.print(escape(note))
    for name, record in results["datasets"].items():
        if any(record["quarantined"].values()):
            counts = (f"{n} {kind.replace('_', ' ')}" for kind, n in record["quarantined"].items())
            console.print(f"{name}: unreadable: {', '.join(counts)}")
    for rule in results["rules"]:
        console.print(f"- {rule}")


def not_released(results: Mapping) -> str:
    """Names the sets that differ from the released ones; empty if none does."""
    differing = results["published"]["differing"]
    if not differing:
        return ""
    first = next(iter(differing))
    count = len(ABILITY.keys() & results["datasets"].keys())
    return (
        f"Not the released sets: sizes differ on {len(differing)} of {count} "
        f"({first} has {differing[first]}). They cannot be compared with the paper's scores."
    )


def heading(results: Mapping) -> str:
    """What was scored: UVRB, unless all sets are own ones."""
    return "UVRB" if ABILITY.keys() & results["datasets"].keys() else "Own sets"


def other_scores(results: Mapping) -> dict[str, Mapping[str, float]]:
    """{column: {set: score}} of the runs and models to show next to the model's."""
    columns = {}
    if "untrained" in results:
        columns["untrained"] = results["untrained"]["datasets"]
    columns |= {order: one["datasets"] for order, one in results.get("controls", {}).items()}
    if "reencoded" in results:
        columns["re-encoded"] = results["reencoded"]["datasets"]
    found = {
        column: {name: r["score"] for name, r in datasets.items()}
        for column, datasets in columns.items()
    }
    return found | dict(results["published"]["models"])


def _sets(results: Mapping) -> Table:
    table = Table(
        title=escape(f"{heading(results)} · {results['model']}"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("set", "ability", "metric"):
        table.add_column(column, no_wrap=True)
    others = other_scores(results)
    for column in ("score", "95 %", "chance", *others, "seconds", "tokens", "GB"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, record in results["datasets"].items():
        cells = [number(record["score"]), bounds(record["interval"]), number(record["chance"])]
        cells += [number(scores.get(name)) for scores in others.values()]
        table.add_row(
            name, ABILITY.get(name, "own"), record["metric"], *cells, *cost_cells(record["cost"])
        )
    return table


def cost_cells(cost: Mapping) -> list[str]:
    """Seconds in the model and in ranking, tokens, GB of media and embeddings, as text."""
    seconds = (cost.get("embed_seconds") or 0) + cost["rank_seconds"]
    tokens, gb = cost.get("tokens"), cost["embeddings_gb"] + (cost["media_gb"] or 0)
    size = f"{gb:.3f}" if gb >= 0.0005 else "<0.001"
    return [f"{seconds:,.1f}", "" if tokens is None else _short(tokens), size]


def _short(count: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _abilities(results: Mapping) -> Table:
    table = Table(title="abilities", title_justify="left")
    table.add_column("")
    untrained = results.get("untrained")
    for column in ("score", "95 %", "chance", *(["untrained"] if untrained else [])):
        table.add_column(column, justify="right")
    for part, names in (("abilities", ABILITIES), ("averages", AVERAGES)):
        for name in (name for name in names if results[part][name] is not None):
            sides = [results["chance"], *([untrained] if untrained else [])]
            table.add_row(
                name,
                number(results[part][name]),
                bounds(results["intervals"][part][name]),
                *(number(side[part][name]) for side in sides),
            )
        table.add_section()
    return table


def paired_comparisons(results: Mapping) -> Iterable[tuple[str, str, Mapping]]:
    """(name, title, paired comparison) of every other run."""
    if "untrained" in results:
        yield "untrained", "this model less the untrained one", results["untrained"]["paired"]
    for order, control in results.get("controls", {}).items():
        yield order, f"this model less itself with {order} frames", control["paired"]
    if "reencoded" in results:
        title = f"this model less itself on documents at {results['reencoded']['coding']}"
        yield "re-encoded", title, results["reencoded"]["paired"]
    if "compared" in results:
        one = results["compared"]
        yield one["b"], f"this model less {one['b']}", one


def _differences(results: Mapping) -> Table:
    """Differences from the other runs by set, and the sweeps."""
    table = Table(title="differences, paired by query", title_justify="left")
    for column in ("less", "", "difference", "95 %", "p", "p (Holm)"):
        table.add_column(column, justify="left" if column in ("less", "") else "right")
    for what, _, found in paired_comparisons(results):
        for part in ("datasets", "averages"):
            for name, one in found[part].items():
                low, high = one["interval"]
                cells = [f"{one['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
                cells += [p_value(one["p"]), p_value(one.get("p_holm"))]
                table.add_row(escape(what), name, *cells)
        table.add_section()
    for kind, points in results.get("sweeps", {}).items():
        for point in points:
            if point.get("refused"):
                continue  # its averages cover other sets
            for name, value in point["averages"].items():
                difference = None if value is None else value - results["averages"][name]
                if difference is not None:
                    table.add_row(f"{point['value']} {kind}", name, f"{difference:+.3f}")
    return table


def _published(results: Mapping) -> Table:
    """The paper's models by ability, with this one if it is comparable on all sets."""
    table = Table(title="the paper's models (misprints recomputed: *)", title_justify="left")
    names = ("AVG-A", "AVG-D", *ABILITIES)
    table.add_column("model")
    for column in names:
        table.add_column(column, justify="right")
    rows = [(corrected(row), row["misprints"]) for row in published()]
    if not results["published"]["differing"] and results["averages"]["AVG-D"] is not None:
        own = {**results["abilities"], **results["averages"], "model": "» " + results["model"]}
        rows.append((own, ()))
    for row, misprints in sorted(rows, key=lambda pair: pair[0]["AVG-A"]):
        cells = [f"{row[name]:.3f}" + "*" * (name in misprints) for name in names]
        table.add_row(escape(row["model"]), *cells)
    return table


def bounds(interval) -> str:
    return "" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
