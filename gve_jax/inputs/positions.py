"""M-RoPE position ids (numpy): the three axes of each token, by named regime.

Releases of transformers differ in how they multiply and round Qwen's `second_per_grid_ts`, and in
the position of text after a video. A regime changes the positions of all tokens after a video, also
of the pooled one, so it belongs to the weights like the tokenizer. The released GVE weights use
`qwen_train`.
"""

import math

import numpy as np

from gve_jax.errors import UserError

SEQUENTIAL = "sequential"
MROPE = ("qwen_train", "hf452", "hf53", "hf518")
REGIMES = (*MROPE, SEQUENTIAL)


def mrope_positions(
    segments: list[tuple], tokens_per_second: int, regime: str = "qwen_train"
) -> np.ndarray:
    """Positions int32 [3, L] (time, row, column) of a sequence.

    The integers are those of `Qwen2_5_VL*.get_rope_index` of transformers, with intervals in
    float32, as from its processors with `return_tensors="pt"`:

      regime      transformers                      time of a step            text after a visual
      qwen_train  4.49.0 - 4.51.3, Qwen's training  floor(step * s * tps)     largest position + 1
      hf452       4.52.1 - 5.2.0                    step * floor(s) * tps     largest position + 1
      hf53        5.6.0 - 5.17.0                    step * floor(s) * tps     start + max(h, w)
      hf518       5.18.0 and later                  floor(step * (s * tps))   start + max(h, w)

    with s the seconds of a step and tps `tokens_per_second`; if that is 0 (Qwen2-VL, Qwen3-VL), the
    time of a step is its number. In the regime "sequential" every token has the position of its
    index on all axes, as in embedders that hand the decoder embeddings without positions (GME).

    With floor(s), all frames of a video with more than 2 frames per second have time 0; with
    start + max(h, w), positions of a long video exceed those of the text after it. 5.3.0 - 5.5.4
    differ from all of these by a mistake.
    Qwen's training code is `get_rope_index_25` of `rope2d.py`, at its fixed 2 frames per second.

    Args:
      segments: in order, ("text", tokens) or ("visual", (t, h, w), seconds): a grid of merged
        tokens and the seconds between its time steps (ignored for an image, t = 1).
      tokens_per_second: the model's time resolution; 0: one position for each step.
      regime: one of REGIMES.

    Raises:
      UserError: an unknown regime.
    """
    if regime not in REGIMES:
        raise UserError(f"unknown M-RoPE regime {regime!r}; known: {REGIMES}")
    parts, start = [], 0
    for kind, size, *rest in segments:
        if kind == "visual" and regime == SEQUENTIAL:
            kind, size = "text", math.prod(size)
        if kind == "text":
            part = np.broadcast_to(np.arange(size), (3, size))
        else:
            part = np.indices(size).reshape(3, -1)
            part[0] = _step_times(size[0], rest[0], tokens_per_second, regime)[part[0]]
        parts.append(part + start)
        if kind == "visual" and regime in ("hf53", "hf518"):
            start += max(size[1:])
        else:
            start += int(part.max(initial=-1)) + 1
    return np.concatenate(parts, axis=1).astype(np.int32)


def _step_times(steps: int, seconds: float, tokens_per_second: int, regime: str) -> np.ndarray:
    """int64 [steps], from 0. Uses float32 and the reference's order of products, so that values
    just below an integer are rounded alike."""
    step, seconds = np.arange(steps), np.float32(seconds)
    if not tokens_per_second:
        return step
    if regime in ("hf452", "hf53"):
        return step * int(seconds) * tokens_per_second
    step, tokens_per_second = step.astype(np.float32), np.float32(tokens_per_second)
    if regime == "hf518":
        return (step * (seconds * tokens_per_second)).astype(np.int64)
    return (step * seconds * tokens_per_second).astype(np.int64)
