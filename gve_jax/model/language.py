"""Qwen2.5-VL's causal decoder: grouped-query attention, M-RoPE, SwiGLU, no vocabulary head
(transformers 4.49, `modeling_qwen2_5_vl.py: Qwen2_5_VLModel`)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gve_jax.model import rope
from gve_jax.model.attention import attend
from gve_jax.model.config import TextConfig
from gve_jax.model.layers import Linear, RMSNorm, SwiGLU, by_rows, scan_layers, stack


class Attention(nnx.Module):
    def __init__(self, cfg: TextConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        width, size = cfg.hidden_size, cfg.head_dim
        self.kernel = kernel
        self.heads, self.groups, self.size = cfg.num_attention_heads, cfg.num_key_value_heads, size

        def linear(inputs, outputs, bias):
            return Linear(inputs, outputs, bias=bias, dtype=dtype, rngs=rngs)

        self.q_proj = linear(width, self.heads * size, True)
        self.k_proj = linear(width, self.groups * size, True)
        self.v_proj = linear(width, self.groups * size, True)
        self.o_proj = linear(self.heads * size, width, False)

    def __call__(self, x, turns, segments=None, places=None):
        """x [B, L, D] -> the same, or [B, I, D] at `places` [B, I] alone."""
        batch, length, _ = x.shape
        asks, own, kernel = x, turns, self.kernel
        if places is not None:  # few rows: no work for a fused kernel
            asks, own, kernel = _at(x, places), _at(turns, places), "xla"
        query = self.q_proj(asks).reshape(batch, -1, self.heads, self.size)
        key = self.k_proj(x).reshape(batch, length, self.groups, self.size)
        value = self.v_proj(x).reshape(batch, length, self.groups, self.size)
        query, key = rope.rotate(query, own), rope.rotate(key, turns)
        mixed = attend(
            query, key, value, causal=True, places=places, segments=segments, kernel=kernel
        )
        return self.o_proj(mixed.reshape(batch, -1, self.heads * self.size))


class Layer(nnx.Module):
    def __init__(self, cfg: TextConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        width, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps, dtype=dtype, rngs=rngs)
        self.self_attn = Attention(cfg, dtype=dtype, kernel=kernel, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(width, eps, dtype=dtype, rngs=rngs)
        self.mlp = SwiGLU(width, cfg.intermediate_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x, turns, segments=None, places=None):
        mixed = self.self_attn(self.input_layernorm(x), turns, segments, places)
        x = (x if places is None else _at(x, places)) + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nnx.Module):
    """Token vectors (text and merged visual tokens) -> hidden states after the final norm."""

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
        self, x: Float[Array, "B L D"], positions: Int[Array, "3 B L"]
    ) -> Float[Array, "B L D"]:
        """Right padding needs no mask here: a causal row never sees what follows it."""
        turns = self._turns(positions)

        def body(layer, x):
            return by_rows(layer(x, turns))

        return self.norm(scan_layers(self.layers, x, body, remat=self.remat))

    def pooled(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "3 B L"],
        places: Int[Array, "B I"],
        segments: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B I D"]:
        """The rows of `__call__` at `places` alone: the last layer computes no others.

        Args:
          segments: of tokens, when a row holds several sequences: a token sees its own segment and
            segment 0, which all share (see `gve_jax.model.attention`).
        """
        turns = self._turns(positions)

        def body(layer, carry, last):
            x, pooled = by_rows(carry[0]), carry[1]
            # One stack, scanned: to run the last layer apart would copy the weights of the rest.
            return jax.lax.cond(
                last,
                lambda: (x, layer(x, turns, segments, places)),
                lambda: (layer(x, turns, segments), pooled),
            )

        last = np.arange(self.cfg.num_hidden_layers) == self.cfg.num_hidden_layers - 1
        carry = (x, jnp.zeros_like(_at(x, places)))
        return self.norm(
            scan_layers(self.layers, carry, body, jnp.asarray(last), remat=self.remat)[1]
        )

    def _turns(self, positions):
        cfg = self.cfg
        return rope.text_turns(positions, cfg.head_dim, cfg.rope_theta, cfg.mrope_section)


def _at(x: Float[Array, "B L D"], places: Int[Array, "B I"]) -> Float[Array, "B I D"]:
    return jnp.take_along_axis(x, places[..., None], axis=1)
