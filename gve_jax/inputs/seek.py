"""Decoding the wanted frames of a video and as little else as gives the very same pixels."""

import dataclasses
from collections.abc import Callable, Iterator

import av
import numpy as np
from av.video.frame import PictureType

from gve_jax.inputs.container import NO_TIME, Index, packets

# Codecs whose decoders pass over what nothing refers to (H.264 by nal_ref_idc, MPEG-4 B-VOPs).
_DISPOSABLE = ("h264", "mpeg4")
_BACK = (0.0, 0.0, 1.0, 5.0)  # seconds before a keyframe at which a seek aims, one after the other


class Lost(Exception):
    """Seeking did not give what the index says: decode from the beginning instead."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to get at the frames of a stream.

    Attributes:
      usable: bool [N], the packets that can be decoded at all.
      starts: int64 [N], the packet from which decoding must begin to give a packet's frame; None
        where frames cannot be found by seeking: all is decoded then.
      numbers: the packets of the frames in the order of showing (of decoding, where `starts` is
        None: no more is known than how many there are).
    """

    usable: np.ndarray
    starts: np.ndarray | None
    numbers: np.ndarray


def make_plan(container, stream, index: Index) -> Plan:
    """Seeking needs a time for every packet, each its own, and decoding that goes forward in time.

    A recording of MPEG-TS begins anywhere: its frames before the first keyframe are left out. Any
    other container that begins so is decoded as a whole, and damaged unless that gives all frames.
    """
    usable, starts = np.ones(len(index.key), bool), None
    recording = container.format.name == "mpegts"
    if recording and index.key.any():
        usable[: index.key.argmax()] = False
    dts = index.dts[index.dts != NO_TIME]
    timed = (index.pts != NO_TIME).all() and len(np.unique(index.pts)) == len(index.pts)
    timed = timed and (np.diff(dts) > 0).all() and _shows_times(container, stream)
    if timed and index.key.any():
        starts = entry_points(index)
        _admit_leading(container, stream, index, starts)
        if recording:
            usable = starts >= 0
        elif (index.shown & (starts < 0)).any():
            starts = None
    numbers = np.flatnonzero(index.shown & usable)
    if starts is not None:
        numbers = numbers[np.argsort(index.pts[numbers])]
    return Plan(usable, starts, numbers)


def _shows_times(container, stream) -> bool:
    """Whether the times of packets are those of showing. AVI has none but of decoding, and so has
    what Matroska takes over from it; they are the same where no frame is moved."""
    legacy = container.format.name == "avi" or (
        "matroska" in container.format.name and stream.codec_context.codec_tag.strip("\0")
    )
    moves = stream.codec_context.has_b_frames or stream.codec_context.name in ("h264", "hevc")
    return not (legacy and moves)


def entry_points(index: Index) -> np.ndarray:
    """int64 [N]: the packet from which decoding must begin to give each packet's frame; -1 where
    none is known (a recording that begins between two keyframes).

    It is the last keyframe, or the one before for a frame that is shown before that keyframe: in an
    open GOP such a frame refers to the frames before it too.
    """
    keys = np.flatnonzero(index.key)
    at = np.searchsorted(keys, np.arange(len(index.pts)), side="right") - 1
    last = np.append(keys, -1)[at]
    before = np.append(keys, -1)[np.maximum(at - 1, -1)]
    return np.where(index.pts < index.pts[last], before, last)


def _admit_leading(container, stream, index: Index, starts: np.ndarray) -> None:
    """Lets decoding begin at the first keyframe for those of its leading frames that decode.

    A stream may begin with a keyframe followed by frames that are shown before it. Where they refer
    to what was cut away they cannot be decoded, and whether they do only decoding tells.
    """
    first = int(index.key.argmax())
    leading = np.flatnonzero((starts < 0) & index.shown)
    leading = leading[leading > first]
    if not len(leading):
        return
    reader, context, shown = _Reader(container, stream, index), stream.codec_context, set()
    try:
        reader.go(first)
        for number in range(first, leading[-1] + 1):
            shown |= {frame.pts for frame in context.decode(reader.take(number))}
        shown |= {frame.pts for frame in context.decode(None)}
    except (Lost, av.FFmpegError):
        return
    starts[[number for number in leading if index.pts[number] in shown]] = first


def decode_wanted(container, stream, index: Index, plan: Plan, wanted, take: Callable) -> None:
    """Calls `take(number, frame)` once for each packet number in `wanted`, in no certain order.

    Raises:
      Lost: the stream is not as its index says.
    """
    wanted, starts = set(wanted), plan.starts
    reader = _Reader(container, stream, index)
    numbers, found, entered, shown = reader.numbers, set(), set(), -np.inf

    def receive(frames):
        nonlocal shown
        for frame in frames:
            number = numbers.get(frame.pts)
            if number is None or frame.pts <= shown:
                raise Lost("frames are not shown in the order of their times")
            shown = frame.pts
            if number in entered and not (frame.key_frame and frame.pict_type == PictureType.I):
                raise Lost("what the container calls a keyframe is none")
            entered.discard(number)
            if number in wanted and number not in found:
                found.add(number)
                take(number, frame)

    context = stream.codec_context
    skips, skipping = _skips(context), False
    position = start = -1
    targets = sorted(wanted)
    # A leading frame needs an earlier start than the keyframe that comes before it in the file.
    needed = np.minimum.accumulate(starts[targets][::-1])[::-1]
    for target, first in zip(targets, needed.tolist(), strict=True):
        if first > position:
            if position >= 0:
                receive(context.decode(None))
            position = start = first
            shown = -np.inf
            reader.go(position)
            if index.shown[start]:
                entered.add(start)
        while position <= target:
            packet = reader.take(position)
            leading = position > start and index.pts[position] < index.pts[start]
            if skips and skipping != (position not in wanted and position != start):
                skipping = not skipping
                context.skip_frame = "NONREF" if skipping else "DEFAULT"
            if not (leading and position not in wanted and starts[position] != start):
                receive(context.decode(packet))
            position += 1
    receive(context.decode(None))
    if found != wanted or entered:
        raise Lost(f"{len(found)} of {len(wanted)} frames decode")


def decode_all(container, stream, usable: np.ndarray) -> Iterator:
    """All frames of the usable packets of a stream just opened, in the order of showing."""
    context = stream.codec_context
    for number, packet in enumerate(packets(container, stream)):
        if number >= len(usable) or usable[number]:
            yield from context.decode(packet)
    yield from context.decode(None)


def _skips(context) -> bool:
    return context.codec.canonical_name in _DISPOSABLE or _one_layer(context)


def _one_layer(context) -> bool:
    """HEVC's pictures without references are so within their own temporal layer only."""
    header = context.extradata or b""
    if context.codec.canonical_name != "hevc" or len(header) < 23 or header[0] != 1:
        return False
    return header[21] >> 3 & 7 == 1  # numTemporalLayers of the hvcC box


class _Reader:
    """The packets of a stream by their number in the index."""

    def __init__(self, container, stream, index: Index):
        self._container, self._stream, self._index = container, stream, index
        self.numbers = {pts: number for number, pts in enumerate(index.pts.tolist())}
        self._packets, self._next = iter(()), None

    def go(self, number: int) -> None:
        index = self._index
        times = (index.pts[number], min(index.pts[number], index.dts[number]))
        for back, time in zip(_BACK, (*times, times[1], times[1]), strict=True):
            if time == NO_TIME:
                continue
            self._container.seek(int(time - back / index.tick), stream=self._stream)
            self._packets = packets(self._container, self._stream)
            self._next = next(self._packets, None)
            if self._next is not None and self._number() <= number:
                break
        else:
            raise Lost("a seek goes past its aim")
        while self._number() < number:
            self._next = next(self._packets, None)

    def take(self, number: int):
        """The packet of that number, which must be the next one."""
        packet = self._next
        if packet is None or self._number() != number:
            raise Lost("packets in another order")
        self._next = next(self._packets, None)
        return packet

    def _number(self) -> int:
        packet = self._next
        number = self.numbers.get(packet.pts) if packet is not None else None
        if number is None or packet.size != self._index.size[number]:
            raise Lost("a packet that is not in the index")
        return number
