"""Eight frames of a long video by seeking, beside decoding all of it; the same pixels first.

The clip is H.264 as x264 makes it (preset fast, one keyframe every KEYINT frames and no cut between
scenes, which would bring more of them: the longest way from a keyframe to a frame). Its picture is
a texture that moves over another, with grain. A minute's packets are repeated to make the whole;
every repetition begins with a keyframe. One clip more has open groups (frames shown before a
keyframe refer to frames before it) with a pyramid of B-frames. Both ways run on one thread;
processor seconds count, for they do not feel the neighbours of a shared machine.
"""

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from evals.speed.result import write_result
from gve_jax.media.sampling import spread
from gve_jax.media.video import load_video
from gve_jax.storage.filesystem import local_path

RATE = 30
OPEN_GROUPS = "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"


def texture(rng, height: int, width: int) -> np.ndarray:
    """Noise with the spectrum of a photograph through a lens: steep, and little of it fine."""
    rows, cols = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.maximum(np.hypot(rows, cols), 1 / max(height, width))
    phase = np.exp(2j * np.pi * rng.random((height, width // 2 + 1)))
    image = np.fft.irfft2(phase / radius**1.6, s=(height, width))
    return np.clip(128 + 45 * image / image.std(), 16, 235).astype(np.uint8)


def draw(count: int, height: int, width: int, seed: int = 0):
    """Yields `count` frames as planes, uint8 [height * 3 / 2, width] (4:2:0)."""
    rng = np.random.default_rng(seed)
    far, near = (texture(rng, 2 * height, 2 * width) for _ in range(2))
    tint = texture(rng, height, 2 * width)
    grain = rng.normal(0, 1.0, (8, height, width)).round().astype(np.int16)
    side = height // 3
    for k in range(count):
        y, x = (int(s / 2 * (1 + np.sin(k / t))) for s, t in ((height, 173), (width, 211)))
        luma = far[y : y + height, x : x + width].astype(np.int16)
        top, left = (
            int((s - side) / 2 * (1 + np.cos(k / t))) for s, t in ((height, 47), (width, 61))
        )
        luma[top : top + side, left : left + side] = near[:side, k % width : k % width + side]
        luma += np.roll(grain[k % 8], (k * 37, k * 53), axis=(0, 1))
        colour = tint[y // 2 : y // 2 + height // 2, x // 2 : x // 2 + width]
        planes = np.clip(luma, 16, 235).astype(np.uint8)
        yield np.concatenate([planes, np.ascontiguousarray(colour).reshape(-1, width)])


def write_clip(
    path: Path, keyint: int, seconds: int, unique: int, size: tuple[int, int], groups: str = ""
) -> None:
    """`groups`: further parameters of x264."""
    height, width = size
    total = seconds * RATE
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.options = {"preset": "fast", "x264-params": f"keyint={keyint}:{groups}"}
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        packets = []
        for k, planes in enumerate(draw(unique, height, width)):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = k
            packets += stream.encode(frame)
        packets += stream.encode()
        step = round(1 / (RATE * packets[0].time_base))
        tick = packets[0].time_base
        parts = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in packets]
        for again in range(-(-total // unique)):
            for data, pts, dts, key in parts:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, tick, key
                packet.pts, packet.dts = pts + again * unique * step, dts + again * unique * step
                packet.duration = step
                out.mux(packet)


def decode_all(path: Path, count: int, threads: str) -> np.ndarray:
    """Every frame decoded, the wanted ones kept."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        wanted, kept = set(spread(0, stream.frames - 1, count).tolist()), []
        for k, frame in enumerate(container.decode(stream)):
            if k in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
    return np.stack(kept)


def timed(run):
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - processor


def measure(path: Path, args) -> dict:
    seeks = [timed(lambda: load_video(path, args.frames).frames) for _ in range(args.repeats)]
    every, wall, processor = timed(lambda: decode_all(path, args.frames, "NONE"))
    if not all(np.array_equal(frames, every) for frames, *_ in seeks):
        raise SystemExit("seeking gave other frames than decoding everything")
    _, threaded, _ = timed(lambda: decode_all(path, args.frames, "FRAME"))
    ours, ours_wall = (float(np.median([seek[i] for seek in seeks])) for i in (2, 1))
    return {
        "bytes": path.stat().st_size,
        "decoding all": {"processor s": round(processor, 2), "wall s": round(wall, 2)},
        "decoding all on every core, wall s": round(threaded, 2),
        "seeking": {"processor s": round(ours, 3), "wall s": round(ours_wall, 3)},
        "ratio of processor s": round(processor / ours, 1),
        "ratio of wall s": round(wall / ours_wall, 1),
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed seeking", description=__doc__)
    parser.add_argument("--keyint", type=int, nargs="+", default=[60, 150, 250])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--unique", type=int, default=1500, help="frames before they repeat")
    parser.add_argument("--size", type=int, nargs=2, default=[720, 1280], help="height and width")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder", type=local_path, help="where the clips are kept for another run"
    )
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = [(keyint, "", "") for keyint in args.keyint]
        for keyint, title, groups in [*clips, (args.keyint[0], "open groups, ", OPEN_GROUPS)]:
            height, width = args.size
            kind = "-open" if groups else ""
            name = f"{args.seconds}s-{height}x{width}-k{keyint}-u{args.unique}{kind}.mp4"
            path = (args.folder or Path(folder)) / name
            if not path.exists():
                part = path.with_suffix(".part")
                write_clip(part, keyint, args.seconds, args.unique, (height, width), groups)
                part.rename(path)
            result[f"{title}a keyframe every {keyint}"] = measure(path, args)
    settings = {k: v for k, v in vars(args).items() if k != "folder"}
    write_result("seeking", settings, result, args.output)
