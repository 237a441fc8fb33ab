"""Measures the share of padding in batches."""

from collections import Counter
from collections.abc import Mapping


class Padding:
    """Adds up, by kind ("tokens", "patches"), what batches use of the slots they have."""

    def __init__(self):
        self._used: Counter[str] = Counter()
        self._slots: Counter[str] = Counter()

    def add(self, used: Mapping[str, int], slots: Mapping[str, int]) -> None:
        self._used.update(used)
        self._slots.update(slots)

    def used(self, kind: str) -> int:
        """How many of a kind were computed that are no padding."""
        return self._used[kind]

    def shares(self) -> dict[str, float]:
        """Of each kind that was computed at all, the share that was padding."""
        return {kind: 1 - self._used[kind] / n for kind, n in self._slots.items() if n}

    def summary(self) -> str:
        """In words; empty when nothing was computed."""
        shares = [f"{share:.1%} of {kind}" for kind, share in self.shares().items()]
        return f"padding was {' and '.join(shares)}" if shares else ""
