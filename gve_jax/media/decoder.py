"""A decoder that tracks the packet of each frame and distinguishes damage from harmless errors.

FFmpeg's decoders continue after errors and conceal them, unless they are strict
(`err_detect=explode`): what strict decoders accept is accepted. But those of H.264 and HEVC also
stop at errors that change no picture, such as truncated supplemental enhancement information (SEI).
So if one of them stops, the packets are decoded again by a forgiving decoder:

* for HEVC, the strict decoder without SEI;
* for H.264, the lenient decoder; a frame that is flagged as corrupt, an error, or a logged error
  that is not on the list below is damage.
"""

import contextlib
import re
import threading
from collections.abc import Iterator

import av
from av.codec.context import Flags

from gve_jax.media import nal_units

FORGIVING = ("h264", "hevc")

# Errors that FFmpeg's H.264 decoder logs although every picture is decoded correctly:
_NOISE = re.compile(
    # SEI, which no picture depends on;
    r"\bSEI\b|in buffering period|pic_timing"
    # removal of a missing reference picture: it was before the point where decoding began, or is
    # one of two fields. A picture that needs a missing reference is logged separately;
    r"|mmco: unref short failure"
    # a field without its other field; the strict decoder also logs it and continues.
    r"|co located POCs unavailable"
)


class Damaged(Exception):
    """A picture cannot be decoded correctly."""


class Decoder:
    """Decodes the packets of one stream. `context` must not have decoded before.

    Args:
      messages: FFmpeg's log messages (`listen`), for the forgiving decoder; None for the strict
        one.
    """

    def __init__(self, context, messages: list | None = None):
        self.context, self._messages, self._without_sei = context, messages, False
        codec = context.codec.canonical_name
        context.flags |= Flags.copy_opaque
        if messages is None or codec != "h264":
            context.options = {"err_detect": "explode"}
        if messages is not None and codec == "hevc":
            header = bytes(context.extradata or b"")
            self._without_sei, self._length = True, nal_units.open_header(header, codec)[0]
            if header:
                context.extradata = nal_units.header_without_sei(header)

    def decode(
        self, packet, number: int, empty: bool = False
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (number of its packet, or -1; frame) for each frame that is ready.

        Args:
          packet: None at the end.
          empty: the packet has no picture, which is an error for FFmpeg's H.264 decoder.

        Raises:
          Damaged: a damaged picture, or an error of FFmpeg.
        """
        if packet is not None and self._without_sei:
            packet = self._strip(packet)
        if packet is not None:
            packet.opaque = [number]  # a new list: PyAV identifies it by its address
        if self._messages is not None:
            self._messages.clear()
        try:
            frames = self.context.decode(packet)
        except av.FFmpegError as error:
            if empty:
                return
            logged = [text.strip() for _, _, text in self._messages or ()]
            raise Damaged(": ".join([error.strerror or str(error), *logged[-1:]])) from error
        for level, _, text in self._messages or ():
            if level <= av.logging.ERROR and not _NOISE.search(text):
                raise Damaged(text.strip())
        for frame in frames:
            if frame.is_corrupt:
                raise Damaged("a picture is corrupt")
            yield (-1 if frame.opaque is None else frame.opaque[0]), frame

    def _strip(self, packet):
        whole = bytes(packet)
        data = nal_units.without_sei(whole, self._length)
        if data == whole:
            return packet
        stripped = av.Packet(data)
        stripped.time_base, stripped.pts, stripped.dts = packet.time_base, packet.pts, packet.dts
        stripped.is_keyframe = packet.is_keyframe
        return stripped


_lock, _listeners, _before = threading.Lock(), 0, (None, True)


@contextlib.contextmanager
def listen() -> Iterator[list]:
    """Collects the errors that FFmpeg logs in this thread: (level, decoder, text).

    PyAV's log level is global; the last listener restores it.
    """
    global _listeners, _before
    with _lock:
        if not _listeners:
            _before = av.logging.get_level(), av.logging.get_skip_repeated()
            if _before[0] is None or _before[0] < av.logging.ERROR:
                av.logging.set_level(av.logging.ERROR)
            av.logging.set_skip_repeated(False)
        _listeners += 1
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        with _lock:
            _listeners -= 1
            if not _listeners:
                av.logging.set_level(_before[0])
                av.logging.set_skip_repeated(_before[1])
