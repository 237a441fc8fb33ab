"""The sixteen sets of UVRB as data (paper tables 4 and 5)."""

from dataclasses import dataclass

from gve_jax.errors import UserError
from gve_jax.inputs.instructions import INSTRUCTIONS


@dataclass(frozen=True)
class Task:
    """One set: what it asks, how it is scored, and its size in the paper.

    ability: the finest ability it belongs to; `scores.py` builds the broader ones.
    label, metric: the metric as the paper writes it, and as `gve_jax.retrieval.metrics` does.
    queries, corpus: counts in the paper. For MS-TI and MS-TV it prints a corpus of 10, most
      likely a pool for each query.
    """

    name: str
    ability: str
    label: str
    metric: str
    queries: int
    corpus: int

    @property
    def instruction(self) -> str:
        """Goes with every query; documents carry none."""
        return INSTRUCTIONS[self.name]


# The R@k of the paper is the hit rate: at least one positive among the first k.
_R1, _R10, _P1 = ("R@1", "hit_rate@1"), ("R@10", "hit_rate@10"), ("P@1", "precision@1")

TASKS: tuple[Task, ...] = (
    Task("MSRVTT", "CG", *_R1, 1000, 1000),
    Task("DiDeMo", "CG", *_R1, 1004, 1004),
    Task("CRB-G", "CG", *_R1, 1000, 1000),
    Task("CRB-S", "S", *_R1, 1000, 1000),
    Task("VDC-O", "S", *_R1, 1027, 1027),
    Task("CRB-T", "T", *_R1, 1000, 1000),
    Task("CMRB", "T", *_R10, 728, 1071),
    Task("DREAM-E", "PR", *_R1, 6251, 1000),
    Task("LoVR-TH", "PR", *_R10, 8854, 8854),
    Task("PEV-K", "PR", *_R1, 14427, 15000),
    Task("LoVR-V", "LC", *_R1, 100, 467),
    Task("VDC-D", "LC", *_R1, 1000, 1027),
    Task("MS-TI", "CMP", *_P1, 400, 10),
    Task("MS-TV", "CMP", *_P1, 400, 10),
    Task("MSRVTT-I2V", "VIS", *_R1, 1000, 1000),
    Task("LoVR-C2V", "VIS", *_R1, 467, 467),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(task.name for task in TASKS)
MOTION: tuple[str, ...] = ("CRB-T", "CMRB")  # sets that the order of frames must matter to


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
