"""Measures the share of padding in batches."""

from collections import Counter
from collections.abc import Mapping


class Padding:
    """Adds up the used and the available slots of batches, by kind ("tokens", "patches")."""

    def __init__(self):
        self._used: Counter[str] = Counter()
        self._slots: Counter[str] = Counter()

    def add(self, used: Mapping[str, int], slots: Mapping[str, int]) -> None:
        self._used.update(used)
        self._slots.update(slots)

    def used(self, kind: str) -> int:
        """Number of used slots of a kind."""
        return self._used[kind]

    def shares(self) -> dict[str, float]:
        """The share of padding, for each kind that was computed."""
        return {kind: 1 - self._used[kind] / n for kind, n in self._slots.items() if n}

    def summary(self) -> str:
        """One line for users; empty if nothing was computed."""
        shares = [f"{share:.1%} of {kind}" for kind, share in self.shares().items()]
        return f"padding was {' and '.join(shares)}" if shares else ""
