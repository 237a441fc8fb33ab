"""The causal decoder: grouped-query attention, M-RoPE, SwiGLU, no vocabulary head.

That of Qwen2-VL and Qwen2.5-VL (transformers 4.49, `modeling_qwen2_5_vl.py: Qwen2_5_VLModel`), and
that of Qwen3-VL, which normalizes each head's query and key, has no biases, and adds the tower's
deepstack features to visual tokens after its first layers (transformers 5.23,
`modeling_qwen3_vl.py: Qwen3VLTextModel`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gve_jax.model import rope
from gve_jax.model.attention import attend
from gve_jax.model.config import TextConfig
from gve_jax.model.layers import Linear, RMSNorm, SwiGLU, scan_layers, shard_batch, stack


class Attention(nnx.Module):
    def __init__(self, cfg: TextConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        width, size = cfg.hidden_size, cfg.head_dim
        self.kernel = kernel
        self.heads, self.groups, self.size = cfg.num_attention_heads, cfg.num_key_value_heads, size

        def linear(inputs, outputs, bias):
            return Linear(inputs, outputs, bias=bias, dtype=dtype, rngs=rngs)

        self.q_proj = linear(width, self.heads * size, cfg.qkv_bias)
        self.k_proj = linear(width, self.groups * size, cfg.qkv_bias)
        self.v_proj = linear(width, self.groups * size, cfg.qkv_bias)
        self.o_proj = linear(self.heads * size, width, False)

        def head_norm():
            return RMSNorm(size, cfg.rms_norm_eps, dtype=dtype, rngs=rngs) if cfg.qk_norm else None

        self.q_norm, self.k_norm = head_norm(), head_norm()

    def __call__(self, x, cos_sin, segments=None, query_positions=None):
        """Maps x [B, L, D] to [B, L, D], or to [B, I, D] at `query_positions` [B, I]."""
        batch, length, _ = x.shape
        source, query_cos_sin, kernel = x, cos_sin, self.kernel
        if query_positions is not None:  # few rows: fused kernels do not support them
            source, query_cos_sin = _take(x, query_positions), _take(cos_sin, query_positions)
            kernel = "xla"
        query = self.q_proj(source).reshape(batch, -1, self.heads, self.size)
        key = self.k_proj(x).reshape(batch, length, self.groups, self.size)
        value = self.v_proj(x).reshape(batch, length, self.groups, self.size)
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rope.rotate(query, query_cos_sin), rope.rotate(key, cos_sin)
        attended = attend(
            query,
            key,
            value,
            causal=True,
            query_positions=query_positions,
            segments=segments,
            kernel=kernel,
        )
        return self.o_proj(attended.reshape(batch, -1, self.heads * self.size))


class Layer(nnx.Module):
    def __init__(self, cfg: TextConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        width, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps, dtype=dtype, rngs=rngs)
        self.self_attn = Attention(cfg, dtype=dtype, kernel=kernel, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(width, eps, dtype=dtype, rngs=rngs)
        self.mlp = SwiGLU(width, cfg.intermediate_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x, cos_sin, segments=None, query_positions=None):
        attended = self.self_attn(self.input_layernorm(x), cos_sin, segments, query_positions)
        x = (x if query_positions is None else _take(x, query_positions)) + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nnx.Module):
    """Maps embeddings of text and merged visual tokens to hidden states after the final norm."""

    def __init__(self, cfg: TextConfig, *, param_dtype, remat: str, kernel: str, rngs: nnx.Rngs):
        self.cfg, self.remat = cfg, remat
        init = nnx.initializers.normal(stddev=0.02)
        shape = (cfg.vocab_size, cfg.hidden_size)
        self.embed_tokens = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.layers = stack(
            lambda r: Layer(cfg, dtype=param_dtype, kernel=kernel, rngs=r),
            cfg.num_hidden_layers,
            rngs,
        )
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B 3 L"],
        deepstack: Float[Array, "taps B L D"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Right padding needs no mask: causal attention does not reach it.

        Args:
          deepstack: added to the outputs of the first layers.
        """
        cos_sin = self._cos_sin(positions)

        def body(layer, x, index):
            return shard_batch(_add_deepstack(layer(x, cos_sin), deepstack, index))

        return self.norm(scan_layers(self.layers, x, body, self._indices, remat=self.remat))

    def pooled(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B 3 L"],
        query_positions: Int[Array, "B I"],
        segments: Int[Array, "B L"] | None = None,
        deepstack: Float[Array, "taps B L D"] | None = None,
    ) -> Float[Array, "B I D"]:
        """The rows of `__call__` at `query_positions`; the last layer computes only those.

        Args:
          segments: segment of each token, if a row has several sequences; see
            `gve_jax.model.attention.attend`.
          deepstack: added to the outputs of the first layers; zero at `query_positions`.
        """
        cos_sin = self._cos_sin(positions)

        def body(layer, carry, index):
            x, pooled = shard_batch(carry[0]), carry[1]
            # One scanned stack: a separate last layer would need a copy of the other weights.
            return jax.lax.cond(
                index == self.cfg.num_hidden_layers - 1,
                lambda: (x, layer(x, cos_sin, segments, query_positions)),
                lambda: (_add_deepstack(layer(x, cos_sin, segments), deepstack, index), pooled),
            )

        carry = (x, jnp.zeros_like(_take(x, query_positions)))
        return self.norm(scan_layers(self.layers, carry, body, self._indices, remat=self.remat)[1])

    @property
    def _indices(self) -> Int[Array, " layers"]:
        return jnp.arange(self.cfg.num_hidden_layers)

    def _cos_sin(self, positions):
        cfg = self.cfg
        return rope.mrope_cos_sin(
            positions, cfg.head_dim, cfg.rope_theta, cfg.mrope_section, cfg.mrope_interleaved
        )


def _add_deepstack(x, deepstack, index):
    """Adds `deepstack[index]`; nothing after the layers that it has."""
    if deepstack is None:
        return x
    # A conditional in the one scanned body: other layers do not read the features.
    return jax.lax.cond(
        index < len(deepstack),
        lambda: x + jax.lax.dynamic_index_in_dim(deepstack, index, keepdims=False),
        lambda: x,
    )


def _take(x: Float[Array, "B L D"], query_positions: Int[Array, "B I"]) -> Float[Array, "B I D"]:
    return jnp.take_along_axis(x, query_positions[..., None], axis=1)
