"""Inputs of the encoder: arrays of one static shape, computed on the host.

A field is declared in one line: its shape in the letters of `gve_jax`, its dtype, and the value of
its padding. The batch is the first axis of every array, so that all are placed, sharded and divided
into chunks alike.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import numpy as np
from flax import struct
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int, UInt8

_DTYPES = {"Int": np.int32, "UInt8": np.uint8, "Bool": np.bool_}


def _padded(value: int):
    return struct.field(metadata={"padding": value})


class _Arrays:
    """Creates arrays from the declarations of fields."""

    @classmethod
    def declared(cls, sizes: Mapping[str, int], dtype=np.float32) -> dict[str, tuple]:
        """Returns (shape, dtype, padding value) of each field.

        Args:
          sizes: sizes of the dimensions in the fields' shapes.
          dtype: dtype of the floating-point fields.
        """
        fields = {}
        for field in dataclasses.fields(cls):
            kind = getattr(field.type, "__args__", (field.type,))[0]  # of `Float[...] | None`
            shape = tuple(
                int(size) if size.isdecimal() else sizes[size] for size in kind.dim_str.split()
            )
            number = _DTYPES.get(kind.__name__.split("[")[0], dtype)
            fields[field.name] = shape, np.dtype(number), field.metadata["padding"]
        return fields

    @classmethod
    def padding(cls, sizes: Mapping[str, int], dtype=np.float32) -> dict[str, np.ndarray]:
        """Returns host arrays of padding for each field."""
        return {
            name: np.full(shape, value, dtype)
            for name, (shape, dtype, value) in cls.declared(sizes, dtype).items()
        }

    @classmethod
    def abstract(cls, sizes: Mapping[str, int], sharding: Sharding | None = None):
        """Returns abstract arrays, for `jax.jit(...).lower`."""
        return cls(
            **{
                name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
                for name, (shape, dtype, _) in cls.declared(sizes).items()
            }
        )


@struct.dataclass
class Batch(_Arrays):
    """B items of one static shape.

    F is 0 for texts; V is F * P / 4, those of an item. Absent entries of index arrays are -1.
    """

    tokens: Int[Array, "B L"] = _padded(0)  # visual tokens have the pad id of their kind
    length: Int[Array, " B"] = _padded(1)  # tokens of each row; the last of them is pooled
    positions: Int[Array, "B 3 L"] = _padded(0)  # M-RoPE: time, row, column
    patches: UInt8[Array, "B F P patch_dim"] = _padded(0)
    patch_mask: Bool[Array, "B F P"] = _padded(0)
    patch_coords: Int[Array, "B F P 2"] = _padded(0)
    window_slots: Int[Array, "B F S"] = _padded(-1)  # patch in each window slot
    window_inverse: Int[Array, "B F P"] = _padded(-1)  # window slot of each patch
    visual_slots: Int[Array, "B L"] = _padded(-1)  # merged token that replaces a token's embedding
    visual_inverse: Int[Array, "B V"] = _padded(-1)  # token that a merged token replaces


@struct.dataclass
class Frames(_Arrays):
    """G frame pairs of any items, for the tower; fields as in `Batch`."""

    patches: UInt8[Array, "G P patch_dim"] = _padded(0)
    patch_mask: Bool[Array, "G P"] = _padded(0)
    patch_coords: Int[Array, "G P 2"] = _padded(0)
    window_slots: Int[Array, "G S"] = _padded(-1)
    window_inverse: Int[Array, "G P"] = _padded(-1)


@struct.dataclass
class Packed(_Arrays):
    """B rows of up to I items each, for the decoder.

    The common prefix of the items of a row is at its start, as segment 0. The rest of each item is
    a segment, whose positions continue from the prefix. Segment -1 is padding.
    """

    tokens: Int[Array, "B L"] = _padded(0)
    positions: Int[Array, "B 3 L"] = _padded(0)
    segments: Int[Array, "B L"] = _padded(-1)
    last_token: Int[Array, "B I"] = _padded(0)  # of each item; 0 for absent items
    visual: Float[Array, "B L visual"] | None = _padded(0)  # merged tokens; None for texts
    visual_mask: Bool[Array, "B L"] | None = _padded(0)


class Bucket(Protocol):
    """A static shape; see `gve_jax.inputs.batch.Bucket`."""

    pairs: int
    patches: int
    windows: int
    length: int


class Geometry(Protocol):
    """Sizes of patches and windows: `VisionConfig`, or the `InputSpec` of a preprocessor."""

    patch_dim: int
    merge_unit: int
    window_side: int


def batch_sizes(rows: int, bucket: Bucket, vision: Geometry) -> dict[str, int]:
    """Returns the sizes of the dimensions of a `Batch` of `rows` items."""
    return {
        "B": rows,
        "L": bucket.length,
        "F": bucket.pairs,
        "P": bucket.patches,
        "patch_dim": vision.patch_dim,
        "S": bucket.windows * vision.window_side**2,
        "V": bucket.pairs * bucket.patches // vision.merge_unit,
    }
