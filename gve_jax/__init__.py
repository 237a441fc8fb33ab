"""gve_jax: train, serve and measure the General Video Embedder (arXiv 2510.27571) in JAX.

Letters of dimensions, in annotations and in comments such as `[B, L, D]`; other dimensions are
words, such as `[pairs, heads, head_dim]`:

    B   items of a batch
    C   documents, or candidates, that queries are compared with
    D   width of vectors and hidden states
    F   frame pairs of an item
    G   frame pairs of a batch
    H   height of a frame
    I   items in a packed row
    K   hard negatives of a query
    L   tokens of a row
    M   positives of a row of queries
    N   items, vectors or entries of a list
    P   patches of a frame pair
    Q   queries
    R   rows of queries, of one device or of a screening
    S   window slots of a frame pair
    T   frames of a video
    V   merged visual tokens
    W   width of a frame
"""

__version__ = "0.2.0"
__all__ = ["GVE", "Index", "load_vectors"]


def __getattr__(name: str):
    # Lazy, so that decoding workers, which need numpy only, do not load JAX.
    if name == "GVE":
        from gve_jax.gve import GVE

        return GVE
    if name == "Index":
        from gve_jax.index.index import Index

        return Index
    if name == "load_vectors":
        from gve_jax.retrieval.vectors import load_vectors

        return load_vectors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
