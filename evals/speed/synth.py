"""The cost of synthesizing pairs without the model, and how it scales.

The videos are the generated world's. A server on this machine answers after a fixed time, a few
requests at once. CPU is that of the process that runs the stages (pictures, calls, records) without
its part in decoding, which is reported separately: that of the decoding processes, and of receiving
frames from them. Memory is its resident size after a quarter of the videos and at the end. A second
run of the same command must send no request.
"""

import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from configs.uvrd import get_config
from data.shapes.render import decode_mp4, encode_mp4
from data.uvrd import run as runs
from data.uvrd import world
from data.uvrd.pictures import Decoder
from data.uvrd.responder import MODEL
from data.uvrd.run import Job, synthesize
from data.uvrd.settings import Settings
from evals.speed import harness
from gve_jax.errors import UserError

OPTIONS = dict(
    videos=(200, "videos to synthesize from"),
    concurrency=([1, 2, 4, 8, 16, 32], "requests at once, of each run"),
    latency=(0.25, "seconds of an answer"),
    slots=(16, "requests that the server answers at once"),
    decoders=(2, "decoding processes"),
    enlarge=(1, "factor on 112 pixels a side"),
)


def settings(concurrency: int, decoders: int, enlarge: int) -> Settings:
    config = get_config("world")
    config.calls.concurrency, config.run.decoders = concurrency, decoders
    if enlarge > 1:
        config.video.max_pixels = config.clip.max_pixels = (112 * enlarge) ** 2
        config.frame.format = "jpeg"
    return Settings.of(config)


def enlarged(folder: Path, times: int) -> None:
    """Rewrites the videos of a folder, enlarged."""
    for path in folder.iterdir():
        frames = decode_mp4(path.read_bytes())
        path.write_bytes(encode_mp4(frames.repeat(times, axis=1).repeat(times, axis=2)))


def measure(folder: Path, args) -> dict:
    raw = folder / "raw"
    world.write(raw, args.videos, seed=0, bad=0.0)
    if args.enlarge > 1:
        enlarged(raw / "videos", args.enlarge)
    options = f"--port 0 --latency {args.latency} --slots {args.slots}".split()
    command = [sys.executable, "-m", "data.uvrd.responder", "--world", str(raw), *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http\S+", server.stdout.readline())[0]
        rows = {str(c): _run_once(folder, raw, url, c, args) for c in args.concurrency}
        last = rows[str(args.concurrency[-1])]
        job = _job(folder / "pairs", raw, url, args.concurrency[-1], args)
        usage = runs.read_usage(job.work)[0]
        synthesize(job)
        if runs.read_usage(job.work)[0] != usage:
            raise UserError("synth: the second run sent requests to the server")
        shutil.rmtree(job.output)  # the cached answers remain
        start = time.perf_counter()
        again = synthesize(job)
        cached_seconds = round(time.perf_counter() - start, 2)
        if again["usage"]["calls"] != usage.calls:
            raise UserError("synth: cached answers were requested again")
    finally:
        server.terminate()
        server.wait()
    return {
        "by calls at once": rows,
        "the server's limit, calls/s": round(args.slots / args.latency, 1),
        "CPU, ms a pair": last["CPU, ms a pair"],
        "calls of a second run": 0,
        "from the cache alone": {"seconds": cached_seconds, "calls": 0},
    }


def _job(output: Path, raw: Path, url: str, concurrency: int, args) -> Job:
    return Job(
        source=raw / world.CAPTIONS,
        output=output,
        server=url,
        model=MODEL,
        settings=settings(concurrency, args.decoders, args.enlarge),
    )


def _run_once(folder: Path, raw: Path, url: str, concurrency: int, args) -> dict:
    """One synthesis without cached answers."""
    job = _job(folder / "pairs", raw, url, concurrency, args)
    for path in (job.output, job.work):
        shutil.rmtree(path, ignore_errors=True)
    done, sizes = 0, {}

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if done in (args.videos // 4, args.videos):
            sizes[f"MB after {done} videos"] = round(harness.memory_bytes() / 1e6, 1)

    receiving = _time_receiving()
    start, cpu, decoding = time.perf_counter(), time.process_time(), _children_seconds()
    manifest = synthesize(job, tick)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu - sum(receiving)
    decoding = _children_seconds() - decoding + sum(receiving)
    pairs, calls = sum(manifest["tally"]["pairs"].values()), manifest["usage"]["calls"]
    return {
        "pairs": pairs,
        "calls": calls,
        "seconds": round(seconds, 2),
        "pairs/s": round(pairs / seconds, 1),
        "calls/s": round(calls / seconds, 1),
        "CPU, ms a pair": round(1000 * cpu / pairs, 2),
        "CPU of decoding, ms a pair": round(1000 * decoding / pairs, 2),
        **sizes,
    }


def _time_receiving() -> list[float]:
    """CPU seconds of this process for each video and span decoded from now on."""
    seconds: list[float] = []

    def timed(decode):
        def call(*arguments):
            start = time.thread_time()
            try:
                return decode(*arguments)
            finally:
                seconds.append(time.thread_time() - start)

        return call

    Decoder.plain_decode = getattr(Decoder, "plain_decode", Decoder.decode)
    Decoder.decode = timed(Decoder.plain_decode)
    return seconds


def _children_seconds() -> float:
    """CPU seconds of exited child processes; the decoding ones exit with a synthesis."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
