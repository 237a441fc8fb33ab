"""Measurements: UVRB scores, parity, speed, and the benefit of curricula and synthesized pairs."""
