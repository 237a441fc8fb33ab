"""The packets of a video stream as arrays."""

import dataclasses

import numpy as np

from gve_jax.media import picture_headers

NO_TIME = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class Index:
    """The packets of a video stream, in the order of the file, which is that of decoding.

    Attributes:
      pts, dts: int64 [N], times of showing and decoding in `tick`s; NO_TIME where unknown.
      size, duration: int64 [N], in bytes; in ticks, 0 where the file states none. The first packet
        of a frame of two fields has the duration of both.
      key: bool [N], whether the container marks the packet as a keyframe.
      shown: bool [N], False for packets without a frame that is shown: an edit list removes it, or
        the packet has none (other packets may need it).
      state: bool [N], whether decoding later packets requires side data of the packet.
      holds: int64 [N], content of the packet, one of the constants in `picture_headers`.
      tick: seconds.
      rate: frames per second that the container declares or FFmpeg estimates; 0 if unknown.
      timed: whether the container has timestamps; in elementary streams, FFmpeg counts frames.
      showing: whether it has times of showing; in AVI, FFmpeg guesses them.
      restarts: whether the clock of the container may restart or jump between recordings.
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
        """bool [N], whether a packet is the second field of the frame of the previous packet."""
        return self.holds == picture_headers.SECOND_FIELD

    @property
    def owner(self) -> np.ndarray:
        """int64 [N], the first packet of each packet's frame."""
        return np.arange(len(self.second)) - self.second
