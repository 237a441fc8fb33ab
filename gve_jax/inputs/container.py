"""Opening an untrusted video file, and the index of its packets."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator

import av
import numpy as np

from gve_jax.inputs import mp4, pictures
from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.sampling import Timeline

# Containers people have; everything else FFmpeg can open (playlists, concat scripts, devices) can
# point at other files or hosts.
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
# FFmpeg looks at these before a demuxer reads a byte: a playlist opens what it names at once.
_OPEN = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
_COVER = av.stream.Disposition.attached_pic  # the cover of a song is no video
_MAIN = av.stream.Disposition.default
NO_TIME = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class Index:
    """The packets of one video stream, in the order of the file, which is that of decoding.

    Attributes:
      pts, dts: int64 [N], times of showing and decoding in `tick`s; NO_TIME where unknown.
      size, duration: int64 [N], bytes; ticks, 0 where unknown.
      key: bool [N], what the container calls a keyframe.
      shown: bool [N], false for packets that give no frame of their own: an edit list cuts it away,
        or it holds none (others may need them).
      state: bool [N], packets with side data that decoding the later ones needs.
      holds: int64 [N], what a packet holds, of the kinds in `pictures`.
      tick: seconds.
      rate: frames a second, as the container declares or FFmpeg estimates them.
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

    @property
    def second(self) -> np.ndarray:
        """bool [N], the second field of the frame that the packet before began."""
        return self.holds == pictures.SECOND_FIELD

    @property
    def owner(self) -> np.ndarray:
        """int64 [N], the packet that begins the frame to which a packet belongs."""
        return np.arange(len(self.second)) - self.second


@contextlib.contextmanager
def open_video(source, name: str, limits: Limits) -> Iterator:
    """The container, the video stream and the file of a path or of encoded bytes.

    The stream is the first one marked as default, else the first; covers do not count. Decoding is
    on one thread (workers are the parallelism).

    Raises:
      MediaError: not a container on the list, no video stream, too many streams, frames too large.
    """
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise MediaError(f"{name}: no such file")
    # PyAV reads a file object, so that no protocol of FFmpeg's is used.
    file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    with file:
        _check_segment(file, name)
        with av.open(file, mode="r", options=_OPEN) as container:
            if len(container.streams) > limits.streams:
                raise MediaError(f"{name}: {len(container.streams)} streams are above the limit of "
                                 f"{limits.streams}")  # fmt: skip
            stream = _pick(container, name)
            check_size(stream.width, stream.height, name, limits)
            stream.thread_type = "NONE"
            yield container, stream, file


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    if width * height > limits.frame_pixels:
        raise MediaError(f"{name}: frames of {width} x {height} are above the limit of "
                         f"{limits.frame_pixels} pixels")  # fmt: skip


def _pick(container, name: str):
    streams = [s for s in container.streams.video if not s.disposition & _COVER]
    if not streams:
        raise MediaError(f"{name}: no video stream")
    stream = next((s for s in streams if s.disposition & _MAIN), streams[0])
    if stream.codec_context is None:
        raise MediaError(f"{name}: an unknown video codec")
    return stream


def read_index(container, stream, file, name: str, limits: Limits, table=True) -> Index:
    """Finds all packets and decodes none.

    Containers lie about their frame count; packets do not. A plain MP4 has a table of them; any
    other file is read as a whole, and MP4 where `table` is false.

    Raises:
      MediaError: no frame, more than the limit, no frame rate, a file that was cut off.
    """
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not 0 < rate < np.inf:
        raise MediaError(f"{name}: no frame rate")
    if table and "mp4" in container.format.name:
        rows, last = _listed(container, stream, file, name, limits), 0
    else:
        rows = None
    if rows is None:
        rows, last = _read(container, stream, name, limits)
    columns = np.array(rows, np.int64).reshape(-1, 8).T
    index = Index(
        *columns[:4], *columns[4:7].astype(bool), columns[7], float(stream.time_base), rate
    )
    if not index.shown.any():
        raise MediaError(f"{name}: no frame")
    _check_whole(container, stream, index, last, name)
    return index


def _listed(container, stream, file, name: str, limits: Limits):
    """Rows of the index from FFmpeg's table of an MP4, which lacks the times of showing. None where
    an edit list or fragments make it more than a table."""
    entries = stream.index_entries
    if len(entries) > limits.frames:
        raise MediaError(f"{name}: more frames than the limit of {limits.frames}")
    offsets = mp4.composition_offsets(file, stream.id, len(entries)) if len(entries) else None
    if offsets is None:
        return None
    table = np.array([(e.timestamp, e.size, e.is_keyframe, e.is_discard, e.pos) for e in entries],
                     np.int64)  # fmt: skip
    dts, size, key, discard, place = table.T
    if discard.any() or (size <= 0).any() or _needs_payload(stream, file, size, place, key):
        return None
    whole = place + size <= _length(file)
    if not whole.all():
        raise MediaError(f"{name}: cut off, {whole.sum()} of {len(whole)} frames")
    first = next(packets(container, stream), None)
    if first is None or first.dts != dts[0] or first.pts is None:
        container.seek(int(min(0, dts[0])), stream=stream)
        return None
    pts = dts + offsets - offsets[0] + first.pts - first.dts
    steps = np.diff(dts)
    duration = np.append(steps, int(np.median(steps)) if len(steps) else first.duration or 0)
    state, holds = np.zeros_like(key), np.full_like(key, pictures.FRAME)
    state[0] = pictures.carries_state(first)
    return np.stack([pts, dts, size, duration, key, np.ones_like(key), state, holds], axis=1)


def _needs_payload(stream, file, size, place, key) -> bool:
    """Whether an MP4's table does not say all: a sample holds a second field or no frame, or a
    leading picture (whose time may be wrong) follows the first keyframe."""
    headers, before = pictures.Headers(stream.codec_context), file.tell()
    looked_at = np.flatnonzero((size < pictures.SMALL) | headers.fields)
    follows = int(key.argmax()) + 1
    try:
        if follows < len(size):
            file.seek(int(place[follows]))
            if headers.refers_back(file.read(min(int(size[follows]), pictures.HEAD))):
                return True
        if headers.slices is not None and not headers.fields:  # of most the first byte says it
            looked_at = looked_at[size[looked_at] > headers.length]
            looked_at = looked_at[np.argsort(place[looked_at], kind="stable")]
            heads = _bytes_at(file, place[looked_at] + headers.length)
            looked_at = looked_at[~headers.slices[heads]]
        for at, count in zip(place[looked_at].tolist(), size[looked_at].tolist(), strict=True):
            file.seek(at)
            if headers.read_bytes(file.read(min(count, pictures.HEAD))) != pictures.FRAME:
                return True
    finally:
        file.seek(before)
    return False


def _bytes_at(file, places: np.ndarray) -> np.ndarray:
    """uint8 [N], the bytes of a file at ascending places; 0 behind its end."""
    apart = (np.diff(places) > 4096) | (np.diff(places >> 20) > 0)  # others are read in one piece
    parts = np.split(places, np.flatnonzero(apart) + 1) if len(places) else []
    found = [np.zeros(0, np.uint8)]
    for part in parts:
        length = int(part[-1] - part[0]) + 1
        file.seek(int(part[0]))
        data = file.read(length).ljust(length, b"\0")
        found.append(np.frombuffer(data, np.uint8)[part - part[0]])
    return np.concatenate(found)


def _length(file) -> int:
    place = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(place)
    return length


def _read(container, stream, name: str, limits: Limits):
    """Rows of the index and the last time of decoding, by reading every packet from the start."""
    headers, rows, last = pictures.Headers(stream.codec_context), [], 0
    # Elsewhere all is in the stream, or comes with the first packet.
    may_change = container.format.name == "avi" or "mp4" in container.format.name
    for packet in packets(container, stream, empty=True):
        last = max(last, packet.dts or 0)
        if not packet.size:
            continue
        holds, pts, dts = headers.read(packet), packet.pts, packet.dts
        if holds == pictures.SECOND_FIELD:  # the frame lasts as long as both
            rows[-1] = _lengthen(rows[-1], packet)
        rows.append((
            NO_TIME if pts is None else pts,
            NO_TIME if dts is None else dts,
            packet.size,
            packet.duration or 0,
            packet.is_keyframe,
            not packet.is_discard and holds in (pictures.FRAME, pictures.LEADING),
            (may_change or not rows) and pictures.carries_state(packet),
            holds,
        ))  # fmt: skip
        if len(rows) > limits.frames:
            raise MediaError(f"{name}: more frames than the limit of {limits.frames}")
    return rows, last


def _lengthen(row: tuple, second) -> tuple:
    """The row of a first field with the duration of its frame."""
    pts, dts, size, duration, *rest = row
    step = second.pts - pts if second.pts is not None and pts != NO_TIME else 0
    duration = 2 * step if step > 0 else duration + (second.duration or 0)
    return pts, dts, size, duration, *rest


def packets(container, stream, empty: bool = False) -> Iterator:
    """The packets of a stream; the empty ones (frames that were dropped at recording, the end of
    the stream) only where they are asked for."""
    try:
        yield from (p for p in container.demux(stream) if p.size or empty)
    except IndexError as error:  # PyAV knows the streams that were there at the beginning
        raise ValueError("a stream begins midway") from error


def _check_whole(container, stream, index: Index, last: int, name: str) -> None:
    """A file that was cut off between two packets reads without an error."""
    kind, found, declared = container.format.name, 0, 0
    if kind == "avi":  # its timestamps count frames, those too that were dropped at recording
        found, declared = last + 1, stream.frames
    elif "mp4" in kind:
        found, declared = len(index.pts), len(stream.index_entries)
    if found < declared:
        raise MediaError(f"{name}: cut off, {found} of {declared} frames")
    if "mp4" in kind and stream.duration:  # a damaged table of samples; durations are not exact
        shown = index.pts[index.shown]  # of VP9 a packet's duration may be that of a steady rate
        seconds = max(index.duration[index.shown].sum(), np.ptp(shown)) * index.tick
        whole = float(stream.duration * stream.time_base)
        if seconds < 0.95 * whole - 1 / index.rate:
            raise MediaError(f"{name}: damaged, frames for {seconds:.2f} of {whole:.2f} s")


def timeline(index: Index, shown: np.ndarray, name: str, limits: Limits) -> Timeline:
    """When the frames are shown, `shown` being their packets.

    Where all times are within a tick of those of the declared rate, that rate counts (as it does in
    the reference, which knows no other). Otherwise the times count: a frame lasts until the next,
    the last one as long as its packet says, or else as the others do on average. Without times
    that differ, the declared rate is all there is.

    Raises:
      MediaError: a video longer than the limit.
    """
    total, times = len(shown), index.pts[shown]
    if (times == NO_TIME).any():  # AVI with B-frames: each frame has the time of another one
        times = index.dts[shown]
    order = np.argsort(times, kind="stable")
    times, final = times[order], index.duration[shown[order[-1]]] * index.tick
    begins, rate, even = (times - times[0]) * index.tick, index.rate, True
    if times[0] != NO_TIME and (np.diff(times) > 0).all():
        off = np.abs(begins - np.arange(total) / rate).max()
        even = off <= min(1.001 * index.tick, 0.5 / rate)
    if not even:
        begins = np.append(begins, begins[-1] + (final or begins[-1] / (total - 1)))
        rate = total / float(begins[-1])
    if total / rate > limits.duration:
        raise MediaError(f"{name}: {total / rate:.0f} s are above the limit of "
                         f"{limits.duration:g} s")  # fmt: skip
    return Timeline(total, rate, None if even else begins)


def _check_segment(file, name: str) -> None:
    """A Matroska file that was cut off is shorter than its segment; FFmpeg reads it as if whole."""
    head, size = file.read(4096), file.seek(0, os.SEEK_END)
    file.seek(0)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if not head.startswith(b"\x1a\x45\xdf\xa3") or not 4 <= at < len(head) or head[at] == 0:
        return
    length = 9 - head[at].bit_length()  # of the number that follows: as many bytes as leading zeros
    unknown = 2 ** (7 * length) - 1  # of a live recording
    segment = int.from_bytes(head[at : at + length]) & unknown
    if segment != unknown and size < at + length + segment:
        raise MediaError(f"{name}: cut off, {size} of {at + length + segment} bytes")
