"""Compares two models on the same queries:

    python -m evals.uvrb.compare A/results.json B/results.json [--output FILE.json]

prints for each set and ability A's score minus B's, its 95 % interval (paired bootstrap) and the
p-value of no difference (sign flips of the queries' differences, enumerated if possible), for the
sets also after Holm's correction over the sets. Reads the scores of the queries that `python -m
evals.uvrb` writes next to results.json. Refuses sets whose queries, documents, positives,
candidates or unreadable items differ.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.uvrb.tasks import SET_NAME
from evals.uvrb.digests import difference, left_out, unknown_media
from evals.uvrb.per_query import PerQuery
from evals.uvrb.scores import ABILITIES, AVERAGES, cells
from evals.uvrb.statistics import holm, paired, paired_over_sets
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path


def compare(a: Mapping[str, PerQuery], b: Mapping[str, PerQuery]) -> dict:
    """Compares A with B on their common sets.

    Returns:
      {"datasets": {SET: {"difference", "interval", "p", "exact", "p_holm", "better", "worse"}},
      "abilities": {...}, "averages": {...}}; `better` and `worse` count queries. Abilities
      without all of their sets are absent.

    Raises:
      UserError: no common set, or a set whose queries or metric differ.
    """
    names = [name for name in a if name in b]
    if not names:
        raise UserError("the two have no set in common")
    datasets = {}
    for name in names:
        one, other = a[name], b[name]
        if one.metric != other.metric:
            raise UserError(f"{name}: scored by {one.metric} and by {other.metric}")
        if not np.array_equal(one.ids, other.ids):
            raise UserError(f"{name}: the queries differ: {_first_difference(one.ids, other.ids)}")
        datasets[name] = paired(one.score, other.score, name).record() | {
            "better": int((one.score > other.score).sum()),
            "worse": int((one.score < other.score).sum()),
        }
    for name, p in zip(names, holm([datasets[n]["p"] for n in names]), strict=True):
        datasets[name]["p_holm"] = p
    over = paired_over_sets(
        {name: a[name].score for name in names}, {name: b[name].score for name in names}, cells
    )
    return {
        "datasets": datasets,
        "abilities": {name: over[name].record() for name in ABILITIES if name in over},
        "averages": {name: over[name].record() for name in AVERAGES if name in over},
    }


def compare_runs(
    records: tuple[Mapping[str, Mapping], Mapping[str, Mapping]],
    scores: tuple[Mapping[str, PerQuery], Mapping[str, PerQuery]],
) -> dict:
    """Compares two runs of one command on the sets that both ranked equally.

    Args:
      records: the sets' records of `results.json`, of both runs.
      scores: the scores of the queries, of both runs.

    Returns:
      As `compare`, with `refused: {SET: reason}`, such as a document that one run could not read.
    """
    one, other = records
    reasons = {name: left_out(one[name], other[name]) for name in other}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    a, b = ({name: side[name] for name in reasons if name not in refused} for side in scores)
    nothing = {"datasets": {}, "abilities": {}, "averages": {}}
    return (compare(a, b) if a else nothing) | {"refused": refused}


def check_same_ranking(one: Mapping, other: Mapping) -> None:
    """Checks that two results have a common set, with equal queries, documents, positives,
    candidates and unreadable items.

    Raises:
      UserError: no common set; a set that differs, with the difference.
    """
    common = [name for name in one["datasets"] if name in other["datasets"]]
    if not common:
        raise UserError("the two have no set in common")
    for name in common:
        if reason := difference(one, other, name):
            raise UserError(f"{name}: {reason}; these scores are not comparable")


def media_note(one: Mapping, other: Mapping) -> str | None:
    """A line that names common sets whose media could not be compared."""
    common = [name for name in one["datasets"] if name in other["datasets"]]
    names = [name for name in common if unknown_media(one, other, name)]
    if not names:
        return None
    return f"content of the media not compared, known for one side only: {', '.join(names)}"


def load(results: Path) -> tuple[dict, dict[str, PerQuery]]:
    """Reads results and the scores of their queries, from a results.json or its folder.

    Raises:
      UserError: a file is missing, damaged or from another evaluation.
    """
    results = results / "results.json" if results.is_dir() else results
    try:
        record = json.loads(results.read_text(encoding="utf-8"))
        record["model"], names = str(record["model"]), list(record["datasets"])
        if wrong := [name for name in names if not SET_NAME.fullmatch(name)]:
            raise ValueError(f"the name of a set is {wrong[0]!r}")
        for part in ("pools", "digests"):
            dict(record.get(part, {}))
        for one in (*record["datasets"].values(), *record.get("digests", {}).values()):
            dict(one)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{results}: not the results of an evaluation ({error})") from error
    folder = results.parent / "per_query"
    scores = {name: PerQuery.read(folder / f"{name}.npz") for name in names}
    for name, one in scores.items():
        expected = record["datasets"][name].get("score")
        if expected is not None and abs(one.score.mean() - expected) > 1e-9:
            raise UserError(
                f"{folder / name}.npz: from another evaluation than {results}, which has a score "
                f"of {expected:.4f}; repeat the command of evals.uvrb that wrote them"
            )
    return record, scores


def print_comparison(found: Mapping, a: str, b: str, console: Console) -> None:
    """Prints the tables of sets and of abilities."""
    table = Table(title=escape(f"{a}  −  {b}"), title_justify="left")
    table.add_column("")
    for column in ("difference", "95 %", "better", "worse", "p", "p (Holm)"):
        table.add_column(column, justify="right")
    for part in ("datasets", "abilities", "averages"):
        for name, one in found[part].items():
            low, high = one["interval"]
            counts = [str(one.get(key, "")) for key in ("better", "worse")]
            table.add_row(
                name,
                f"{one['difference']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                *counts,
                p_value(one["p"]),
                p_value(one.get("p_holm")),
            )
        table.add_section()
    console.print(table)


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _first_difference(one: np.ndarray, other: np.ndarray) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} queries"
    index = int(np.flatnonzero(one != other)[0])
    return f"number {index + 1} is {str(one[index])!r} and {str(other[index])!r}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m evals.uvrb.compare", __doc__)
    parser.add_argument("a", type=local_path, metavar="A", help="results.json of one model")
    parser.add_argument("b", type=local_path, metavar="B", help="results.json of the other")
    parser.add_argument("--output", type=local_path, help="JSON file to write")
    args = parser.parse_args(argv)
    (a, one), (b, other) = load(args.a), load(args.b)
    check_same_ranking(a, b)
    if note := media_note(a, b):
        print(note)
    found = {"a": a["model"], "b": b["model"], **compare(one, other)}
    print_comparison(found, a["model"], b["model"], Console())
    missing = sorted(set(one) ^ set(other))
    if missing:
        print(f"not compared, scored for one model only: {', '.join(missing)}")
    if args.output:
        write_json(args.output, found)


if __name__ == "__main__":
    run_cli(main)
