"""Encoded streams taken apart into packets and put together again, changed."""

import dataclasses
import io

import av


@dataclasses.dataclass
class Coded:
    """A packet; times in frames, `None` where the container knows none."""

    data: bytes
    pts: float | None
    dts: float | None
    key: bool
    duration: float = 1


def take_apart(data: bytes, fps: int = 10) -> list[Coded]:
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        tick = float(stream.time_base) * fps
        return [
            Coded(
                bytes(p), *(None if t is None else t * tick for t in (p.pts, p.dts)), p.is_keyframe
            )
            for p in file.demux(stream)
            if p.size
        ]


def put_together(
    like: bytes, coded: list[Coded], container: str, fps: int = 10, options: dict | None = None
) -> bytes:
    """A file of these packets with the parameters of the stream of `like`."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(like)) as source,
        av.open(buffer, "w", format=container, options=options or {}) as out,
    ):
        origin = source.streams.video[0]
        stream, tick = out.add_stream_from_template(origin), origin.time_base
        for each in coded:
            packet = av.Packet(each.data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, tick, each.key
            packet.pts = round(each.pts / fps / tick)
            packet.dts = round(each.dts / fps / tick)
            packet.duration = round(each.duration / fps / tick)
            out.mux(packet)
    return buffer.getvalue()


def prefixed(unit: bytes) -> bytes:
    """A NAL unit with its length before it, as MP4 and Matroska store it."""
    return len(unit).to_bytes(4) + unit
