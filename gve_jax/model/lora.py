"""Low-rank adapters (LoRA, arXiv 2106.09685) on the projections of tower and decoder.

A projection becomes `x @ kernel + bias + alpha / rank * dropout(x) @ a @ b`. In a parameter tree
an adapter lies beside its kernel, as `.../q_proj/lora/a` and `.../q_proj/lora/b`; those of stacked
layers carry the leading layer axis. A tree without these leaves is the tree of the base model.
Values and initialisation are those of PEFT (0.21, `tuners/lora/layer.py`).
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

# The reference's is a convolution, which PEFT adapts with tensors of other shapes.
NO_PROJECTION = "visual/patch_embed"


class Adapter(nnx.Module):
    """`scale * dropout(x) @ a @ b`; stored in float32, computed in the dtype of `x`.

    Float32 as PEFT keeps adapters of a bfloat16 base: an update of lr 3e-5 is below the spacing of
    bfloat16 numbers and would be lost.
    """

    seeds: nnx.Variable | None = None  # of the dropout, one an item; put here by `enable_dropout`

    def __init__(self, shape: tuple[int, ...], cfg: LoraConfig, rngs: nnx.Rngs):
        """`shape` is the kernel's: [in, out], or [layers, in, out] of a stack."""
        *layers, inputs, outputs = shape
        bound = inputs**-0.5  # torch's kaiming_uniform_ with a = sqrt(5)
        a = jax.random.uniform(
            rngs.params(), (*layers, inputs, cfg.rank), minval=-bound, maxval=bound
        )
        self.a, self.b = nnx.Param(a), nnx.Param(jnp.zeros((*layers, cfg.rank, outputs)))
        self.scale, self.dropout = cfg.scale, cfg.dropout

    def __call__(self, x: Float[Array, "R I"]) -> Float[Array, "R O"]:
        if self.seeds is not None:
            x = jnp.where(
                _keep_mask(self.seeds[...], x.shape, self.dropout), x / (1 - self.dropout), 0
            )
        low = x @ self.a[...].astype(x.dtype)
        return (low * self.scale) @ self.b[...].astype(x.dtype)


def attach(model: nnx.Module, cfg: LoraConfig, rngs: nnx.Rngs) -> None:
    """Puts an adapter on every projection whose path `cfg.targets` matches.

    Raises:
      UserError: it matches none.
    """
    chosen = [linear for path, linear in projections(model) if re.search(cfg.targets, path)]
    if not chosen:
        raise UserError(f"lora.targets {cfg.targets!r} matches no projection of the model")
    for linear in chosen:
        linear.lora = Adapter(linear.kernel.shape, cfg, rngs)


def enable_dropout(model: nnx.Module, keys: Array) -> None:
    """Turns dropout on: every layer of every adapter gets a seed of its own for each item.

    What an item drops is a function of its key in `keys` [B], whoever its neighbours are and
    wherever it is computed. Stacked adapters hold stacked seeds, so a scan hands them out as it
    does parameters, and a layer recomputed in the backward pass drops what it dropped before.
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
    """Booleans [R, I] that are true with chance 1 - `rate`, from two words for each of the B items
    whose rows follow one another: counters through murmur3's finalizer, twice.

    Threefry, `jax.random`'s own, took 14 times as long on a CPU: 30 times the adapter's products.
    """
    rows, inputs = shape
    items = len(seeds)
    counter = jnp.arange(rows // items * inputs, dtype=jnp.uint32)
    bits = murmur3_mix32(
        murmur3_mix32(counter * np.uint32(0x9E3779B9) + seeds[:, :1]) ^ seeds[:, 1:]
    )
    return (bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))).reshape(shape)


def projections(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """What can be adapted, by path (`language/layers/self_attn/q_proj`)."""
    for path, module in nnx.iter_modules(model):
        path = "/".join(path)
        if isinstance(module, Linear) and path != NO_PROJECTION:
            yield path, module


def split(params: dict) -> tuple[dict, dict]:
    """(base, adapters): two trees that `join` makes one again.

    A new adapter for a base that was loaded is `split(init_params(cfg, seed)[1])[1]`; under
    `jax.jit` only its own arrays are computed.
    """
    base, adapters = {}, {}
    for path, leaf in flatten_dict(params).items():
        (adapters if "lora" in path else base)[path] = leaf
    return unflatten_dict(base), unflatten_dict(adapters)


def join(base: dict, adapters: dict) -> dict:
    """One tree of both."""
    return unflatten_dict(flatten_dict(base) | flatten_dict(adapters))


def merge(params: dict, cfg: ModelConfig) -> dict:
    """The base tree with the adapters added into its kernels, summed in float32.

    Its config is `cfg` with `lora=None`. In a bfloat16 kernel the sum is rounded to bfloat16.

    Raises:
      UserError: the base is quantized.
    """
    return _add(*split(params), cfg.lora.scale)


def unmerge(merged: dict, adapters: dict, cfg: ModelConfig) -> dict:
    """What `merge` made, taken apart: base and adapters in one tree.

    Exact to the rounding of the kernels' dtype; keep the base where it has to be exact.
    """
    return join(_add(merged, adapters, -cfg.lora.scale), adapters)


def _add(base: dict, adapters: dict, scale: float) -> dict:
    base, adapters = flatten_dict(base), flatten_dict(adapters)
    for *projection, _, leaf in adapters:
        if leaf == "a":
            a, b = (adapters[(*projection, "lora", name)] for name in "ab")
            path = (*projection, "kernel")
            if isinstance(base[path], Quantized):
                raise UserError("adapters merge into the base as it was before it was quantized")
            base[path] = _add_product(base[path], a, b, scale)
    return unflatten_dict(base)


@jax.jit
def _add_product(kernel, a, b, scale):
    def add(one):
        kernel, a, b = one
        product = jnp.matmul(a, b, precision="highest")
        return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)

    # Layer by layer: the float32 sums of all layers at once are twice the size of the kernels.
    return add((kernel, a, b)) if kernel.ndim == 2 else jax.lax.map(add, (kernel, a, b))
