"""Eight frames of a long video by seeking, compared with decoding all of it.

The clip is H.264 from x264 (preset fast, one keyframe every KEYINT frames; no scene cuts, which
would add keyframes and shorten the distance from a keyframe to a frame). It shows a texture that
moves over another one, with grain. The packets of a minute are repeated; every repetition begins
with a keyframe. A further clip has open groups (frames shown before a keyframe refer to frames
before it) with a pyramid of B-frames. Pixels are compared first. Both variants run on one thread;
processor seconds count, since they hardly depend on other load of a shared machine.
"""

from pathlib import Path

import av
import numpy as np

from evals.speed import harness
from gve_jax.media.sampling import spread
from gve_jax.media.video import load_video
from gve_jax.storage.filesystem import local_path

RATE = 30
OPEN_GROUPS = "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"


def texture(rng, height: int, width: int) -> np.ndarray:
    """Noise with the steep spectrum of a photograph: little fine detail."""
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
    """`groups`: additional parameters of x264."""
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
        tick = packets[0].time_base
        step = round(1 / (RATE * tick))
        recorded = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in packets]
        for shift in range(0, total, unique):
            for data, pts, dts, key in recorded:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, tick, key
                packet.pts, packet.dts = pts + shift * step, dts + shift * step
                packet.duration = step
                out.mux(packet)


def decode_all(path: Path, count: int, threads: str) -> np.ndarray:
    """Decodes every frame and returns `count` of them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        wanted, frames = set(spread(0, stream.frames - 1, count).tolist()), []
        for k, frame in enumerate(container.decode(stream)):
            if k in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


def measure_clip(path: Path, args) -> dict:
    frames: dict[str, list[np.ndarray]] = {"seeking": [], "all": [], "threads": []}

    def seconds(name: str, repeats: int, decode) -> tuple[float, float]:
        """Median wall and processor seconds."""
        run = {name: lambda: frames[name].append(decode())}
        taken = harness.take_turns(run, repeats, harness.WALL_AND_PROCESSOR)
        return tuple(np.median(taken[name], axis=0).tolist())

    wall, processor = seconds("seeking", args.repeats, lambda: load_video(path, args.frames).frames)
    all_wall, all_processor = seconds("all", 1, lambda: decode_all(path, args.frames, "NONE"))
    if not all(np.array_equal(found, frames["all"][0]) for found in frames["seeking"]):
        raise SystemExit("seeking gave other frames than decoding everything")
    threads_wall, _ = seconds("threads", 1, lambda: decode_all(path, args.frames, "FRAME"))
    return {
        "bytes": path.stat().st_size,
        "decoding all": {"processor s": round(all_processor, 2), "wall s": round(all_wall, 2)},
        "decoding all on every core, wall s": round(threads_wall, 2),
        "seeking": {"processor s": round(processor, 3), "wall s": round(wall, 3)},
        "ratio of processor s": round(all_processor / processor, 1),
        "ratio of wall s": round(all_wall / wall, 1),
    }


OPTIONS = dict(
    keyint=([60, 150, 250], "frames between keyframes, of each clip"),
    seconds=(600, "duration of a clip"),
    unique=(1500, "frames until they repeat"),
    size=((720, 1280), "height and width of a clip"),
    frames=(8, "frames to read"),
    repeats=(5, "runs of seeking"),
    folder=(local_path, "folder that keeps the clips, instead of a temporary one"),
)


def measure(folder: Path, args) -> dict:
    height, width = args.size
    result = {}
    clips = [(keyint, "", "") for keyint in args.keyint]
    for keyint, title, groups in [*clips, (args.keyint[0], "open groups, ", OPEN_GROUPS)]:
        kind = "-open" if groups else ""
        name = f"{args.seconds}s-{height}x{width}-k{keyint}-u{args.unique}{kind}.mp4"
        path = (args.folder or folder) / name
        if not path.exists():
            partial = path.with_suffix(".part")
            write_clip(partial, keyint, args.seconds, args.unique, (height, width), groups)
            partial.rename(path)
        result[f"{title}a keyframe every {keyint}"] = measure_clip(path, args)
    return result
