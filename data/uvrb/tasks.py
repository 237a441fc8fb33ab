"""The sixteen sets of UVRB as data (paper tables 4 and 5, section A.2)."""

import re
from dataclasses import dataclass
from pathlib import Path

from gve_jax.errors import UserError
from gve_jax.inputs.instructions import INSTRUCTIONS


@dataclass(frozen=True)
class Task:
    """One set: its content, its metric, and its size in the paper.

    ability: the finest ability it belongs to; `evals/uvrb/scores.py` computes the broader ones.
    label, metric: the metric's name in the paper and in `gve_jax.retrieval.metrics`.
    queries, corpus: counts in the paper. For MS-TI and MS-TV it prints a corpus of 10, most
      likely a pool for each query: see MOMENT.
    seconds: mean duration of its videos. words: mean words of its queries, None without text.
    source: the dataset it was made from.
    """

    name: str
    ability: str
    label: str
    metric: str
    queries: int
    corpus: int
    seconds: float
    words: float | None
    source: str

    @property
    def kind(self) -> str:
        """Type of the queries: TXT text, CMP text with an image or clip, VIS an image or clip."""
        return self.ability if self.ability in ("CMP", "VIS") else "TXT"

    @property
    def instruction(self) -> str:
        """Instruction of every query; documents have none."""
        return INSTRUCTIONS[self.name]

    def folder_in(self, data: Path) -> Path:
        """Where the set is in the directory of the data, unless it is in an archive."""
        return data / "UVRB" / self.name


# Metrics of `gve_jax.retrieval.metrics` by their names in tables. R@k is the hit rate, as in video
# papers and UVRB's: at least one positive among the first k.
_METRICS = {"R": "hit_rate", "P": "precision", "recall": "recall", "nDCG": "ndcg"}


def metric_of(label: str) -> str:
    """The name in `gve_jax.retrieval.metrics` of a metric such as R@1, P@1, recall@5, nDCG@10, MRR.

    Raises:
      UserError: another name.
    """
    if label == "MRR":
        return "mrr"
    match = re.fullmatch(r"(\w+)@([1-9]\d{0,3})", label)
    if not match or match[1] not in _METRICS:
        known = ", ".join(f"{name}@K" for name in _METRICS)
        raise UserError(f"unknown metric {label!r}; known: {known}, MRR")
    return f"{_METRICS[match[1]]}@{match[2]}"


_R1, _R10, _P1 = ((label, metric_of(label)) for label in ("R@1", "R@10", "P@1"))

TASKS: tuple[Task, ...] = (
    Task("MSRVTT", "CG", *_R1, 1000, 1000, 15.0, 9.4, "MSR-VTT, the 1k-A split"),
    Task("DiDeMo", "CG", *_R1, 1004, 1004, 53.9, 29.1, "DiDeMo, a paragraph for each video"),
    Task("CRB-G", "CG", *_R1, 1000, 1000, 14.4, 232.2, "CaReBench, caption"),
    Task("CRB-S", "S", *_R1, 1000, 1000, 14.4, 115.0, "CaReBench, spatial_caption"),
    Task("VDC-O", "S", *_R1, 1027, 1027, 30.1, 91.4, "VDC, main_object_caption"),
    Task("CRB-T", "T", *_R1, 1000, 1000, 14.4, 103.2, "CaReBench, temporal_caption"),
    Task("CMRB", "T", *_R10, 728, 1071, 5.7, 24.8, "CameraBench, text of the camera's motion"),
    Task("DREAM-E", "PR", *_R1, 6251, 1000, 8.8, 6.5, "DREAM-1K, a query for each event"),
    Task("LoVR-TH", "PR", *_R10, 8854, 8854, 16.9, 48.1, "LoVR, themes of clips"),
    Task("PEV-K", "PR", *_R1, 14427, 15000, 16.9, 45.5, "PE-Video, test split, keywords"),
    Task("LoVR-V", "LC", *_R1, 100, 467, 1560.3, 17364.5, "LoVR, caption of the whole video"),
    Task("VDC-D", "LC", *_R1, 1000, 1027, 30.1, 508.0, "VDC, detailed_caption"),
    Task("MS-TI", "CMP", *_P1, 400, 10, 13.5, 68.5, "MomentSeeker, text and picture"),
    Task("MS-TV", "CMP", *_P1, 400, 10, 13.5, 68.5, "MomentSeeker, text and clip"),
    Task("MSRVTT-I2V", "VIS", *_R1, 1000, 1000, 15.0, None, "MSR-VTT, a random frame of the video"),
    Task("LoVR-C2V", "VIS", *_R1, 467, 467, 1560.3, None, "LoVR, a clip of the long video"),
)

SET_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]*")  # also of sets of one's own: names of files
NAMES: tuple[str, ...] = tuple(task.name for task in TASKS)
ABILITY = {task.name: task.ability for task in TASKS}  # sets of one's own have none
MOTION: tuple[str, ...] = ("CRB-T", "CMRB")  # sets whose scores must depend on the order of frames

# The paper prints a corpus of 10 for these. "candidates" takes it as a pool of candidates for each
# query, as in MMEB-V2; "whole" ranks each query in the whole corpus.jsonl.
MOMENT: tuple[str, ...] = ("MS-TI", "MS-TV")
POOLS: tuple[str, ...] = ("whole", "candidates")


def choose(names: str | None) -> tuple[Task, ...]:
    """The tasks named in a comma-separated list, in the table's order; all of them for None.

    Raises:
      UserError: a name that is not one of the sixteen, or no name.
    """
    if names is None:
        return TASKS
    wanted = {name.strip() for name in names.split(",")}
    unknown = sorted(wanted - set(NAMES))
    if unknown:
        raise UserError(f"unknown set {unknown[0]!r}; the sets are {', '.join(NAMES)}")
    return tuple(task for task in TASKS if task.name in wanted)
