"""Recall of moments in the films, by policy of windows, and what the index costs."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gve_jax.index.index import Index
from gve_jax.index.query import Hit
from gve_jax.index.windows import Windows
from gve_jax.storage.files import read_records

# Windows, and the frames of each; None: the model's own number.
POLICIES: dict[str, tuple[Windows, int | None]] = {
    "frames, 1 a second": (Windows("fixed", length=1.0, stride=1.0), None),
    "shots": (Windows("shots"), None),
    "shots, 4 frames": (Windows("shots"), 4),
    "shots of at most 4 s": (Windows("shots", length=4.0), None),
    "fixed 8 s, stride 4": (Windows("fixed", length=8.0, stride=4.0), None),
    "fixed 4 s, stride 4": (Windows("fixed", length=4.0, stride=4.0), None),
    "fixed 4 s, stride 2": (Windows("fixed", length=4.0, stride=2.0), None),
    "fixed 4 s, stride 2, 4 frames": (Windows("fixed", length=4.0, stride=2.0), 4),
    "fixed 4 s, stride 1": (Windows("fixed", length=4.0, stride=1.0), None),
    "fixed 2 s, stride 1": (Windows("fixed", length=2.0, stride=1.0), None),
}
MERGES = (-1.0, 0.05, 0.1, 0.2, 0.4)


class FrameModel:
    """A model that embeds the first frame of a video as an image."""

    def __init__(self, model):
        self.preprocess, self.embedding_dim = model.preprocess, model.embedding_dim
        self.fingerprint: Mapping = {**model.fingerprint, "frames": "first"}
        self.encode_query, self._model = model.encode_query, model

    def encode_valid(self, items, ids, quarantine, **options):
        images = [
            dataclasses.replace(item, video=None, image=item.video[0], fps=None, num_frames=None)
            for item in items
        ]
        return self._model.encode_valid(images, ids, quarantine, **options)


def score_policies(films: Path, output: Path, model, names=tuple(POLICIES)) -> list[dict]:
    """A row for each policy and each share of merging: recall at the first and among the first five
    hits, by kind of query, and the mean error of the boundaries of hits."""
    queries = [record for _, record in read_records(films / "queries.jsonl")]
    vectors = [
        model.encode_query(query["text"], prompt_name=query["prompt_name"]) for query in queries
    ]
    rows = []
    for name in names:
        policy, frames = POLICIES[name]
        encoder = FrameModel(model) if name.startswith("frames") else model
        if frames is not None:
            encoder = model.with_inputs(num_frames=frames)
        folder = output / name.replace(" ", "-").replace(",", "")
        began = time.perf_counter()
        with Index.create(folder, films / "media", encoder, windows=policy) as index:
            index.update()
            seconds = time.perf_counter() - began
            for merge in MERGES:
                hits = [index.search(vector=vector, k=5, merge=merge) for vector in vectors]
                row = {"windows": name, "merge": merge, "moments": len(index)}
                rows.append(row | summarize(queries, hits) | {"seconds": seconds})
    return rows


def summarize(queries: list[dict], hits: list[list[Hit]]) -> dict:
    """Recall at IoU >= 0.5, and the error of boundaries where the first hit overlaps its moment."""
    found: dict[str, list[float]] = {}
    errors = []
    for query, best in zip(queries, hits, strict=True):
        overlaps = [overlap(query, hit) for hit in best]
        for kind in ("all", query["kind"]):
            found.setdefault(f"R@1 {kind}", []).append(overlaps[0] >= 0.5)
            found.setdefault(f"R@5 {kind}", []).append(max(overlaps) >= 0.5)
        if overlaps[0] > 0:
            hit = best[0]
            errors += [
                abs(hit.start_sec - query["start_sec"]),
                abs(hit.end_sec - query["end_sec"]),
            ]
    means = {key: float(np.mean(values)) for key, values in sorted(found.items())}
    return means | {"boundary error": float(np.mean(errors)) if errors else float("nan")}


def overlap(query: dict, hit: Hit) -> float:
    """Intersection over union of a hit and the moment that a query asks for."""
    if hit.path != query["path"]:
        return 0.0
    shared = min(hit.end_sec, query["end_sec"]) - max(hit.start_sec, query["start_sec"])
    either = max(hit.end_sec, query["end_sec"]) - min(hit.start_sec, query["start_sec"])
    return max(0.0, shared) / either
