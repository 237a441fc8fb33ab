"""Policies as tables of (pattern, value): the first pattern that is found in a name decides."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gve_jax.errors import UserError


def decide(
    patterns: Sequence[re.Pattern], names: Iterable[str]
) -> tuple[dict[str, int | None], list[int]]:
    """(number of the first pattern found in each name, None where there is none; numbers of the
    patterns that decide no name)."""
    found = {
        name: next((n for n, pattern in enumerate(patterns) if pattern.search(name)), None)
        for name in names
    }
    return found, [n for n in range(len(patterns)) if n not in set(found.values())]


def assign(
    field: str, table: Sequence[tuple[str, Any]], names: Iterable[str], default: Any = None
) -> dict[str, Any]:
    """The value of each name; `default` where no pattern is found in it.

    Raises:
      UserError: naming `field`, for a table that is none, a malformed pattern, or one that decides
        no name: a typing mistake, mostly.
    """
    patterns = []
    for row in table:
        if not isinstance(row, tuple | list) or len(row) != 2 or not isinstance(row[0], str):
            raise UserError(f"{field}: {row!r} is not (pattern, value)")
        try:
            patterns.append(re.compile(row[0]))
        except re.error as error:
            raise UserError(f"{field}: {row[0]!r} is not a regular expression: {error}") from error
    found, idle = decide(patterns, names)
    for number in idle:
        raise UserError(
            f"{field}: pattern {table[number][0]!r} decides no source "
            f"(there are {', '.join(found)})"
        )
    return {name: default if n is None else table[n][1] for name, n in found.items()}
