"""What decoding in processes of its own costs: time a clip, throughput by processes, memory.

Clips of several containers, codecs and sizes are made, decoded in this process and by isolated
ones, in turns, after their rows are compared. Memory is a worker's resident size after its first
hundred clips and after as many as asked for.
"""

import argparse
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np

from evals.parity.reference import write_tokenizer
from evals.speed.result import write_result
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.isolation import Isolated
from gve_jax.media.item import Item
from gve_jax.storage.filesystem import local_path

# container, codec, pixel format: what this PyAV can write
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
WARM = 100  # clips after which a worker's memory is first read


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


def resident(pid: int) -> float:
    """MB of a process that are in memory."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_over(isolated: Isolated, items: list[Item], count: int) -> dict[str, float]:
    """MB resident of the one process of `isolated`, after WARM and after `count` items."""
    sizes, pids = {}, set()
    for number, item in zip(range(1, count + 1), itertools.cycle(items), strict=False):
        isolated(item)
        (pid,) = isolated.pids
        pids.add(pid)
        if number in (WARM, count):
            sizes[f"MB after {number} clips"] = round(resident(pid), 1)
    if len(pids) > 1:
        raise UserError("isolation: a worker was restarted, its memory says nothing")
    return sizes


def cpu_seconds(isolated: Isolated) -> float:
    """Of this process and those that wait in `isolated`."""
    ticks = 0
    for pid in isolated.pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user, system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def seconds_of(run: Callable[[], Iterable]) -> float:
    began = time.perf_counter()
    for result in run():
        if not isinstance(result, Row):
            raise UserError(f"isolation: {result.reason}")
    return time.perf_counter() - began


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed isolation", description=__doc__)
    parser.add_argument("--clips", type=int, default=1000, help="for memory")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    if not Path("/proc/self/statm").exists():
        raise UserError("isolation: memory is read from Linux's /proc")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer.json")
        result = measure(Path(folder) / "tokenizer.json", args)
    write_result("isolation", vars(args), result, args.output)


def measure(tokenizer: Path, args) -> dict:
    preprocess = Preprocessor(Prompt(tokenizer, 8192), InputSpec())
    items = [Item("what is it?", video=clip) for clip in make_clips()]
    pools = {count: Isolated(preprocess, count) for count in args.processes}
    one = Isolated(preprocess, 1)
    began = time.perf_counter()
    one(items[0])
    start = time.perf_counter() - began
    for item in items:  # outputs before times
        mine, theirs = preprocess(item), one(item)
        for a, b in zip(mine.patches, theirs.patches, strict=True):
            if not np.array_equal(a, b):
                raise UserError("isolation: the rows differ")
    ways = {"in this process": lambda: map(preprocess, items), "isolated": lambda: map(one, items)}
    for count, pool in pools.items():
        ways[f"{count} processes"] = lambda pool=pool: pool.map(items)
        seconds_of(ways[f"{count} processes"])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu = dict.fromkeys(ways, 0.0)
    for _ in range(args.repeats):  # in turns: the machine's speed drifts
        for name, run in ways.items():
            used = cpu_seconds(one)
            seconds[name].append(seconds_of(run))
            cpu[name] += (cpu_seconds(one) - used) / args.repeats
    best = {name: min(values) for name, values in seconds.items()}
    here, there = cpu["in this process"], cpu["isolated"]
    return {
        "clips": len(items),
        "seconds to start a process and decode a clip": round(start, 3),
        "ms a clip": {name: round(1000 * s / len(items), 2) for name, s in best.items()},
        "clips/s": {name: round(len(items) / s, 1) for name, s in best.items()},
        "overhead, ms of CPU a clip": round(1000 * (there - here) / len(items), 2),
        "overhead, share of the CPU of decoding": round(there / here - 1, 4),
        **memory_over(one, items, args.clips),
    }
