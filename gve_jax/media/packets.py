"""The packets of a video stream as arrays."""

import dataclasses

import numpy as np

from gve_jax.media import picture_headers

NO_TIME = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class Index:
    """The packets of one video stream, in the order of the file, which is that of decoding.

    Attributes:
      pts, dts: int64 [N], times of showing and decoding in `tick`s; NO_TIME where unknown.
      size, duration: int64 [N], bytes; ticks, 0 where the file does not state it. A frame of two
        fields lasts as long as both: the first field's packet says so.
      key: bool [N], what the container calls a keyframe.
      shown: bool [N], false for packets that give no frame of their own: an edit list cuts it away,
        or it holds none (others may need them).
      state: bool [N], packets with side data that decoding the later ones needs.
      holds: int64 [N], what a packet holds, of the kinds in `pictures`.
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
    state: np.ndarray
    holds: np.ndarray
    tick: float
    rate: float
    timed: bool = True
    showing: bool = True
    restarts: bool = False

    @property
    def second(self) -> np.ndarray:
        """bool [N], the second field of the frame that the packet before began."""
        return self.holds == picture_headers.SECOND_FIELD

    @property
    def owner(self) -> np.ndarray:
        """int64 [N], the packet that begins the frame to which a packet belongs."""
        return np.arange(len(self.second)) - self.second
