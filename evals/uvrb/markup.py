"""The pieces of the page that its sections share."""

import html
from collections.abc import Sequence


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric_from: int, totals: int = 0
) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if at >= numeric_from else f"<{tag}>{cell}</{tag}>"
            for at, cell in enumerate(row)
        )

    kinds = [""] * (len(rows) - totals) + [' class="total"'] * totals
    body = "".join(
        f"<tr{kind}>{cells('td', row)}</tr>" for kind, row in zip(kinds, rows, strict=True)
    )
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def times(value: float, other: float, name: str) -> str:
    return card(f"{value / other:.1f}×" if other else "—", name)


def card(value: str, name: str) -> str:
    return f'<div class="card"><b>{value}</b><span>{name}</span></div>'


def missing(sentence: str) -> str:
    return f'<p class="missing">{html.escape(sentence)}</p>'


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
