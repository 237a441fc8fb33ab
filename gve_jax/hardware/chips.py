"""What accelerators can do at most, as their makers publish it.

Sources, one for each: Google Cloud's pages "TPU v5e", "TPU v5p", "TPU v6e (Trillium)"
(docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e); NVIDIA's data sheets "H100 Tensor Core GPU",
"H200 Tensor Core GPU", "A100 Tensor Core GPU" (SXM, dense bfloat16: half of the rate they state
"with sparsity").
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peaks of one chip: FLOP/s of bfloat16, bytes, bytes/s."""

    name: str
    platform: str  # "tpu" or "gpu"
    flops: float
    memory: float  # bytes
    bandwidth: float  # of its memory, bytes/s
    link: float  # bytes/s one way: of one ICI link of a TPU, of all NVLinks of a GPU together
    kinds: tuple[str, ...]  # beginnings of JAX's `device_kind`, lower case
    axes: int = 0  # of a TPU's torus
    wraps: int = 0  # an axis closes to a ring from this size, or (v5p) in multiples of it


GIB, GB = 2.0**30, 1e9
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # ICI: 1,600, 4,800 and 3,200 Gbit/s leave a chip, over 4, 6 and 4 links.
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819 * GB, 50 * GB, ("tpu v5 lite", "tpu v5e"), 2, 16),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765 * GB, 100 * GB, ("tpu v5p", "tpu v5"), 3, 4),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1640 * GB, 100 * GB, ("tpu v6",), 2, 16),
        Chip("h100", "gpu", 989e12, 80 * GB, 3350 * GB, 450 * GB, ("nvidia h100",)),
        Chip("h200", "gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB, ("nvidia h200",)),
        Chip("a100", "gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB, ("nvidia a100",)),
    )
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None: a CPU, or one that is not in the table."""
    kind = device_kind.lower()
    return next((c for c in CHIPS.values() if any(kind.startswith(k) for k in c.kinds)), None)
