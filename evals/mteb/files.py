"""Results in mteb's own file layout, so that its readers load them. Does not import mteb.

    OUTPUT/mteb/results/<organisation>__<model>/<revision>/UVRB-<SET>.json    a TaskResult
    OUTPUT/mteb/results/<organisation>__<model>/<revision>/model_meta.json    a ModelMeta

`mteb.ResultCache("OUTPUT/mteb")` loads them. An own set is <NAME>.json. Names of
tasks and revisions are the same when MTEB itself scores the sets (`evals.mteb`): a revision is a
digest of the fingerprint, that is of weights and settings. Fields that are unknown are null.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from data.uvrb.tasks import NAMES, metric_of
from gve_jax.storage.files import write_json

VERSION = "2.26.24"  # of mteb, whose format is written
REVISION = "9aa95531e8ca43164360514b7ade40c3997d380e"  # of the sets on the Hub, as released
SPLIT, LANGUAGE = "test", "eng-Latn"
MODALITIES = ("text", "image", "video")
_UNKNOWN = """release_date n_parameters n_active_parameters_override n_embedding_parameters
memory_usage_mb license open_weights public_training_code public_training_data reference
training_datasets adapted_from superseded_by citation contacts output_dtypes
extra_requirements_groups embed_dim experiment_kwargs loader""".split()


def write(output: Path, results: Mapping, now: float) -> Path:
    """Writes a TaskResult for each set, and the ModelMeta; returns their folder.

    Args:
      output: OUTPUT of the command.
      results: contents of `results.json`.
      now: seconds since 1970.
    """
    name, revision = model_name(results["model"]), revision_of(results["fingerprint"])
    folder = output / "mteb" / "results" / name.replace("/", "__").replace(" ", "_") / revision
    for set_name, record in results["datasets"].items():
        digests = results.get("digests", {}).get(set_name)
        result = _task_result(set_name, record, digests, now)
        write_json(folder / f"{task_name(set_name)}.json", result)
    write_json(folder / "model_meta.json", model_meta(name, results["fingerprint"]))
    return folder


def task_name(name: str) -> str:
    """mteb's name of a set: that of a set of one's own is unchanged."""
    return f"UVRB-{name}" if name in NAMES else name


def model_name(model: str) -> str:
    """`organisation/model`, as mteb requires: a Hub id unchanged, a directory by its name."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@[\w./-]+)?", model)
    if match and not Path(model).exists():
        return match[1]
    path = Path(model).absolute()
    # Training writes `.../GVE-3B/model`: the parent folder is the more useful name.
    last = path.parent.name + "-model" if path.name == "model" and path.parent.name else path.name
    return "local/" + (re.sub(r"[^\w.-]", "_", last) or "model")


def revision_of(fingerprint: Mapping) -> str:
    """40 hex digits, as of a commit."""
    text = json.dumps(dict(fingerprint), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _task_result(name: str, record: Mapping, digests: Mapping | None, now: float) -> dict:
    names = {name.replace("@", "_at_"): value for name, value in record["metrics"].items()}
    scores = {
        **{name: value for name, value in names.items() if value is not None},
        "main_score": record["score"],
        "main_metric": metric_of(record["metric"]).replace("@", "_at_"),
        "chance": record["chance"],
        "interval_low": record["interval"][0],
        "interval_high": record["interval"][1],
        "hf_subset": "default",
        "languages": [LANGUAGE],
    }
    return {
        "dataset_revision": REVISION if name in NAMES else revision_of(digests or {}),
        "task_name": task_name(name),
        "mteb_version": VERSION,
        "scores": {SPLIT: [scores]},
        "evaluation_time": record["seconds"],
        "kg_co2_emissions": None,
        "date": now,
        "evaluation_phases": None,
    }


def model_meta(name: str, fingerprint: Mapping) -> dict:
    """The fields of mteb's ModelMeta."""
    return dict.fromkeys(_UNKNOWN) | {
        "loader_kwargs": {},
        "name": name,
        "revision": revision_of(fingerprint),
        "languages": [LANGUAGE],
        "max_tokens": fingerprint.get("inputs.max_length"),
        "framework": [fingerprint.get("framework", "JAX")],
        "similarity_fn_name": "cosine",
        "use_instructions": True,
        "modalities": list(MODALITIES),
        "model_type": ["dense"],
        "is_cross_encoder": False,
    }
