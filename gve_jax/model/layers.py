"""Layers of tower and decoder, scanned stacks, permutations and the sharding of activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int


def unit_rows(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Divides rows by their lengths; a row of zeros stays zero.

    Rows are first scaled by their largest number, because squares of numbers above 1e19 or below
    1e-23 leave the range of float32. The scale affects neither result nor gradient.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-24)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32, returned in the input's dtype."""

    def __init__(self, size: int, eps: float, *, dtype, rngs: nnx.Rngs):
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return self.weight[...].astype(x.dtype) * (x32 * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with bias, computed in float32, returned in the input's dtype."""

    def __init__(self, size: int, eps: float, *, dtype, rngs: nnx.Rngs):
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        weight, bias = (one[...].astype(jnp.float32) for one in (self.weight, self.bias))
        return (x32 * scale * weight + bias).astype(x.dtype)


class Linear(nnx.Module):
    """`x @ kernel + bias`; the kernel is [in, out], the transpose of PyTorch's weight."""

    lora: Callable | None = None  # an adapter, set by gve_jax.model.lora

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype, rngs: nnx.Rngs):
        # Qwen2.5-VL's initializer_range, 0.02 at width 2,048, scaled by width.
        init = nnx.initializers.truncated_normal(stddev=inputs**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        # One flat matrix product: with several leading axes, XLA on CPU computes the kernel's
        # gradient 1.5 times slower.
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.kernel[...].astype(x.dtype)
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        y = y if self.lora is None else y + self.lora(rows)
        return y.reshape(*x.shape[:-1], -1)


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, inner: int, *, bias: bool, dtype, rngs: nnx.Rngs):
        self.gate_proj = Linear(width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(inner, width, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class MLP(nnx.Module):
    """`fc2(activation(fc1(x)))`, with biases; `activation` is a key of `ACTIVATIONS`."""

    def __init__(self, width: int, inner: int, activation: str, *, dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(width, inner, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(inner, width, bias=True, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.fc2(self.activation(self.fc1(x)))


def shard_batch(x: Array) -> Array:
    """Shards activations over (data, fsdp) along the first axis only, if a mesh is set.

    Otherwise the partitioner follows the sharding of the weights' width: all rows on every device,
    and an all-reduce of every projection's result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x  # the devices do not divide the rows
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Creates `depth` layers as one module whose parameters have a leading layer axis."""
    return nnx.vmap(make, in_axes=0, out_axes=0)(nnx.Rngs(params=rngs.params()).split(depth))


_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def scan_layers(layers: nnx.Module, x, body: Callable, *per_layer, remat: str = "none"):
    """Runs `x = body(layer, x, *per_layer[i])` over a stack, compiling one body for any depth.

    `remat` is one of `gve_jax.model.config.REMAT`."""
    graph, states = nnx.split(layers)

    def step(carry, inputs):
        state, *rest = inputs
        return body(nnx.merge(graph, state), carry, *rest), None

    if remat != "none":
        step = jax.checkpoint(step, policy=_POLICIES[remat])
    return jax.lax.scan(step, x, (states, *per_layer))[0]


@jax.custom_vjp
def permute(
    x: Float[Array, "B inputs D"], index: Int[Array, "B outputs"], inverse: Int[Array, "B inputs"]
) -> Float[Array, "B outputs D"]:
    """Gathers rows: `y[b, o] = x[b, index[b, o]]`, zero where `index` is -1.

    `inverse[b, i]` is the `o` with `index[b, o] == i`, or -1: no row is taken twice, so that the
    gradient is a gather, too. (A scatter-add is slow on every backend, slowest on CPU.)
    """
    rows = jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index >= 0)[..., None], rows, 0)


def _permute_forward(x, index, inverse):
    return permute(x, index, inverse), (index, inverse)


def _permute_backward(saved, gradient):
    index, inverse = saved
    return permute(gradient, inverse, index), None, None


permute.defvjp(_permute_forward, _permute_backward)
