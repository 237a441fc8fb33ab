"""Marks tests with the situation that they prove; docs/compatibility.md lists them all."""

import pytest


def situation(area: str, given: str, result: str, *, since: str) -> pytest.MarkDecorator:
    """A row of docs/compatibility.md, proven by the test (or the `pytest.param`) that it marks.

    Arguments must be string literals: `python -m tests.compatibility` reads them without importing
    the test.

    Args:
      area: one of `tests.compatibility.AREAS`.
      given: what the user has or does, as the user would say it.
      result: what gve_jax does then.
      since: the first version that does so.
    """
    return pytest.mark.situation(area, given, result, since)
