"""A retrieval set of one's own in the layout of UVRB's: `--set NAME=DIR` of `evals.uvrb`.

DIR/jsonl/{queries,instances,corpus}.jsonl   see `data.uvrb.reader`; media are relative to DIR
DIR/set.json                                 optional: {"instruction": "...", "metric": "R@10"}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.uvrb.tasks import NAMES, SET_NAME, Task, metric_of
from gve_jax.errors import UserError
from gve_jax.storage.files import read_json
from gve_jax.storage.filesystem import as_local_path

METRIC = "R@1"  # unless the set or the command has another


@dataclass(frozen=True)
class OwnSet(Task):
    """A set of one's own. It belongs to no ability and to no average.

    folder: contains `jsonl`. prompt: instruction of every query, "" for none.
    """

    folder: Path
    prompt: str

    @property
    def instruction(self) -> str:
        return self.prompt

    def folder_in(self, data: Path | None) -> Path:
        return self.folder


def own_sets(
    given: Sequence[str], instruction: str | None = None, metric: str | None = None
) -> tuple[OwnSet, ...]:
    """Reads each `NAME=DIR` with its DIR/set.json, if that exists.

    Args:
      given: `NAME=DIR` of each set.
      instruction, metric: of all sets, instead of those of set.json.

    Raises:
      UserError: a name that is not letters, digits, - and _, occurs twice or is one of UVRB's; no
        such folder; a set.json with other fields; an unknown metric.
    """
    found: dict[str, OwnSet] = {}
    for text in given:
        one = _read(text, instruction, metric)
        if found.setdefault(one.name.upper(), one) is not one:
            raise UserError(f"--set {one.name} is given twice")
    return tuple(found.values())


def _read(given: str, instruction: str | None, metric: str | None) -> OwnSet:
    name, equals, folder = given.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--set {given!r} must be NAME=DIR")
    if not SET_NAME.fullmatch(name):
        raise UserError(f"--set: the name {name!r} must be of letters, digits, '-' and '_'")
    if name.upper() in {known.upper() for known in (*NAMES, "model_meta")}:  # names of files
        what = "the name of a set of UVRB" if name.upper() in map(str.upper, NAMES) else "reserved"
        raise UserError(f"--set: {name} is {what}; choose another")
    root = as_local_path(folder)
    if not (root / "jsonl").is_dir():
        raise UserError(
            f"--set {name}: no folder {root / 'jsonl'}; it must contain queries.jsonl, "
            "instances.jsonl and corpus.jsonl"
        )
    stated = _read_settings(root / "set.json")
    prompt = stated.get("instruction", "") if instruction is None else instruction
    label = stated.get("metric", METRIC) if metric is None else metric
    return OwnSet(
        name=name,
        ability="",
        label=label,
        metric=metric_of(label),
        queries=0,
        corpus=0,
        seconds=0.0,
        words=None,
        source=str(root),
        folder=root,
        prompt=prompt,
    )


def _read_settings(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    stated = read_json(path)
    for key, value in stated.items():
        if key not in ("instruction", "metric") or not isinstance(value, str):
            raise UserError(f"{path}: {key!r} is not expected; it may have instruction and metric")
    return stated
