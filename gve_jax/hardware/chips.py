"""Peak rates and memory of accelerators, as their manufacturers publish them.

Sources: Google Cloud's pages "TPU v5e", "TPU v5p", "TPU v6e (Trillium)"
(docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e); NVIDIA's data sheets "H100 Tensor Core GPU",
"H200 Tensor Core GPU", "A100 Tensor Core GPU" (SXM, dense bfloat16: half of the rate stated for
sparse matrices).
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peak rates and memory of one chip."""

    name: str
    platform: str  # "tpu" or "gpu"
    flops: float  # bfloat16 FLOP/s
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    link: float  # bytes/s in one direction: per ICI link of a TPU, all NVLinks of a GPU together
    kinds: tuple[str, ...]  # prefixes of JAX's `device_kind`, in lower case
    axes: int = 0  # of a TPU's torus
    wraps: int = 0  # an axis closes to a ring from this size, or (v5p) in multiples of it


GIB, GB = 2.0**30, 1e9
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # ICI: 1,600, 4,800 and 3,200 Gbit/s per chip over 4, 6 and 4 links.
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819 * GB, 50 * GB, ("tpu v5 lite", "tpu v5e"), 2, 16),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765 * GB, 100 * GB, ("tpu v5p", "tpu v5"), 3, 4),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1640 * GB, 100 * GB, ("tpu v6",), 2, 16),
        Chip("h100", "gpu", 989e12, 80 * GB, 3350 * GB, 450 * GB, ("nvidia h100",)),
        Chip("h200", "gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB, ("nvidia h200",)),
        Chip("a100", "gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB, ("nvidia a100",)),
    )
}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`; None for a CPU or an unlisted chip."""
    kind = device_kind.lower()
    return next((c for c in CHIPS.values() if any(kind.startswith(k) for k in c.kinds)), None)
