"""Alignment scores of the first stage from an external model or a file (`pyramid.prober`)."""

import json
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from gve_jax.distributed import hosts
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.media.limits import Limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.filesystem import as_path
from gve_jax.streams.sources import Sources


def is_score_file(prober: str) -> bool:
    """Whether `config.pyramid.prober` names a file of scores, not a model."""
    return prober.endswith(".json")


def read_scores(path: str, tasks: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Reads a JSON file {task: R}; returns R by source. `tasks` are the sources of each task.

    Raises:
      UserError: the file cannot be read or is not a JSON object; a task is missing or unknown; a
        value is not a cosine.
    """
    try:
        scores = json.loads(as_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"pyramid.prober {path}: {error}") from error
    if not isinstance(scores, dict):
        raise UserError(f"pyramid.prober {path}: must be a JSON object {{task: R}}")
    problems = [f"no score of task {task!r}" for task in tasks if task not in scores]
    problems += [f"unknown task {task!r}" for task in scores if task not in tasks]
    for task, score in scores.items():
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not math.isfinite(score) or not -1 <= score <= 1:
            problems.append(f"{task!r} is {score!r}, must be a mean cosine in [-1, 1]")
    if problems:
        known = ", ".join(tasks)
        raise UserError(f"pyramid.prober {path}: {'; '.join(problems)} (tasks: {known})")
    return {source: float(scores[task]) for task, names in tasks.items() for source in names}


def measure_cosines(
    model: str,
    sources: Sources,
    batches: Sequence[tuple[str, np.ndarray]],
    mesh: jax.sharding.Mesh,
    limits: Limits,
    quarantine: Quarantine,
) -> dict[str, list[np.ndarray]]:
    """Cosines of query and positive by the encoder at `model`, float32, by source.

    The encoder's profile, inputs and width may differ from those of the model in training; cosines
    are compared within one stage only. On several hosts
    each has a copy on its devices, and all return the numbers of host 0.

    Raises:
      UserError: as `GVE.from_pretrained`.
    """
    if jax.process_count() > 1:
        mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    try:
        encoder = GVE.from_pretrained(model, mesh=mesh, limits=limits)
    except UserError as error:
        raise UserError(
            f"pyramid.prober: {error}; set config.pyramid.prober to a directory of its weights, to "
            "a JSON file {task: R}, or to None to probe with the initial weights"
        ) from error
    measured: dict[str, list[np.ndarray]] = {}
    for source, indices in batches:
        pairs = sources.read(source, indices)
        vectors = {}
        for side in ("query", "positive"):
            ids = [f"{pair['id']}/{side}" for pair in pairs]
            items = [pair[side] for pair in pairs]
            readable, valid = encoder.encode_valid(items, ids, quarantine)
            vectors[side] = np.full((len(pairs), readable.shape[1]), np.nan, np.float32)
            vectors[side][valid] = readable
        cosines = np.sum(vectors["query"] * vectors["positive"], axis=-1)
        measured.setdefault(source, []).append(cosines[~np.isnan(cosines)])
    lists = hosts.gather({name: [v.tolist() for v in each] for name, each in measured.items()})[0]
    return {name: [np.float32(v) for v in each] for name, each in lists.items()}
