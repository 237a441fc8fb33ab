"""Tables of (pattern, value): the first pattern that matches a name decides its value."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gve_jax.errors import UserError


def decide(
    patterns: Sequence[re.Pattern], names: Iterable[str]
) -> tuple[dict[str, int | None], list[int]]:
    """Matches names with patterns.

    Returns:
      by name the index of the first pattern that matches it, or None; and the indices of the
      patterns that are the first match of no name.
    """
    found = {
        name: next((n for n, pattern in enumerate(patterns) if pattern.search(name)), None)
        for name in names
    }
    return found, [n for n in range(len(patterns)) if n not in set(found.values())]


def assign(
    field: str, table: Sequence[tuple[str, Any]], names: Iterable[str], default: Any = None
) -> dict[str, Any]:
    """The value of each name; `default` where no pattern matches.

    Raises:
      UserError: naming `field`, for a malformed row or pattern, or a pattern that decides no name
        (usually a typing mistake).
    """
    patterns = []
    for row in table:
        if not isinstance(row, tuple | list) or len(row) != 2 or not isinstance(row[0], str):
            raise UserError(f"{field}: {row!r} must be (pattern, value)")
        try:
            patterns.append(re.compile(row[0]))
        except re.error as error:
            raise UserError(
                f"{field}: {row[0]!r} is not a valid regular expression: {error}"
            ) from error
    found, idle = decide(patterns, names)
    for number in idle:
        raise UserError(
            f"{field}: pattern {table[number][0]!r} matches no source that is left; "
            f"sources: {', '.join(found)}"
        )
    return {name: default if n is None else table[n][1] for name, n in found.items()}
