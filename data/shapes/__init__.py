"""A generated video world: coloured shapes that move and change under a moving camera.

`Shapes` is the TFDS builder of the training pairs; `python -m data.shapes --output DIR` writes
the pairs, a miniature UVRB in UVRB's own file layout and a tokenizer. All follows from one seed.
"""

__all__ = ["Shapes", "ShapesConfig"]


def __getattr__(name: str):
    # Lazy: worker processes import this package for rendering and must not pay for TFDS (seconds).
    if name in __all__:
        from data.shapes import builder

        return getattr(builder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
