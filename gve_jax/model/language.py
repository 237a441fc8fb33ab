"""Qwen2.5-VL's causal decoder: grouped-query attention, M-RoPE, SwiGLU, no vocabulary head
(transformers 4.49, `modeling_qwen2_5_vl.py: Qwen2_5_VLModel`)."""

from flax import nnx
from jaxtyping import Array, Float, Int

from gve_jax.model import rope
from gve_jax.model.attention import attend
from gve_jax.model.config import TextConfig
from gve_jax.model.layers import Linear, RMSNorm, SwiGLU, scan_layers, stack


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

    def __call__(self, x, angles):
        batch, length, _ = x.shape
        query = self.q_proj(x).reshape(batch, length, self.heads, self.size)
        key = self.k_proj(x).reshape(batch, length, self.groups, self.size)
        value = self.v_proj(x).reshape(batch, length, self.groups, self.size)
        query, key = rope.rotate(query, angles), rope.rotate(key, angles)
        mixed = attend(query, key, value, causal=True, kernel=self.kernel)
        return self.o_proj(mixed.reshape(batch, length, -1))


class Layer(nnx.Module):
    def __init__(self, cfg: TextConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        width, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps, dtype=dtype, rngs=rngs)
        self.self_attn = Attention(cfg, dtype=dtype, kernel=kernel, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(width, eps, dtype=dtype, rngs=rngs)
        self.mlp = SwiGLU(width, cfg.intermediate_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x, angles):
        x = x + self.self_attn(self.input_layernorm(x), angles)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nnx.Module):
    """Token vectors (text and merged visual tokens) -> hidden states after the final norm."""

    def __init__(self, cfg: TextConfig, *, param_dtype, remat: bool, kernel: str, rngs: nnx.Rngs):
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
        cfg = self.cfg
        angles = rope.text_angles(positions, cfg.head_dim, cfg.rope_theta, cfg.mrope_section)

        def body(layer, x):
            return layer(x, angles)

        return self.norm(scan_layers(self.layers, x, body, remat=self.remat))
