"""Search over one's own videos: moments of a folder of media, an index that is kept up to date, and
queries."""

__all__ = ["Index"]


def __getattr__(name: str):
    if name == "Index":
        from gve_jax.index.index import Index

        return Index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
