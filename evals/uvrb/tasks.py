"""The sixteen sets of UVRB as data (paper tables 4 and 5)."""

from dataclasses import dataclass

from gve_jax.errors import UserError


@dataclass(frozen=True)
class Task:
    """One set: what it asks, how it is scored, and its size in the paper.

    ability: the finest ability it belongs to; `scores.py` builds the broader ones.
    label, metric: the metric as the paper writes it, and as `gve_jax.retrieval.metrics` does.
    instruction: goes with every query; documents carry none.
    queries, corpus: counts in the paper. For MS-TI and MS-TV it prints a corpus of 10, most
      likely a pool for each query.
    """

    name: str
    ability: str
    label: str
    metric: str
    queries: int
    corpus: int
    instruction: str


def _by(slot: str) -> str:
    return f"Find the video according to the {slot}."


# The R@k of the paper is the hit rate: at least one positive among the first k.
_R1, _R10, _P1 = ("R@1", "hit_rate@1"), ("R@10", "hit_rate@10"), ("P@1", "precision@1")

TASKS: tuple[Task, ...] = (
    Task("MSRVTT", "CG", *_R1, 1000, 1000,
         "Find the clip that corresponds to the described scene in the given video."),
    Task("DiDeMo", "CG", *_R1, 1004, 1004,
         "Find a video that includes the following described scenes."),
    Task("CRB-G", "CG", *_R1, 1000, 1000, _by("general text description")),
    Task("CRB-S", "S", *_R1, 1000, 1000, _by("spatial description")),
    Task("VDC-O", "S", *_R1, 1027, 1027, _by("object description")),
    Task("CRB-T", "T", *_R1, 1000, 1000, _by("temporal description")),
    Task("CMRB", "T", *_R10, 728, 1071, _by("camera motion description")),
    Task("DREAM-E", "PR", *_R1, 6251, 1000, _by("text description")),
    Task("LoVR-TH", "PR", *_R10, 8854, 8854,
         "Find the video according to text description about video theme information."),
    Task("PEV-K", "PR", *_R1, 14427, 15000, _by("text description of a series of keywords")),
    Task("LoVR-V", "LC", *_R1, 100, 467,
         "Find the long video according to the long text description."),
    Task("VDC-D", "LC", *_R1, 1000, 1027, _by("detailed text description")),
    Task("MS-TI", "CMP", *_P1, 400, 10,
         "Find the video clip that corresponds to the given text and the given image."),
    Task("MS-TV", "CMP", *_P1, 400, 10,
         "Find the video clip that corresponds to the given text and the given video."),
    Task("MSRVTT-I2V", "VIS", *_R1, 1000, 1000, _by("image")),
    Task("LoVR-C2V", "VIS", *_R1, 467, 467,
         "Find the original long video according to the short video clip."),
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
