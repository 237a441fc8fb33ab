"""Opens untrusted video files and indexes their packets."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator

import av
import av.logging
import numpy as np

from gve_jax.media import avi, last_frame, mp4, picture_headers
from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.packets import NO_TIME, Index
from gve_jax.media.source import is_file, open_source
from gve_jax.media.truncation import check_length

# Common containers that cannot refer to other files or hosts, unlike other inputs of FFmpeg
# (playlists, concat scripts, devices).
CONTAINERS = (
    "mov",
    "mp4",
    "matroska",
    "webm",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "asf",
    "flv",
    "ogg",
)
# FFmpeg checks these before a demuxer reads a byte: a playlist would open its entries at once.
_OPEN = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
_MAIN = av.stream.Disposition.default
# Covers of songs and pictures of chapters are not videos.
_NO_VIDEO = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_LATE_STREAMS = 64
# The number of frames in an AVI that FFmpeg wrote to a pipe, where it cannot be corrected.
_PIPED = 1 << 30
_PICTURES = ("avif", "mif1", "heic", "heix")  # brands of ISO/IEC 23008-12


@contextlib.contextmanager
def open_video(source, name: str, limits: Limits) -> Iterator:
    """Yields the container, the video stream and the file of a medium (`open_source`).

    Covers, pictures of chapters and attached files do not count as streams. Of several streams,
    those with a single picture are used only if there are no others; then the first marked as
    default, else the first. Decoding uses one thread (workers are the parallelism).

    Raises:
      MediaError: an unsupported container, no video stream, too many streams, frames too large.
    """
    if not isinstance(source, bytes) and not is_file(source):
        raise MediaError(f"{name}: no such file")
    # PyAV reads a file object, so that no protocol of FFmpeg is used.
    file = open_source(source)
    with file, contextlib.ExitStack() as stack:
        check_length(file, name)
        container = stack.enter_context(_open(file, name))
        streams = _video_streams(container, name, limits)
        number = streams[0].index
        if len(streams) > 1:
            number = _choose(container, streams, limits).index
            stack.close()  # choosing may have read packets
            file.seek(0)
            container = stack.enter_context(_open(file, name))
        stream = container.streams[number]
        if stream.codec_context is None:
            raise MediaError(f"{name}: an unknown video codec")
        _check_motion(container, stream, name)
        check_size(stream.width, stream.height, name, limits)
        stream.thread_type = "NONE"
        yield container, stream, file


def _open(file, name: str):
    try:
        return av.open(file, mode="r", options=_OPEN)
    except av.error.ArgumentError as error:  # FFmpeg's error for a format off the list
        raise MediaError(
            f"{name}: not a readable video (its container is damaged or not supported; supported: "
            f"{', '.join(CONTAINERS)}; to convert it: ffmpeg -i INPUT OUTPUT.mp4)"
        ) from error


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    if width * height > limits.frame_pixels:
        raise LimitError(
            f"{name}: frames of {width} x {height} are above the limit of "
            f"{limits.frame_pixels} pixels"
        )


def _video_streams(container, name: str, limits: Limits) -> list:
    """Returns the video streams.

    Raises:
      MediaError: no video stream, or more streams than the limit (attached files do not count).
    """
    streams = [
        s for s in container.streams if s.type != "attachment" and not s.disposition & _NO_VIDEO
    ]
    if len(streams) > limits.streams:
        raise LimitError(f"{name}: {len(streams)} streams are above the limit of {limits.streams}")
    videos = [stream for stream in streams if stream.type == "video"]
    if not videos:
        raise MediaError(f"{name}: no video stream")
    return videos


def _choose(container, streams: list, limits: Limits):
    counts = {s.index: min(2, len(s.index_entries)) for s in streams}
    if min(counts.values()) < 2:  # a still image, or a file without a table
        counts = dict.fromkeys(counts, 0)
        for read, packet in enumerate(packets(container, streams)):
            counts[packet.stream_index] += 1
            if min(counts.values()) > 1 or read > limits.frames:
                break
    moving = [s for s in streams if counts[s.index] > 1] or streams
    return next((s for s in moving if s.disposition & _MAIN), moving[0])


def _check_motion(container, stream, name: str) -> None:
    """Raises MediaError for AVIF and HEIC images; animated ones are videos."""
    picture = container.metadata.get("major_brand", "") in _PICTURES
    if picture and len(stream.index_entries) < 2:
        raise MediaError(f"{name}: not a readable video (a still image; pass it as an image)")


def read_index(container, stream, file, name: str, limits: Limits, table=True) -> Index:
    """Indexes all packets without decoding.

    The number of frames that a container states is unreliable. A plain MP4 has a table of packets;
    other files are read completely, as is MP4 if `table` is false.

    Raises:
      MediaError: no frame, more frames than the limit, a truncated file, an edit list that plays at
        another speed or pauses.
    """
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    rows, samples, last, kind = None, None, 0, container.format.name
    if "mp4" in kind:
        if len(stream.index_entries) > limits.frames:
            raise LimitError(f"{name}: more frames than the limit of {limits.frames}")
        samples = mp4.read_samples(file, stream.id, limits.frames)
        if samples is not None:
            _check_edits(samples.edits, name)
            if table:
                rows = _listed(container, stream, samples, file, name)
    if rows is None:
        rows, last = _read(container, stream, name, limits)
    columns = np.array(rows, np.int64).reshape(-1, 8).T
    index = Index(
        *columns[:4],
        *columns[4:7].astype(bool),
        columns[7],
        float(stream.time_base),
        rate if 0 < rate < np.inf else 0.0,
        *_clock(container),
    )
    if not index.shown.any():
        raise MediaError(f"{name}: no frame")
    if kind == "avi":
        last = max(last, avi.chunks(file, stream.index, len(rows)) - 1)
    duration = last_frame.durations(container, stream, file, index, samples, last)
    index = dataclasses.replace(index, duration=duration)
    _check_whole(container, stream, index, samples, last, name)
    return index


def _clock(container) -> tuple[bool, bool, bool]:
    """Returns `timed`, `showing` and `restarts` of the index, by the flags of FFmpeg's demuxer."""
    flags, kinds = container.format.flags, av.format.Flags
    return (
        not flags & kinds.no_timestamps.value,
        container.format.name != "avi",
        bool(flags & kinds.ts_discont.value),
    )


def _check_edits(edits: mp4.Edits | None, name: str) -> None:
    """Raises MediaError for edit lists that FFmpeg (and so decord) does not follow."""
    odd = None if edits is None else [speed for speed in edits.speeds if speed != 1]
    what = f"plays at {odd[0]:g} times the speed" if odd else "pauses midway"
    if odd or edits is not None and edits.pauses:
        raise MediaError(
            f"{name}: its edit list {what}, which is not supported; to drop the list: "
            "ffmpeg -ignore_editlist 1 -i INPUT -c copy OUTPUT.mp4"
        )


def _listed(container, stream, samples: mp4.Samples, file, name: str):
    """Returns rows of the index from FFmpeg's table of an MP4, which lacks times of showing; None
    if an edit list or fragments make the table insufficient."""
    entries, offsets = stream.index_entries, samples.offsets
    if offsets is None or not len(entries) or len(entries) != len(offsets):
        return None
    table = np.array(
        [(e.timestamp, e.size, e.is_keyframe, e.is_discard, e.pos) for e in entries], np.int64
    )
    dts, size, key, discard, offset = table.T
    if discard.any() or (size <= 0).any() or (np.diff(dts) != samples.durations[:-1]).any():
        return None
    if _needs_payload(stream, file, size, offset, key):
        return None
    whole = offset + size <= _length(file)
    if not whole.all():
        raise MediaError(f"{name}: truncated, {whole.sum()} of {len(whole)} frames")
    first = next(packets(container, stream), None)
    if first is None or first.dts != dts[0] or first.pts is None:
        container.seek(int(min(0, dts[0])), stream=stream)
        return None
    pts = dts + offsets - offsets[0] + first.pts - first.dts
    state, holds = np.zeros_like(key), np.full_like(key, picture_headers.FRAME)
    state[0] = picture_headers.carries_state(first)
    return np.stack(
        [pts, dts, size, samples.durations, key, np.ones_like(key), state, holds], axis=1
    )


def _needs_payload(stream, file, size, offset, key) -> bool:
    """Whether an MP4's table is insufficient: a sample has a second field or no frame, or a leading
    picture (whose time may be wrong) follows the first keyframe."""
    headers, before = picture_headers.Headers(stream.codec_context), file.tell()
    looked_at = np.flatnonzero((size < picture_headers.SMALL) | headers.fields)
    follows = int(key.argmax()) + 1
    try:
        if follows < len(size):
            file.seek(int(offset[follows]))
            if headers.refers_back(file.read(min(int(size[follows]), picture_headers.HEAD))):
                return True
        if headers.slices is not None and not headers.fields:  # of most the first byte says it
            looked_at = looked_at[size[looked_at] > headers.length]
            looked_at = looked_at[np.argsort(offset[looked_at], kind="stable")]
            heads = _bytes_at(file, offset[looked_at] + headers.length)
            looked_at = looked_at[~headers.slices[heads]]
        for at, count in zip(offset[looked_at].tolist(), size[looked_at].tolist(), strict=True):
            file.seek(at)
            if (
                headers.read_bytes(file.read(min(count, picture_headers.HEAD)))
                != picture_headers.FRAME
            ):
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
    offset = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(offset)
    return length


def _read(container, stream, name: str, limits: Limits):
    """Rows of the index and the last time of decoding, by reading every packet from the start."""
    headers, rows, last = picture_headers.Headers(stream.codec_context), [], 0
    # Elsewhere all is in the stream, or comes with the first packet.
    may_change = container.format.name == "avi" or "mp4" in container.format.name
    for packet in packets(container, stream, empty=True):
        last = max(last, packet.dts or 0)
        if not packet.size:
            continue
        holds, pts, dts = headers.read(packet), packet.pts, packet.dts
        rows.append(
            (
                NO_TIME if pts is None else pts,
                NO_TIME if dts is None else dts,
                packet.size,
                packet.duration or 0,
                packet.is_keyframe,
                not packet.is_discard and holds in (picture_headers.FRAME, picture_headers.LEADING),
                (may_change or not rows) and picture_headers.carries_state(packet),
                holds,
            )
        )
        if len(rows) > limits.frames:
            raise LimitError(f"{name}: more frames than the limit of {limits.frames}")
    _check_late_video(container, name)
    return rows, last


def packets(container, stream, empty: bool = False) -> Iterator:
    """Yields the packets of a stream; empty ones (frames dropped at recording, the end of the
    stream) only if `empty`."""
    for _ in range(_LATE_STREAMS):
        try:
            yield from (p for p in container.demux(stream) if p.size or empty)
            return
        except IndexError:  # PyAV 18 raises it when a stream begins midway, and can continue
            continue
    raise ValueError("too many streams begin midway")


def _check_late_video(container, name: str) -> None:
    """Raises MediaError if another video stream begins midway, which FFmpeg does not report. PyAV
    lists the streams at the beginning of the file, FFmpeg's dump lists all."""
    if container.format.name not in ("mpegts", "mpeg", "flv", "ogg"):
        return
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        listed = container.dumps_format()
    finally:
        av.logging.set_level(level)
    if len(re.findall(r"^ *Stream #0:\d+.*: Video:", listed, re.M)) > len(container.streams.video):
        raise MediaError(
            f"{name}: another video stream begins midway; to take the first: "
            "ffmpeg -i INPUT -map 0:v:0 -c copy OUTPUT.mkv"
        )


def _check_whole(container, stream, index: Index, samples, last: int, name: str) -> None:
    """Raises MediaError for a truncated file: one cut between two packets reads without an
    error."""
    kind, found, declared = container.format.name, 0, 0
    if kind == "avi":  # its timestamps count frames, including those dropped at recording
        found, declared = last + 1, stream.frames % _PIPED
    elif "mp4" in kind:
        found, declared = len(index.pts), len(stream.index_entries)
    if found < declared:
        raise MediaError(f"{name}: truncated, {found} of {declared} frames")
    if "mp4" in kind and stream.duration:  # a damaged table of samples; durations are not exact
        pts, duration = index.pts[index.shown], index.duration[index.shown]
        seconds = max(duration.sum(), (pts + duration).max() - pts.min()) * index.tick
        whole = float(stream.duration * stream.time_base)
        if samples is not None and samples.edits is not None and samples.edits.shown is not None:
            whole = min(whole, samples.edits.shown)  # FFmpeg's own sum may be that of the track
        usual = 1 / index.rate if index.rate else np.median(duration) * index.tick
        if seconds < 0.95 * whole - usual:
            raise MediaError(f"{name}: damaged, frames for {seconds:.2f} of {whole:.2f} s")
