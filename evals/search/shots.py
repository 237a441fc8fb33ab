"""Shot cuts of the films, beside PySceneDetect's AdaptiveDetector where it is installed."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gve_jax.index.shots import SIZE, find_cuts
from gve_jax.media.sandbox import Sandbox
from gve_jax.storage.files import read_records

TOLERANCE = 2  # frames around a fade's middle; a cut must be exact


def score_cuts(films: Path) -> list[dict]:
    """A row for each detector: precision, recall of cuts and of fades, F1, and seconds."""
    truth = [record for _, record in read_records(films / "cuts.jsonl")]
    rows = []
    for name, find in _detectors().items():
        counts, began = np.zeros(5), time.perf_counter()
        decoded = total = 0
        for film in truth:
            cuts, seen, frames = find(films / "media" / film["path"])
            counts += match(cuts, film["cuts"], film["fades"])
            decoded, total = decoded + seen, total + frames
        hits, found, wanted, faded, fades = counts
        precision, recall = hits / max(1, found), hits / max(1, wanted)
        rows.append(
            {
                "detector": name,
                "f1": 2 * precision * recall / max(1e-9, precision + recall),
                "precision": precision,
                "recall": recall,
                "recall_fades": faded / max(1, fades),
                "decoded": decoded / max(1, total),
                "seconds": time.perf_counter() - began,
            }
        )
    return rows


def match(found, cuts: list[int], fades: list[int]) -> np.ndarray:
    """(matched, found, wanted, matched fades, fades): each cut is matched by one found frame."""
    left, hits, faded = sorted(int(frame) for frame in found), 0, 0
    for cut in cuts:
        reach = TOLERANCE if cut in fades else 0
        near = [frame for frame in left if abs(frame - cut) <= reach]
        if near:
            left.remove(near[0])
            hits += 1
            faded += cut in fades
    return np.array([hits, len(found), len(cuts), faded, len(fades)], float)


def _detectors() -> dict[str, Callable]:
    sandbox = Sandbox()

    def ours(path: Path) -> tuple[np.ndarray, int, int]:
        outline, seen = sandbox.outline(path), 0

        def read(at: np.ndarray) -> np.ndarray:
            nonlocal seen
            seen += len(at)
            return sandbox.pictures(path, at, outline, size=SIZE)

        return find_cuts(outline, read), seen, outline.total

    found = {"gve_jax": ours}
    try:
        import scenedetect
    except ImportError:
        return found

    def adaptive(path: Path) -> tuple[list[int], int, int]:
        scenes = scenedetect.detect(str(path), scenedetect.AdaptiveDetector(min_scene_len=2))
        video = scenedetect.open_video(str(path))
        total = video.duration.frame_num
        return [start.frame_num for start, _ in scenes[1:]], total, total

    return found | {"AdaptiveDetector": adaptive}


def table(rows: list[dict]) -> str:
    keys = list(rows[0])
    lines = [f"| {' | '.join(keys)} |", f"|{' --- |' * len(keys)}"]
    for row in rows:
        cells = [
            f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
