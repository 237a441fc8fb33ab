"""M-RoPE position ids (numpy): the three axes of each token, by named regime."""

import numpy as np

# Regimes differ between transformers releases (see the design notes on parity); the released GVE
# weights were made with Qwen's own training code, which transformers 4.49-4.51.3 shares.
REGIMES = ("qwen_train",)


def mrope_positions(
    segments: list[tuple], tokens_per_second: int, regime: str = "qwen_train"
) -> np.ndarray:
    """Positions int32 [3, L] (time, row, column) of a sequence.

    Args:
      segments: in order, ("text", tokens) or ("visual", (t, h, w), seconds): a grid of merged
        tokens and the seconds between two of its time steps (0 for an image).
      tokens_per_second: the model's time resolution.
      regime: "qwen_train": time = floor(step * seconds * tokens_per_second), and what follows
        starts after the largest position so far (`rope2d.py: get_rope_index_25`).
    """
    if regime not in REGIMES:
        raise ValueError(f"unknown M-RoPE regime {regime!r}; known: {REGIMES}")
    parts, start = [], 0
    for kind, size, *rest in segments:
        if kind == "text":
            part = np.broadcast_to(np.arange(size), (3, size))
        else:
            steps = np.arange(size[0], dtype=np.float32)
            # float32 as the reference: a product that falls just under an integer floors there.
            time = (steps * np.float32(rest[0]) * np.float32(tokens_per_second)).astype(np.int64)
            row, col = np.indices(size[1:])
            part = np.stack(
                [
                    np.repeat(time, size[1] * size[2]),
                    np.tile(row.reshape(-1), size[0]),
                    np.tile(col.reshape(-1), size[0]),
                ]
            )
        parts.append(part + start)
        start = int(parts[-1].max()) + 1 if part.size else start
    return np.concatenate(parts, axis=1).astype(np.int32)
