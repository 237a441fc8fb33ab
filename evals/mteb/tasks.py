"""UVRB's sets as MTEB retrieval tasks: `mteb.evaluate(model, tasks(sets, choose(None)))`.

Their main score is the paper's metric under MTEB's name: `hit_rate_at_1` is R@1. MTEB breaks ties
differently from `python -m evals.uvrb`, and ranks only the first thousand documents; without ties
both give the same numbers.
"""

from collections.abc import Iterable
from pathlib import Path

import datasets
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from data.uvrb.reader import RetrievalSet
from data.uvrb.sets import Sets
from data.uvrb.tasks import Task
from evals.mteb.files import LANGUAGE, REVISION, SPLIT, task_name
from gve_jax.errors import UserError

_QUERIES = {  # modalities of a set's queries; those of all other sets are texts
    "MS-TI": ("image", "text"),
    "MS-TV": ("video", "text"),
    "MSRVTT-I2V": ("image",),
    "LoVR-C2V": ("video",),
}
_BIBTEX = r"""@misc{guo2025gve,
  archiveprefix = {arXiv},
  author = {Zhuoning Guo and Mingxin Li and Yanzhao Zhang and Dingkun Long and Pengjun Xie and Xiaowen Chu},
  eprint = {2510.27571},
  primaryclass = {cs.CV},
  title = {Towards Universal Video Retrieval: Generalizing Video Embedding via Synthesized Multimodal Pyramid Curriculum},
  url = {https://arxiv.org/abs/2510.27571},
  year = {2025},
}"""  # noqa: E501


class UVRBTask(AbsTaskRetrieval):
    """One set, read from disk when MTEB loads it."""

    def __init__(self, source: Sets, task: Task, **kwargs):
        super().__init__(**kwargs)
        self._source, self._task = source, task

    def load_data(self, num_proc: int | None = None, **kwargs) -> None:
        """Raises UserError if the set is invalid; see `data.uvrb.reader`."""
        if self.data_loaded:
            return
        found = self._source.open(self._task)
        found.files.ensure()
        self.dataset = {"default": {SPLIT: _split(found)}}
        self.data_loaded = True


def tasks(source: Sets, chosen: Iterable[Task]) -> list[UVRBTask]:
    """The chosen sets as tasks named `UVRB-<SET>`."""
    return [
        type(f"UVRB{task.name}", (UVRBTask,), {"metadata": metadata(task)})(source, task)
        for task in chosen
    ]


def metadata(task: Task) -> TaskMetadata:
    """MTEB's metadata of a set."""
    kinds = _QUERIES.get(task.name, ("text",))
    return TaskMetadata(
        name=task_name(task.name),
        description=f"{task.source}: one of the sixteen sets of the Universal Video Retrieval "
        f"Benchmark, scored by {task.label} in the paper.",
        reference="https://huggingface.co/datasets/Alibaba-NLP/UVRB",
        dataset={"path": "Alibaba-NLP/UVRB", "revision": REVISION},
        type="Any2AnyRetrieval",
        category=f"{''.join(kind[0] for kind in kinds)}2v",
        modalities=sorted({*kinds, "video"}),
        eval_splits=[SPLIT],
        eval_langs=[LANGUAGE],
        main_score=task.metric.replace("@", "_at_"),
        prompt={"query": task.instruction},
        bibtex_citation=_BIBTEX,
    )


def _split(found: RetrievalSet) -> RetrievalSplitData:
    kinds = _QUERIES.get(found.task.name, ("text",))
    for query in found.queries:
        for kind in kinds:
            if not getattr(query, kind):
                raise UserError(f"{found.task.name}: query {query.id!r} has no {kind}")
    return RetrievalSplitData(
        corpus=_dataset(found, found.corpus, ("video",)),
        queries=_dataset(found, found.queries, kinds),
        relevant_docs={query.id: dict.fromkeys(query.positives, 1) for query in found.queries},
        top_ranked=found.candidates
        and {
            query.id: list(pool)
            for query, pool in zip(found.queries, found.candidates, strict=True)
        },
    )


def _dataset(found: RetrievalSet, entries: Iterable, kinds: Iterable[str]) -> datasets.Dataset:
    columns: dict[str, list] = {"id": [entry.id for entry in entries]}
    features = {"id": datasets.Value("string")}
    types = {"text": datasets.Value("string"), "image": datasets.Image(), "video": datasets.Video()}
    for kind in kinds:
        values = [getattr(entry, kind) for entry in entries]
        columns[kind] = values if kind == "text" else [_file(path) for path in values]
        features[kind] = types[kind]
    if "video" in kinds:
        rates = [found.files.rate(entry.video) for entry in entries]
        if any(rates):  # folders of frames, which only our encoder reads
            columns["fps"] = [rate or 0.0 for rate in rates]
            features["fps"] = datasets.Value("float32")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _file(path: Path) -> dict:
    return {"path": str(path), "bytes": None}
