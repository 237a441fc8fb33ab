"""gve_jax: train, serve and measure the General Video Embedder (arXiv 2510.27571) in JAX.

Dimension letters, everywhere in this package: B batch, L tokens, F frame pairs, P patches,
W windows, S slots or keys, V merged visual tokens, G frame pairs of a whole batch, C channels of a
patch (or corpus, in retrieval), D width, N query heads, K key heads (or hard negatives, in
learning), H head size, Q queries.
"""

__version__ = "0.2.0"
__all__ = ["GVE"]


def __getattr__(name: str):
    # Lazy, so that decoding workers, which need numpy only, do not load JAX.
    if name == "GVE":
        from gve_jax.gve import GVE

        return GVE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
