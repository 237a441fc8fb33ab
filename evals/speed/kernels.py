"""The time of a GPU by kernel, from a trace of jax.profiler."""

import re
from collections import defaultdict
from pathlib import Path

import jax

# The first pattern that a kernel's name matches decides.
_KINDS = (
    ("attention of cuDNN", r"sdpa|flash|fmha|cudnn"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|cublas|splitK"),
    ("copies", r"memcpy|copy|memset"),
    ("softmax", r"softmax|reduce"),
    ("fusions", r"fusion"),
)
LISTED = 14  # kernels to list


def by_kernel(folder: Path) -> dict:
    """Seconds of all traced GPUs' kernels by kind, and the longest ones."""
    totals: dict[str, float] = defaultdict(float)
    spans: list[tuple[float, float]] = []
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    totals[event.name] += event.duration_ns / 1e9
                    spans.append((event.start_ns, event.start_ns + event.duration_ns))
    kinds: dict[str, float] = defaultdict(float)
    for name, seconds in totals.items():
        kinds[kind_of(name)] += seconds
    longest = sorted(totals.items(), key=lambda pair: -pair[1])[:LISTED]
    return {
        "seconds with a kernel running": round(covered(spans) / 1e9, 4),
        "by kind": {k: round(s, 4) for k, s in sorted(kinds.items(), key=lambda p: -p[1])},
        "longest": {name[:90]: round(seconds, 4) for name, seconds in longest},
    }


def kind_of(name: str) -> str:
    kinds = (kind for kind, pattern in _KINDS if re.search(pattern, name, re.IGNORECASE))
    return next(kinds, "others")


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of (start, end)."""
    total, done = 0.0, float("-inf")
    for start, end in sorted(spans):
        if end > done:
            total += end - max(start, done)
            done = end
    return total
