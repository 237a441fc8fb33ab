"""Compares the M-RoPE regimes with positions recorded from transformers' releases."""

from pathlib import Path

import numpy as np

from evals.parity.goldens import mrope as golden
from gve_jax.inputs.positions import MROPE, mrope_positions


def check_regimes() -> list[tuple[str, str, int, bool]]:
    """(regime, releases it was recorded from, cases, whether all integers are equal)."""
    numbers = np.load(Path(golden.__file__).with_suffix(".npz"))
    table = []
    for regime in MROPE:
        releases = [v.split(",")[0].split()[1] for v in numbers[f"{regime}/versions"].tolist()]
        equal = all(
            np.array_equal(
                mrope_positions(golden.segments(case), golden.CASES[case][0], regime),
                numbers[f"{regime}/{case}"],
            )
            for case in golden.CASES
        )
        table.append((regime, ", ".join(releases), len(golden.CASES), equal))
    return table
