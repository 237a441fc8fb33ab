"""The paper's mixture of training pairs (arXiv 2510.27571, tables 6 to 8): names, sizes, negatives,
batches. What of it is public, and how files become these sources: docs/reproduce.md.

A name begins with the modality pair. Sizes are in thousands of pairs; a batch is that of one of
32 GPUs, so that global batches are of 1,024 or 2,048 pairs. The rows of images add up to 1.91 M
(3B) and 2.97 M (7B); the paper's own sums are 1.82 M and 2.80 M.
"""

from typing import NamedTuple

GPUS = 32


class Source(NamedTuple):
    name: str
    size_3b: float  # thousands of pairs
    size_7b: float
    negatives: int  # hard ones, of each pair
    batch: int  # of a GPU


COLLECTED = (
    Source("T2T_msmarco", 300, 500, 2, 64),
    Source("T2T_hotpotqa", 69, 69, 1, 64),
    Source("T2T_webqa", 11, 11, 1, 32),
    Source("TI2I_cirr", 16, 16, 1, 32),  # printed as TI to T; its targets are images
    Source("T2I_fashion200k", 4, 4, 1, 32),
    Source("I2I_nights", 13, 13, 1, 32),
    Source("T2TI_edis", 12, 12, 1, 32),
    Source("TI2I_fashioniq", 4, 4, 1, 32),
    Source("I2T_mscoco", 4, 4, 1, 32),
    Source("TI2T_remuq", 5, 5, 1, 32),
    Source("T2TI_webqa", 12, 12, 1, 32),
    Source("TI2TI_oven", 20, 30, 1, 64),
    Source("TI2T_oven", 20, 30, 1, 64),
    Source("TI2T_llava", 20, 30, 1, 64),
    Source("TI2TI_evqa", 20, 30, 1, 64),
    Source("T2I_visualnews", 40, 60, 1, 64),
    Source("T2I_cc3m", 200, 300, 3, 32),
    Source("I2T_cc3m", 100, 200, 2, 64),
    Source("T2I_laion", 300, 500, 3, 32),
    Source("I2T_laion", 200, 200, 2, 64),
    Source("I2T_imagenet", 100, 200, 2, 32),
    Source("TI2I_vista", 100, 100, 2, 32),
    Source("T2TI_vista", 20, 20, 1, 64),
    Source("T2I_vl3syn_short", 300, 500, 3, 32),
    Source("I2T_vl3syn_short", 100, 200, 2, 64),
    Source("T2I_vl3syn_detailed", 200, 300, 3, 32),
    Source("I2T_vl3syn_detailed", 100, 200, 2, 64),
    Source("T2V_vast", 1600, 1600, 0, 32),
    Source("T2V_internvid", 1700, 1700, 0, 32),
    Source("T2V_pevideo", 104, 104, 1, 64),
    Source("T2V_webvid", 5400, 5400, 0, 32),
)
# UVRD, synthesized from the videos of three of them; not published.
SYNTHESIZED = (
    Source("T2T_uvrd", 100, 100, 0, 64),
    Source("T2I_uvrd", 210, 210, 0, 32),
    Source("T2V_uvrd", 879, 879, 1, 64),
    Source("TI2V_uvrd", 89, 89, 1, 64),
    Source("TV2V_uvrd", 35, 35, 1, 64),
    Source("I2V_uvrd", 200, 200, 0, 64),
    Source("V2V_uvrd", 36, 36, 0, 64),
)
ALL = COLLECTED + SYNTHESIZED


def names(sources: tuple[Source, ...]) -> tuple[str, ...]:
    """For `config.data.sources`."""
    return tuple(source.name for source in sources)


def batch_sizes(sources: tuple[Source, ...]) -> tuple[tuple[str, float], ...]:
    """For `config.data.batch_sizes`: shares of the largest batch, which is `config.batch_size`."""
    largest = max(source.batch for source in sources)
    sizes = sorted({source.batch for source in sources})
    chosen = {size: [s.name for s in sources if s.batch == size] for size in sizes}
    return tuple((f"^({'|'.join(found)})$", size / largest) for size, found in chosen.items())
