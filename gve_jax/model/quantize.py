"""A frozen base in 4 or 8 bits, for adapters on a single GPU (QLoRA, arXiv 2305.14314).

Requires qwix (the extra `quant`). A quantized kernel replaces the kernel in the parameter tree; the
scan over layers dequantizes one layer at a time, in the dtype of the activations. With
`remat_text="none"` the backward pass would store the dense kernels of all layers: train with
"full". Adapters are merged into the original base.
"""

import re
from typing import Any

import jax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.errors import UserError, install_command

KINDS = ("nf4", "int8")
DECODER = r"^language/layers/.*/kernel$"
TILE = 64  # rows that share a scale, as in QLoRA


@struct.dataclass
class Quantized:
    """A quantized kernel [in, out] or [layers, in, out]; has `[...]` and `astype` of an array."""

    array: Any  # qwix.QArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, everything) -> "Quantized":
        return self

    def astype(self, dtype) -> jax.Array:
        import qwix

        return qwix.dequantize(self.array.astype(dtype))


def quantize(params: dict[str, Any], kind: str, targets: str = DECODER) -> dict[str, Any]:
    """Quantizes the kernels whose paths match `targets` to `kind` ("nf4" or "int8").

    Each column of a kernel has a scale for every 64 rows, in the kernel's dtype.

    Raises:
      UserError: unknown kind; qwix is not installed; no kernel matches; 64 does not divide the rows
        of a kernel.
    """
    if kind not in KINDS:
        raise UserError(f"unknown quantization {kind!r}; known: {', '.join(KINDS)}")
    try:
        import qwix
    except ImportError as error:
        raise UserError(f"quantization needs qwix: {install_command('quant')}") from error

    @jax.jit
    def pack(kernel):
        def one(matrix):
            return qwix.quantize(matrix, kind, channelwise_axes=[1], tiled_axes={0: TILE})

        return Quantized(one(kernel) if kernel.ndim == 2 else jax.lax.map(one, kernel))

    flat = flatten_dict(params, sep="/")
    chosen = [name for name in flat if name.endswith("/kernel") and re.search(targets, name)]
    if not chosen:
        raise UserError(f"quantization: {targets!r} matches no kernel")
    odd = [name for name in chosen if flat[name].shape[-2] % TILE]
    if odd:
        raise UserError(f"quantization: {TILE} does not divide the rows of {', '.join(odd)}")
    return unflatten_dict({k: pack(v) if k in chosen else v for k, v in flat.items()}, sep="/")
