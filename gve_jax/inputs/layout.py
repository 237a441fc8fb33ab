"""Patch layout of a frame: order of patches, coordinates and windows (numpy)."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """The patches of one frame pair of gh x gw patches, in window order.

    Without windows the order is that of merged tokens in raster order; `window_slots` is empty and
    `window_inverse` -1.

    Attributes:
      coords: int32 [P, 2], row and column of each patch.
      window_slots: int32 [windows * side**2], patch of each window slot; -1 for slots without a
        patch, as in windows at the edge.
      window_inverse: int32 [P], window slot of each patch.
      merged: int32 [P / unit], position in window order of each merged token in raster order.
      windows: number of windows.
    """

    coords: np.ndarray
    window_slots: np.ndarray
    window_inverse: np.ndarray
    merged: np.ndarray
    windows: int

    def fits(self, patches: int, windows: int) -> bool:
        """Whether it fits into a frame of `patches` and `windows`."""
        return len(self.coords) <= patches and self.windows <= windows

    @functools.cached_property
    def window_sizes(self) -> tuple[int, ...]:
        """Patches of each window."""
        if not self.windows:
            return (len(self.coords),)
        slots = self.window_slots.reshape(self.windows, -1)
        return tuple((slots >= 0).sum(axis=1).tolist())


@functools.lru_cache(maxsize=512)
def window_layout(gh: int, gw: int, side: int, merge: int) -> Layout:
    """Returns the layout of transformers 4.49 (`get_window_index`, `rot_pos_emb` of Qwen2.5-VL; of
    the towers of Qwen2-VL and Qwen3-VL, which have no windows, `rot_pos_emb`).

    Args:
      gh, gw: height and width of a frame in patches, multiples of `merge`.
      side: side of a window in patches, a multiple of `merge`; 0: no windows.
      merge: side of a merged token in patches.
    """
    rows, cols = gh // merge, gw // merge
    step = side // merge or max(rows, cols)
    row, col = np.divmod(np.arange(rows * cols), cols)  # merged tokens in raster order
    windows_per_row = -(-cols // step)
    window = (row // step) * windows_per_row + col // step
    order = np.argsort(window, kind="stable")  # window order -> raster; raster order within windows
    inner_row, inner_col = np.divmod(np.arange(merge**2), merge)
    coords = np.stack(
        [
            row[order][:, None] * merge + inner_row,
            col[order][:, None] * merge + inner_col,
        ],
        axis=-1,
    ).reshape(-1, 2)

    merged = np.argsort(order).astype(np.int32)
    coords = coords.astype(np.int32)
    if not side:
        none = np.full(gh * gw, -1, np.int32)
        return Layout(coords, np.empty(0, np.int32), none, merged, windows=0)
    slots = np.full(((int(window.max()) + 1), side**2), -1, np.int32)
    inverse = np.empty(gh * gw, np.int32)
    window_of_patch = np.repeat(window[order], merge**2)
    for index in range(len(slots)):
        patches = np.flatnonzero(window_of_patch == index)
        slots[index, : len(patches)] = patches
        inverse[patches] = index * side**2 + np.arange(len(patches))
    return Layout(coords, slots.reshape(-1), inverse, merged, len(slots))
