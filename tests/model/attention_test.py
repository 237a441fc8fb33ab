"""Attention kernels against one another and a loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.model import attention
from gve_jax.model.attention import attend, check_kernel, target_platform


def draw(seed, batch=2, length=5, count=7, heads=4, groups=2, size=8):
    rng = np.random.default_rng(seed)
    shapes = ((batch, length, heads, size), (batch, count, groups, size))
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in (*shapes, shapes[1]))
    return q, k, v, rng.random((batch, count)) < 0.6


def by_rows(q, k, v, keys, causal, query_positions=None, segments=None):
    """Attention of one row and head at a time, in float64."""
    out = np.zeros(q.shape)
    shared = q.shape[2] // k.shape[2]
    for b, i, n in np.ndindex(*q.shape[:3]):
        position = i if query_positions is None else query_positions[b, i]
        seen = keys[b] & (np.arange(k.shape[1]) <= (position if causal else np.inf))
        if segments is not None:
            seen &= np.isin(segments[b], (0, segments[b, position]))
        seen = np.flatnonzero(seen)
        scores = k[b, seen, n // shared].astype(float) @ q[b, i, n] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, n] = weights / weights.sum() @ v[b, seen, n // shared]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_xla_is_softmax_attention(causal, groups):
    q, k, v, keys = draw(0, count=5 if causal else 7, groups=groups)
    keys[:, 0] = True  # every row sees something
    found = attend(q, k, v, keys=jnp.asarray(keys), causal=causal)
    np.testing.assert_allclose(found, by_rows(q, k, v, keys, causal), atol=1e-5)


def draw_segments(batch, count):
    """A shared start, two sequences, padding."""
    return np.repeat([[0, 1, 2, -1]], batch, 0).repeat([2, 3, count - 7, 2], axis=1)


def test_packed_sequences_attend_to_themselves_and_the_prefix():
    q, k, v, _ = draw(5, length=11, count=11)
    segments, everything = draw_segments(2, 11), np.ones((2, 11), bool)
    wanted = by_rows(q, k, v, everything, True, segments=segments)
    found = attend(q, k, v, causal=True, segments=jnp.asarray(segments))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # The second sequence behind the start is what it would be alone behind it.
    alone = np.r_[0, 1, 5:9]
    apart = attend(q[:, alone], k[:, alone], v[:, alone], causal=True)
    np.testing.assert_allclose(found[:, 5:9], apart[:, 2:], atol=1e-5)


@pytest.mark.parametrize("with_segments", [False, True])
def test_queries_at_given_positions_equal_those_rows(with_segments):
    q, k, v, _ = draw(6, length=11, count=11)
    segments = jnp.asarray(draw_segments(2, 11)) if with_segments else None
    query_positions = np.array([[8, 4, 0], [10, 1, 1]])
    subset = np.take_along_axis(q, query_positions[..., None, None], axis=1)
    found = attend(
        subset, k, v, causal=True, query_positions=jnp.asarray(query_positions), segments=segments
    )
    whole = attend(q, k, v, causal=True, segments=segments)
    np.testing.assert_allclose(
        found,
        np.take_along_axis(np.asarray(whole), query_positions[..., None, None], axis=1),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        found,
        by_rows(
            subset,
            k,
            v,
            np.ones((2, 11), bool),
            True,
            query_positions,
            np.asarray(segments) if with_segments else None,
        ),
        atol=1e-5,
    )


def test_a_row_without_keys_stays_finite():
    q, k, v, keys = draw(1)
    keys[0] = False
    assert np.isfinite(attend(q, k, v, keys=jnp.asarray(keys))).all()


def splash(q, k, v, keys, causal, segments=None):
    return attention._splash(q, k, v, keys, causal, segments, interpret=True)


def test_splash_keeps_sequences_apart():
    q, k, v, _ = draw(7, length=140, count=140, heads=4, groups=2, size=16)
    segments = jnp.asarray(np.repeat([[1] * 60 + [2] * 70 + [-1] * 10], 2, 0))
    wanted = attend(q, k, v, causal=True, segments=segments)
    found = splash(q, k, v, None, True, segments)
    np.testing.assert_allclose(found[:, :130], wanted[:, :130], atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_splash_equals_xla_in_value_and_gradient(causal):
    q, k, v, keys = draw(2, length=150, count=150, heads=4, groups=2, size=16)
    keys = None if causal else jnp.asarray(keys)  # the decoder is causal, the tower has a mask
    target = np.random.default_rng(3).standard_normal(q.shape).astype(np.float32)

    def loss(run, *operands):
        return jnp.sum(run(*operands) * target)

    xla = lambda q, k, v: attend(q, k, v, keys=keys, causal=causal)  # noqa: E731
    fused = lambda q, k, v: splash(q, k, v, keys, causal)  # noqa: E731
    np.testing.assert_allclose(fused(q, k, v), xla(q, k, v), atol=2e-5)
    wanted = jax.grad(lambda *o: loss(xla, *o), (0, 1, 2))(q, k, v)
    found = jax.grad(lambda *o: loss(fused, *o), (0, 1, 2))(q, k, v)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_splash_runs_on_each_device_of_a_mesh(mesh):
    q, k, v, _ = draw(4, batch=8, length=130, count=130, heads=4, groups=2, size=16)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda q, k, v: splash(q, k, v, None, True))(q, k, v)
    np.testing.assert_allclose(found, attend(q, k, v, causal=True), atol=2e-5)


@pytest.mark.parametrize(
    ("kernel", "dtype", "sizes", "platform", "said"),
    [
        ("flash", "float32", (80, 128), "gpu", "unknown; known: xla, cudnn, splash"),
        ("cudnn", "bfloat16", (80, 128), "cpu", "needs a GPU; this is cpu"),
        ("splash", "bfloat16", (80, 128), "gpu", "needs a TPU; this is gpu"),
        ("cudnn", "float32", (80, 128), "gpu", "16-bit|bfloat16 or float16 activations"),
        ("cudnn", "bfloat16", (80, 36), "gpu", "multiples of 8, not 36"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(kernel, dtype, sizes, platform, said):
    with pytest.raises(UserError, match=said):
        check_kernel(kernel, dtype, sizes, platform)


def test_kernels_that_can_run_pass():
    check_kernel("xla", "float32", (6, 10), "tpu")
    check_kernel("cudnn", "bfloat16", (80, 128), "gpu")
    check_kernel("splash", "float32", (80, 128), "tpu")


def test_the_platform_is_that_of_the_mesh_also_within_a_trace(mesh):
    with jax.set_mesh(mesh):
        assert target_platform() == "cpu"
        assert jax.eval_shape(lambda: jnp.zeros(len(target_platform()))).shape == (3,)
    assert target_platform() == "cpu"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [None, "keys", "segments"])
def test_cudnn_takes_the_msubset_it_is_given(monkeypatch, masked, causal):
    """Traced, not run: without a GPU, what JAX checks of cuDNN's arguments is all there is."""
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{module}.check_compute_capability", lambda _: True)
    arrays = [jax.ShapeDtypeStruct((2, 3, 40, heads, 16), jnp.bfloat16) for heads in (4, 2, 2)]
    dtype = {"keys": jnp.bool_, "segments": jnp.int32}.get(masked)
    msubset = {masked: jax.ShapeDtypeStruct((2, 3, 40), dtype)} if masked else {}

    def run(q, k, v, **msubset):
        return attend(q, k, v, kernel="cudnn", causal=causal, **msubset)

    assert jax.eval_shape(run, *arrays, **msubset).shape == (2, 3, 40, 4, 16)
