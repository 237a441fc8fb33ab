"""Seeking: decodes wanted frames, and only those others that exact pixels require."""

import dataclasses
import itertools
from collections.abc import Callable

import av
import numpy as np
from av.video.frame import PictureType

from gve_jax.media.container import packets
from gve_jax.media.decoder import Damaged, Decoder, listen
from gve_jax.media.packets import NO_TIME, Index
from gve_jax.media.picture_headers import EMPTY, LEADING

# Codecs whose decoders can skip non-reference pictures (H.264 by nal_ref_idc, MPEG-4 B-VOPs).
_DISPOSABLE = ("h264", "mpeg4")
_BACK = (0.0, 0.0, 1.0, 5.0)  # seconds before a keyframe that successive seeks aim at


class Lost(Exception):
    """Seeking contradicts the index: decode from the beginning instead."""


class Fewer(Exception):
    """All packets decode without an error, but to fewer frames than the index has.

    Attributes:
      numbers: int64, the packets that gave a frame, in the order of showing.
    """

    def __init__(self, numbers: list[int], expected: int):
        super().__init__(f"{len(numbers)} of {expected} frames decode")
        self.numbers = np.array(numbers, np.int64)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to decode the frames of a stream.

    Attributes:
      usable: bool [N], whether a packet can be decoded.
      starts: int64 [N], the packet from which decoding must begin for a packet's frame; None if
        frames cannot be found by seeking, so that all packets are decoded.
      numbers: the packets of the frames in the order of showing, or of decoding if `starts` is None
        (only their number is known then).
    """

    usable: np.ndarray
    starts: np.ndarray | None
    numbers: np.ndarray


def make_plan(container, stream, index: Index, reopen: Callable) -> Plan:
    """Returns the plan of a stream. Seeking requires distinct times of frames and increasing times
    of decoding.

    A recording of MPEG-TS may begin anywhere: frames before the first keyframe are left out. So
    are, in any container, leading pictures of the first keyframe that refer to pictures before it,
    which are not shown by the standards; they are found by decoding what `reopen` opens.
    """
    usable, starts = np.ones(len(index.key), bool), None
    recording = container.format.name == "mpegts"
    if recording and index.key.any():
        usable[: index.key.argmax()] = False
    if index.key.any() and not _drop_leading(index, usable, reopen):
        return Plan(usable, None, np.flatnonzero(index.shown & usable))
    dts, times = index.dts[usable & (index.dts != NO_TIME)], index.pts[index.shown & usable]
    timed = (times != NO_TIME).all() and len(np.unique(times)) == len(times)
    timed = timed and (np.diff(dts) >= 0).all() and _shows_times(container, stream)
    # A seek would skip state that comes with one packet only, such as a palette.
    if timed and index.key.any() and not index.state.any():
        starts = entry_points(index)
        first = int(index.key.argmax())
        starts[(starts < 0) & usable & (np.arange(len(starts)) >= first)] = first
        if (index.shown & usable & (starts < 0)).any():
            starts = None
    numbers = np.flatnonzero(index.shown & usable)
    if starts is not None:
        numbers = numbers[np.argsort(index.pts[numbers])]
    return Plan(usable, starts, numbers)


def _shows_times(container, stream) -> bool:
    """Whether packets have times of showing. AVI, and its codecs in Matroska, have times of
    decoding only, which are the same if no frame is reordered."""
    legacy = container.format.name == "avi" or (
        "matroska" in container.format.name and stream.codec_context.codec_tag.strip("\0")
    )
    moves = stream.codec_context.has_b_frames or stream.codec_context.name in ("h264", "hevc")
    return not (legacy and moves)


def entry_points(index: Index) -> np.ndarray:
    """Returns int64 [N], the packet from which decoding must begin for each packet's frame; -1 if
    unknown (a recording that begins between two keyframes).

    It is the last keyframe, or the previous one for a frame that is shown before that keyframe: in
    an open GOP such a frame also refers to earlier frames.
    """
    keys, owner = np.flatnonzero(index.key), index.owner
    at = np.searchsorted(keys, owner, side="right") - 1
    last = np.append(keys, -1)[at]
    before = np.append(keys, -1)[np.maximum(at - 1, -1)]
    return np.where(index.pts[owner] < index.pts[last], before, last)


def _drop_leading(index: Index, usable: np.ndarray, reopen: Callable) -> bool:
    """Marks leading pictures of the first keyframe that do not decode as unusable; returns False if
    they cannot be determined.

    They follow the keyframe in the file and are shown before it. If they are before time 0 after a
    cut, Matroska has no times for them, and other muxers write wrong times.
    """
    first, second = (*np.flatnonzero(index.key)[:2].tolist(), len(index.key))[:2]
    times = index.pts[index.owner]
    doubtful = (times == NO_TIME) | (times < times[first]) | (index.holds == LEADING)
    doubtful &= index.shown
    doubtful[: first + 1] = doubtful[second:] = False
    if not doubtful.any():
        return True
    try:
        with listen() as messages, reopen() as (container, stream, _):
            shown = _decodable(container, stream, index, first, doubtful, messages)
    except Damaged:
        return False
    usable[doubtful & ~np.isin(np.arange(len(usable)), list(shown))] = False
    usable[index.second] &= usable[index.owner[index.second]]
    return True


def _decodable(
    container, stream, index: Index, first: int, doubtful: np.ndarray, messages: list
) -> set[int]:
    """Returns the packets that give a frame if decoding begins at `first`, up to the last doubtful
    one. The stream was just opened."""
    decoder, shown = Decoder(stream.codec_context, messages), set()
    last = int(np.flatnonzero(doubtful)[-1])
    last += index.second[last + 1 : last + 2].sum()
    for number, packet in enumerate(itertools.islice(packets(container, stream), last + 1)):
        try:
            if number >= first:
                empty = index.holds[number] == EMPTY
                shown |= {each for each, _ in decoder.decode(packet, number, empty)}
        except Damaged:
            if not doubtful[index.owner[number]]:
                raise
    return shown | {each for each, _ in decoder.decode(None, last)}


def decode_wanted(
    container,
    stream,
    index: Index,
    plan: Plan,
    wanted,
    take: Callable,
    messages: list | None = None,
) -> None:
    """Calls `take(number, frame)` once for each packet number in `wanted`, in any order.

    Raises:
      Lost: the stream contradicts its index.
      Damaged: a decoded picture is damaged.
    """
    wanted, reader = set(wanted), _Reader(container, stream, index)
    # As lists, because indexing arrays costs more than the other work per packet.
    owner, times = index.owner.tolist(), index.pts[index.owner].tolist()
    starts, usable, holds = plan.starts.tolist(), plan.usable.tolist(), index.holds.tolist()
    found, entered, shown = set(), set(), -np.inf

    def receive(packet, position):
        nonlocal shown
        empty = packet is not None and holds[position] == EMPTY
        for number, frame in decoder.decode(packet, position, empty):
            if number < 0 or times[number] <= shown:
                raise Lost("frames are not shown in the order of their times")
            shown = times[number]
            if number in entered and not (frame.key_frame and frame.pict_type == PictureType.I):
                raise Lost("the container marks a frame as a keyframe that is not one")
            entered.discard(number)
            if number in wanted and number not in found:
                found.add(number)
                take(number, frame)

    decoder, context = Decoder(stream.codec_context, messages), stream.codec_context
    skips, skipping = _skips(context), False
    position = start = -1
    targets = sorted(wanted)
    # A leading frame needs an earlier start than the keyframe before it in the file.
    needed = np.minimum.accumulate(plan.starts[targets][::-1])[::-1]
    second = [*index.second.tolist(), False]
    for target, first in zip(targets, needed.tolist(), strict=True):
        if first > position:
            if position >= 0:
                receive(None, position)
            position = start = first
            shown = -np.inf
            reader.go(position)
            if index.shown[start]:
                entered.add(start)
        while position <= target or second[position]:
            packet, frame = reader.take(position), owner[position]
            if skips and skipping != (frame not in wanted and frame != start):
                skipping = not skipping
                context.skip_frame = "NONREF" if skipping else "DEFAULT"
            leading = frame > start and NO_TIME != times[frame] < times[start]
            passed = leading and frame not in wanted and starts[frame] != start
            if usable[position] and not passed:
                receive(packet, position)
            position += 1
    receive(None, position)
    if found != wanted or entered:
        raise Lost(f"{len(found)} of {len(wanted)} frames decode")


def decode_all(
    container,
    stream,
    index: Index,
    plan: Plan,
    positions,
    take: Callable,
    messages: list | None = None,
) -> None:
    """Calls `take(position, frame)` for the frames at `positions` in the order of showing. The
    stream was just opened.

    Raises:
      Damaged: a picture of any packet is damaged.
      Fewer: the usable packets have fewer or more frames than the plan.
    """
    positions, numbers, decoder = set(positions), [], Decoder(stream.codec_context, messages)

    def receive(packet, number, empty=False):
        for each, frame in decoder.decode(packet, number, empty):
            if len(numbers) in positions:
                take(len(numbers), frame)
            numbers.append(each)

    number = 0
    for number, packet in enumerate(packets(container, stream)):
        if number >= len(plan.usable):
            receive(packet, number)
        elif plan.usable[number]:
            receive(packet, number, index.holds[number] == EMPTY)
    receive(None, number)
    if len(numbers) != len(plan.numbers):
        raise Fewer(numbers, len(plan.numbers))


def _skips(context) -> bool:
    return context.codec.canonical_name in _DISPOSABLE or _one_layer(context)


def _one_layer(context) -> bool:
    """HEVC's non-reference pictures are so within their temporal layer only: there must be one."""
    header = context.extradata or b""
    if context.codec.canonical_name != "hevc" or len(header) < 23 or header[0] != 1:
        return False
    return header[21] >> 3 & 7 == 1  # numTemporalLayers of the hvcC box


class _Reader:
    """Reads the packets of a stream by their number in the index."""

    def __init__(self, container, stream, index: Index):
        self._container, self._stream, self._index = container, stream, index
        self._pts, self._sizes = index.pts.tolist(), index.size.tolist()
        self._numbers = {pts: number for number, pts in enumerate(self._pts)}
        if len(self._numbers) < len(self._pts):  # times of more than one packet
            times, counts = np.unique(index.pts, return_counts=True)
            self._numbers |= dict.fromkeys(times[counts > 1].tolist())
        self._packets, self._packet = iter(()), None

    def go(self, number: int) -> None:
        """Seeks to a packet, which `take` returns next."""
        index = self._index
        times = (index.pts[number], min(index.pts[number], index.dts[number]))
        for back, time in zip(_BACK, (*times, times[1], times[1]), strict=True):
            if time == NO_TIME:
                continue
            try:
                self._container.seek(int(time - back / index.tick), stream=self._stream)
            except av.FFmpegError:  # no index entries, as in an FLV of one frame
                continue
            self._packets = packets(self._container, self._stream)
            at = self._next_known()
            if at is not None and at <= number:
                break
        else:
            raise Lost("a seek goes past its target")
        while at < number:
            self.take(at)
            at += 1

    def take(self, number: int):
        """Returns packet `number`, which must be the next one."""
        packet, self._packet = self._packet, None
        if packet is None:
            packet = next(self._packets, None)
        if packet is None or number >= len(self._pts) or not self._is(packet, number):
            raise Lost("a packet that is not in the index")
        return packet

    def _is(self, packet, number: int) -> bool:
        pts = NO_TIME if packet.pts is None else packet.pts
        return pts == self._pts[number] and packet.size == self._sizes[number]

    def _next_known(self) -> int | None:
        """Returns the number of the next packet with a unique time; None at the end."""
        for packet in self._packets:
            pts = NO_TIME if packet.pts is None else packet.pts
            number = self._numbers.get(pts, -1)
            if number == -1 or number is not None and not self._is(packet, number):
                raise Lost("a packet that is not in the index")
            if number is not None:
                self._packet = packet
                return number
        return None
