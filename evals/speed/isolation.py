"""The cost of decoding in worker processes: time per clip, throughput by processes, memory.

Clips of several containers, codecs and sizes are decoded in this process and by isolated workers,
in turns, after their rows are compared. Memory is a worker's resident size after its first hundred
clips and after `--clips`.
"""

import io
import itertools
import os
import time
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

from evals.parity.reference import write_tokenizer
from evals.speed import harness
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.isolation import Isolated
from gve_jax.media.item import Item

# container, codec, pixel format: those that PyAV's FFmpeg can write
KINDS = (
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "libx265", "yuv420p"),
    ("mp4", "libx265", "yuv420p10le"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("mpegts", "libx264", "yuv420p"),
    ("matroska", "libx264", "yuv444p"),
)
SIZES = ((96, 128), (240, 320), (272, 640))  # height, width
WARM_UP = 100  # clips before a worker's memory is first read


def make_clips(frames: int = 48) -> list[bytes]:
    """A moving gradient in each kind and size."""
    clips = []
    for (container, codec, pixels), (height, width) in itertools.product(KINDS, SIZES):
        buffer = io.BytesIO()
        ramp = np.add.outer(np.arange(height), np.arange(width))
        with av.open(buffer, "w", format=container) as out:
            stream = out.add_stream(codec, rate=24)
            stream.height, stream.width, stream.pix_fmt = height, width, pixels
            if codec == "libx265":
                stream.options = {"x265-params": "log-level=none"}
            for number in range(frames):
                image = np.stack([ramp + 5 * number, ramp * 2 - number, ramp + number], axis=-1)
                frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        clips.append(buffer.getvalue())
    return clips


def memory_over(isolated: Isolated, items: list[Item], count: int) -> dict[str, float]:
    """Resident MB of the only worker of `isolated`, after WARM_UP and after `count` items."""
    sizes, pids = {}, set()
    for number, item in zip(range(1, count + 1), itertools.cycle(items), strict=False):
        isolated(item)
        (pid,) = isolated.pids
        pids.add(pid)
        if number in (WARM_UP, count):
            sizes[f"MB after {number} clips"] = round(harness.memory_bytes(pid=pid) / 1e6, 1)
    if len(pids) > 1:
        raise UserError("isolation: a worker was restarted, so its memory cannot be compared")
    return sizes


def cpu_seconds(isolated: Isolated) -> float:
    """Processor seconds of this process and the workers of `isolated`."""
    ticks = 0
    for pid in isolated.pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user, system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def check_rows(results: Iterable) -> None:
    for result in results:
        if not isinstance(result, Row):
            raise UserError(f"isolation: {result.reason}")


OPTIONS = dict(
    clips=(1000, "clips until memory is read"),
    processes=([1, 2], "workers of each throughput"),
    repeats=(5, "runs of each variant"),
)


def measure(folder: Path, args) -> dict:
    harness.require_proc("isolation")
    tokenizer = folder / "tokenizer.json"
    write_tokenizer(tokenizer)
    preprocess = Preprocessor(Prompt(tokenizer, 8192), InputSpec())
    items = [Item("what is it?", video=clip) for clip in make_clips()]
    one = Isolated(preprocess, 1)
    start = time.perf_counter()
    one(items[0])
    first = round(time.perf_counter() - start, 3)
    for item in items:  # outputs are compared before anything is timed
        row, isolated_row = preprocess(item), one(item)
        for a, b in zip(row.patches, isolated_row.patches, strict=True):
            if not np.array_equal(a, b):
                raise UserError("isolation: the rows differ")
    variants = {
        "in this process": lambda: check_rows(map(preprocess, items)),
        "isolated": lambda: check_rows(map(one, items)),
    }
    for count in args.processes:
        pool = Isolated(preprocess, count)
        variants[f"{count} processes"] = lambda pool=pool: check_rows(pool.map(items))
        variants[f"{count} processes"]()  # starts the workers
    clocks = time.perf_counter, lambda: cpu_seconds(one)
    taken = harness.take_turns(variants, args.repeats, clocks)
    best = {name: float(seconds[:, 0].min()) for name, seconds in taken.items()}
    direct, isolated = (taken[name][:, 1].mean() for name in ("in this process", "isolated"))
    return {
        "clips": len(items),
        "seconds to start a process and decode a clip": first,
        "ms a clip": {name: round(1000 * s / len(items), 2) for name, s in best.items()},
        "clips/s": {name: round(len(items) / s, 1) for name, s in best.items()},
        "overhead, ms of CPU a clip": round(1000 * (isolated - direct) / len(items), 2),
        "overhead, share of the CPU of decoding": round(isolated / direct - 1, 4),
        **memory_over(one, items, args.clips),
    }
