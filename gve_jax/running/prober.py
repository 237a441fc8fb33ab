"""Who measures the pairs' alignment before the first step, where it is not the run itself."""

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


def is_scores(prober: str) -> bool:
    """Whether `config.pyramid.prober` names a file of scores; else it names a model."""
    return prober.endswith(".json")


def read_scores(path: str, tasks: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """R of each source by a JSON file {task: R}; `tasks` are the sources of each.

    Raises:
      UserError: no such file, no JSON object, a task that is missing or unknown, a value that is no
        cosine: in one line that names the file.
    """
    try:
        told = json.loads(as_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"pyramid.prober {path}: {error}") from error
    if not isinstance(told, dict):
        raise UserError(f"pyramid.prober {path}: not an object of task: R")
    problems = [f"no score of {task!r}" for task in tasks if task not in told]
    problems += [f"{task!r} is no task" for task in told if task not in tasks]
    for task, score in told.items():
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not math.isfinite(score) or not -1 <= score <= 1:
            problems.append(f"{task!r} is {score!r}, no mean cosine")
    if problems:
        known = ", ".join(tasks)
        raise UserError(f"pyramid.prober {path}: {'; '.join(problems)} (tasks are {known})")
    return {source: float(told[task]) for task, names in tasks.items() for source in names}


def measure(
    model: str,
    sources: Sources,
    picked: Sequence[tuple[str, np.ndarray]],
    mesh: jax.sharding.Mesh,
    limits: Limits,
    quarantine: Quarantine,
) -> dict[str, list[np.ndarray]]:
    """Cosines of picked pairs by source, float32, by the encoder at `model`, with its own inputs.

    Its width need not be that of the model in training. On several hosts each has a copy, over its
    own devices, and all go by the first one's numbers.

    Raises:
      UserError: as `GVE.from_pretrained`.
    """
    if jax.process_count() > 1:
        mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    try:
        encoder = GVE.from_pretrained(model, mesh=mesh, limits=limits)
    except UserError as error:
        raise UserError(f"pyramid.prober: {error}") from error
    found: dict[str, list[np.ndarray]] = {}
    for source, indices in picked:
        pairs = sources.read(source, indices)
        vectors = {}
        for side in ("query", "positive"):
            ids = [f"{pair['id']}/{side}" for pair in pairs]
            items = [pair[side] for pair in pairs]
            readable, valid = encoder.encode_valid(items, ids, quarantine)
            vectors[side] = np.full((len(pairs), readable.shape[1]), np.nan, np.float32)
            vectors[side][valid] = readable
        cosines = np.sum(vectors["query"] * vectors["positive"], axis=-1)
        found.setdefault(source, []).append(cosines[~np.isnan(cosines)])
    told = hosts.gather({name: [one.tolist() for one in ones] for name, ones in found.items()})[0]
    return {name: [np.float32(one) for one in ones] for name, ones in told.items()}
