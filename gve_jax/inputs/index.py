"""The packets of a video stream as arrays."""

import dataclasses

import numpy as np

NO_TIME = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class Index:
    """The packets of one video stream, in the order of the file, which is that of decoding.

    Attributes:
      pts, dts: int64 [N], times of showing and decoding in `tick`s; NO_TIME where unknown.
      size, duration: int64 [N], bytes; ticks, 0 where the file does not state it.
      key: bool [N], what the container calls a keyframe.
      shown: bool [N], false for packets that an edit list cuts away (others may need them).
      tick: seconds.
      rate: frames a second, as the container declares or FFmpeg estimates them; 0 where unknown.
      timed: whether the container states times at all; bare streams do not, and FFmpeg counts.
      showing: whether it states times of showing; AVI does not, and FFmpeg guesses them.
      restarts: whether the clock of such a container may restart or jump between recordings.
    """

    pts: np.ndarray
    dts: np.ndarray
    size: np.ndarray
    duration: np.ndarray
    key: np.ndarray
    shown: np.ndarray
    tick: float
    rate: float
    timed: bool = True
    showing: bool = True
    restarts: bool = False
