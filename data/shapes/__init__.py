"""A generated video world: coloured shapes that move and change under a moving camera.

`Shapes` is the TFDS builder of the training pairs; `python -m data.shapes --output DIR` writes
the pairs, a miniature UVRB in UVRB's file layout and a tokenizer. Everything is determined by a
seed.
"""

__all__ = ["Shapes", "ShapesConfig"]


def __getattr__(name: str):
    # Lazy: importing TFDS takes seconds, and worker processes that only render do not need it.
    if name in __all__:
        from data.shapes import builder

        return getattr(builder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
