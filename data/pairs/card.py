"""What came of an import, to read: the dataset's card and the tables of the command line."""

from collections import Counter

from data.pairs.importer import Tally


def tally(fields: dict) -> Tally:
    """A tally read back from JSON, where numbers are no keys."""
    negatives = Counter({int(number): count for number, count in fields["negatives"].items()})
    return Tally(**fields | {"negatives": negatives, "rejects": Counter(fields["rejects"])})


def line(name: str, tally: Tally) -> str:
    lost = sum(tally.rejects.values())
    counts = f"{tally.pairs} pairs, {tally.kept} negatives each, {tally.bytes:,} bytes"
    dropped = sum(max(0, n - tally.kept) * count for n, count in tally.negatives.items())
    more = f", {dropped} further negatives left out" if dropped else ""
    return f"{name}: {counts}{more}, {lost} rejects{_most(tally)}"


def warnings(name: str, tally: Tally) -> list[str]:
    """Lines about negatives and pairs that the loss leaves out because of their content."""
    lines = []
    if tally.duplicates:
        lines.append(
            f"{name}: {tally.duplicates:,} negatives have the content of their own pair's query or "
            "positive; training leaves them out of the loss"
        )
    if tally.crossed:
        lines.append(
            f"{name}: {tally.crossed:,} pairs have a query with the content of another pair's "
            "positive; in one batch these pairs are not negatives of each other"
        )
    return lines


def _most(tally: Tally) -> str:
    reasons = ", ".join(f"{count} {reason!r}" for reason, count in tally.rejects.most_common())
    return f" ({reasons})" if reasons else ""


def text(
    name: str,
    format: str,
    tallies: dict[str, Tally],
    license: str,
    command: str,
    by_reference: bool,
) -> str:
    """The README.md of a directory, with the front matter that dataset hubs read."""
    rows, rejects = [], []
    for source, tally in sorted(tallies.items()):
        counts = ", ".join(f"{n}: {count}" for n, count in sorted(tally.negatives.items()))
        lost = sum(tally.rejects.values())
        if tally.pairs:
            pair = source.split("_")[0]
            row = (
                source,
                pair,
                f"{tally.pairs:,}",
                str(tally.kept),
                counts,
                f"{tally.bytes:,}",
                f"{lost:,}",
            )
            rows.append("| " + " | ".join(row) + " |")
        rejects += [
            f"| {source} | {reason} | {count:,} |" for reason, count in tally.rejects.most_common()
        ]
    media = (
        "Media are stored as paths, below the folder that `metadata.json` names."
        if by_reference
        else "Media are stored in the records."
    )
    parts = [
        f"---\nlicense: {license or 'unknown'}\n---\n",
        f"# {name}\n",
        f"Training pairs imported from rows of format `{format}`; ArrayRecord through TFDS, one "
        f"split a source, as `gve_jax.streams.pairs` reads them. {media}\n",
        "| source | modality pair | pairs | negatives | rows' negatives: pairs | bytes | rejects |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
        *rows,
        "",
        f"Licence, as given by who imported them: {license or 'none was given'}.\n",
        "Made by:\n",
        f"    {command}\n",
    ]
    found = [line for source, tally in sorted(tallies.items()) for line in warnings(source, tally)]
    parts += [f"* {line}" for line in found] + [""] * bool(found)
    if rejects:
        parts += [
            "What was rejected (each one in `rejects.jsonl`):\n",
            "| source | reason | count |",
            "| --- | --- | ---: |",
            *rejects,
        ]
    return "\n".join(parts).rstrip() + "\n"
