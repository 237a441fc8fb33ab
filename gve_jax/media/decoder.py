"""A decoder that tracks the packet of each frame and distinguishes damage from harmless errors.

FFmpeg's decoders go on after an error and conceal it. Asked to stop at errors they are strict
(`err_detect=explode`): what they accept then is accepted here. But those of H.264 and HEVC also
stop at what harms no picture, a message for the player (SEI) that is cut short, say. So where one
of them stops, the same packets are decoded once more by a forgiving decoder:

* of HEVC, the strict one without the messages;
* of H.264, the lenient one, whose complaints are judged: a frame flagged as corrupt, an error, and
  a logged error that is not on the list below is damage.
"""

import contextlib
import re
import threading
from collections.abc import Iterator

import av
from av.codec.context import Flags

from gve_jax.media import nal_units

FORGIVING = ("h264", "hevc")

# Errors that FFmpeg's H.264 logs while every picture stays as it was coded:
_NOISE = re.compile(
    # messages for the player, which no picture depends on;
    r"\bSEI\b|in buffering period|pic_timing"
    # a picture to be forgotten that is not there: it came before the point where decoding began, or
    # is one of two fields. What still needs a missing picture is logged as well, in other words;
    r"|mmco: unref short failure"
    # a field whose other field was not there; the strict decoder logs it, too, and continues.
    r"|co located POCs unavailable"
)


class Damaged(Exception):
    """A picture cannot be decoded as it was coded."""


class Decoder:
    """Decodes the packets of one stream. `context` must not have decoded before.

    Args:
      messages: what FFmpeg logs (`listen`), for the forgiving decoder; None for the strict one.
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
        """(number of the packet it comes from, or -1; frame) of each frame that is ready. `packet`
        is None at the end. `empty`: it holds no picture, which FFmpeg's H.264 calls an error.

        Raises:
          Damaged: also for errors of FFmpeg's.
        """
        if packet is not None and self._without_sei:
            packet = self._strip(packet)
        if packet is not None:
            packet.opaque = [number]  # a list of its own: PyAV finds it again by its address
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
    """The errors that FFmpeg logs in this thread: (level, decoder, text).

    PyAV has one level for the whole process, which is put back by the last who listens.
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
