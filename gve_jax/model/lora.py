"""Low-rank adapters (LoRA, arXiv 2106.09685) on the projections of tower and decoder.

A projection becomes `x @ kernel + bias + alpha / rank * dropout(x) @ a @ b`. In a parameter tree
an adapter is beside its kernel, as `.../q_proj/lora/a` and `.../q_proj/lora/b`; those of stacked
layers have a leading layer axis. Without these leaves, the tree is that of the base model.
Values and initialisation are those of PEFT (0.21, `tuners/lora/layer.py`).

DoRA (arXiv 2402.09353) scales the columns of `kernel + alpha / rank * a @ b` to the lengths
`.../q_proj/lora/magnitude` [1, out]. Such adapters can only be merged.
"""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from gve_jax.errors import UserError
from gve_jax.model.config import LoraConfig, ModelConfig
from gve_jax.model.hashing import murmur3_mix32
from gve_jax.model.layers import Linear
from gve_jax.model.quantize import Quantized

# A convolution in the reference, which PEFT adapts with tensors of other shapes.
NO_PROJECTION = "visual/patch_embed"


class Adapter(nnx.Module):
    """`scale * dropout(x) @ a @ b`; stored in float32, computed in the dtype of `x`.

    PEFT stores adapters of a bfloat16 base in float32, too: an update of lr 3e-5 is smaller than
    the spacing of bfloat16 numbers and would be lost.
    """

    seeds: nnx.Variable | None = None  # of the dropout, one per item; set by `enable_dropout`

    def __init__(self, shape: tuple[int, ...], cfg: LoraConfig, rngs: nnx.Rngs):
        """`shape` is that of the kernel: [in, out], or [layers, in, out] of a stack."""
        *layers, inputs, outputs = shape
        bound = inputs**-0.5  # torch's kaiming_uniform_ with a = sqrt(5)
        a = jax.random.uniform(
            rngs.params(), (*layers, inputs, cfg.rank), minval=-bound, maxval=bound
        )
        self.a, self.b = nnx.Param(a), nnx.Param(jnp.zeros((*layers, cfg.rank, outputs)))
        self.scale, self.dropout = cfg.scale, cfg.dropout

    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        if self.seeds is not None:
            x = jnp.where(
                _keep_mask(self.seeds[...], x.shape, self.dropout), x / (1 - self.dropout), 0
            )
        low = x @ self.a[...].astype(x.dtype)
        return (low * self.scale) @ self.b[...].astype(x.dtype)


def attach(model: nnx.Module, cfg: LoraConfig, rngs: nnx.Rngs) -> None:
    """Adds an adapter to every projection whose path `cfg.targets` matches.

    Raises:
      UserError: `cfg.targets` matches no projection.
    """
    chosen = [linear for path, linear in projections(model) if re.search(cfg.targets, path)]
    if not chosen:
        known = sorted({path.rsplit("/", 1)[1] for path, _ in projections(model)})
        raise UserError(
            f"lora.targets {cfg.targets!r} matches no projection of the model; give a regular "
            "expression over paths such as 'language/layers/self_attn/(q|v)_proj', or names as "
            f"\"('q_proj', 'v_proj')\"; names: {', '.join(known)}"
        )
    for linear in chosen:
        linear.lora = Adapter(linear.kernel.shape, cfg, rngs)


def enable_dropout(model: nnx.Module, keys: Array) -> None:
    """Turns on dropout: every layer of every adapter gets a seed for each item.

    What an item drops depends on its key in `keys` [B] only, not on its batch or device. Seeds are
    stacked like parameters, so a scan passes them to the layers, and a layer that is recomputed in
    the backward pass drops the same inputs.
    """
    adapters = [linear.lora for _, linear in projections(model) if linear.lora is not None]
    if not adapters:
        raise ValueError("dropout keys were given, but the model has no adapters")
    for number, adapter in enumerate(adapters):
        layers = adapter.a.shape[:-2]
        own = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys)
        bits = jax.vmap(lambda key, n=layers: jax.random.bits(key, (*n, 2)))(own)
        adapter.seeds = nnx.Variable(jnp.moveaxis(bits, 0, -2))  # [layers, B, 2]


def _keep_mask(seeds: Array, shape: tuple[int, int], rate: float) -> Array:
    """Booleans [rows, inputs] that are true with probability 1 - `rate`.

    They are hashes (murmur3's finalizer, twice) of a counter and the two words of each of the B
    items, whose rows are consecutive. `jax.random`'s Threefry took 14 times as long on a CPU, 30
    times as long as the products of the adapter.
    """
    rows, inputs = shape
    items = len(seeds)
    counter = jnp.arange(rows // items * inputs, dtype=jnp.uint32)
    bits = murmur3_mix32(
        murmur3_mix32(counter * np.uint32(0x9E3779B9) + seeds[:, :1]) ^ seeds[:, 1:]
    )
    return (bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))).reshape(shape)


def projections(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """Yields the projections that can be adapted, by path (`language/layers/self_attn/q_proj`)."""
    for path, module in nnx.iter_modules(model):
        path = "/".join(path)
        if isinstance(module, Linear) and path != NO_PROJECTION:
            yield path, module


def split(params: dict) -> tuple[dict, dict]:
    """Splits a tree into (base, adapters); `join` is the inverse.

    `split(init_params(cfg, seed)[1])[1]` is a new adapter for a loaded base; under `jax.jit` only
    the arrays of the adapter are computed.
    """
    base, adapters = {}, {}
    for path, leaf in flatten_dict(params).items():
        (adapters if "lora" in path else base)[path] = leaf
    return unflatten_dict(base), unflatten_dict(adapters)


def join(base: dict, adapters: dict) -> dict:
    """Joins base and adapters to one tree."""
    return unflatten_dict(flatten_dict(base) | flatten_dict(adapters))


def has_magnitudes(params: dict) -> bool:
    """Whether the adapters are DoRA's."""
    return any(path[-2:] == ("lora", "magnitude") for path in flatten_dict(params))


def refuse_magnitudes(params: dict) -> None:
    """Raises UserError if the adapters are DoRA's."""
    if has_magnitudes(params):
        raise UserError(
            "a DoRA adapter can only be merged (GVE.from_pretrained(..., adapter=) does), not "
            "trained, unmerged or written; continue with new LoRA adapters on the merged model"
        )


def merge(params: dict, cfg: ModelConfig, *, free: bool = False) -> dict:
    """Merges the adapters into the kernels of the base, in float32; returns the base tree.

    The config of the result is `cfg` with `lora=None`. Each kernel is rounded once, to its dtype.
    DoRA as PEFT's `DoraLinearVariant.merge_safe`; a column of zeros becomes NaN, as there.

    Args:
      free: deletes each adapted kernel of `params` (jax.Array) after its merge.

    Raises:
      UserError: the base is quantized.
    """
    return _add(*split(params), cfg.lora.scale, free)


def unmerge(merged: dict, adapters: dict, cfg: ModelConfig) -> dict:
    """Inverts `merge`; returns base and adapters in one tree.

    The base is exact to the rounding of the kernels' dtype.

    Raises:
      UserError: the adapters are DoRA's.
    """
    refuse_magnitudes(adapters)
    return join(_add(merged, adapters, -cfg.lora.scale), adapters)


def _add(base: dict, adapters: dict, scale: float, free: bool = False) -> dict:
    base, adapters = flatten_dict(base), flatten_dict(adapters)
    for *projection, _, leaf in adapters:
        if leaf == "a":
            a, b, magnitude = (
                adapters.get((*projection, "lora", name)) for name in ("a", "b", "magnitude")
            )
            path = (*projection, "kernel")
            kernel = base[path]
            if isinstance(kernel, Quantized):
                raise UserError(
                    "adapters cannot be merged into a quantized base; load the original base"
                )
            base[path] = _add_product(kernel, a, b, magnitude, scale)
            if free:
                kernel.delete()
    return unflatten_dict(base)


@jax.jit
def _add_product(kernel, a, b, magnitude, scale):
    def add(one):
        kernel, a, b, magnitude = one
        total = kernel.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")
        if magnitude is not None:
            total *= magnitude / jnp.linalg.norm(total, axis=0)
        return total.astype(kernel.dtype)

    # Layer by layer: the float32 sums of all layers at once are twice the size of the kernels.
    one = (kernel, a, b, magnitude)
    return add(one) if kernel.ndim == 2 else jax.lax.map(add, one)
