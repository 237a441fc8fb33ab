"""A model with other numbers of frames and of tokens of a frame."""

from gve_jax.errors import UserError
from gve_jax.retrieval.embedding import Encoder

KINDS = {"frames": "frames of a video", "tokens": "tokens of a frame, at most"}


def values(text: str, kind: str) -> tuple[int, ...]:
    """The numbers of `8,16,48`, ascending.

    Raises:
      UserError: invalid numbers; the message names the flag.
    """
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or (kind == "frames" and any(value % 2 for value in found)):
        wanted = "even numbers above 0" if kind == "frames" else "integers above 0"
        raise UserError(f"--{kind}: {text!r} must be {wanted}, such as 8,16,48")
    return tuple(found)


def variant(model: Encoder, kind: str, value: int) -> Encoder:
    """The model with `value` frames a video, or at most `value` tokens a frame.

    Raises:
      UserError: an encoder without input settings, or invalid settings.
    """
    if not hasattr(model, "with_inputs"):
        raise UserError(f"--{kind}: this encoder has no input settings to change")
    if kind == "frames":
        return model.with_inputs(num_frames=value, fps=None)
    spec = model.preprocess.spec
    return model.with_inputs(max_pixels=value * (spec.patch_size * spec.merge) ** 2)
