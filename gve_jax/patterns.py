"""Policies as tables of (pattern, value): the first pattern that is found in a name decides."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gve_jax.errors import UserError


def assign(
    field: str, table: Sequence[tuple[str, Any]], names: Iterable[str], default: Any = None
) -> dict[str, Any]:
    """The value of each name; `default` where no pattern is found in it.

    Raises:
      UserError: naming `field`, for a table that is none, a malformed pattern, or one that decides
        no name: a typing mistake, mostly.
    """
    compiled = []
    for row in table:
        if not isinstance(row, tuple | list) or len(row) != 2 or not isinstance(row[0], str):
            raise UserError(f"{field}: {row!r} is not (pattern, value)")
        try:
            compiled.append((re.compile(row[0]), row[1]))
        except re.error as error:
            raise UserError(f"{field}: {row[0]!r} is no pattern: {error}") from error
    found, used = {}, set()
    for name in names:
        number = next((n for n, (pattern, _) in enumerate(compiled) if pattern.search(name)), None)
        found[name] = default if number is None else compiled[number][1]
        used.add(number)
    for number, (pattern, _) in enumerate(compiled):
        if number not in used:
            raise UserError(f"{field}: pattern {pattern.pattern!r} decides no source "
                            f"(there are {', '.join(found)})")  # fmt: skip
    return found
