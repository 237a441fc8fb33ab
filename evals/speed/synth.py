"""What synthesizing pairs costs without the model, and how it scales: the generated world's videos,
and a server on this machine that answers after a fixed time, a few requests at once.

CPU is that of the process that runs the stages (pictures, calls, records) without its part in
decoding, which is given apart: that of the decoding processes, and taking frames from them. Memory
is its resident size after a quarter of the videos and at the end. A second run of the same command
must ask nothing.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
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
from evals.speed.isolation import resident
from evals.speed.result import write_result
from gve_jax.errors import UserError
from gve_jax.storage.filesystem import local_path


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed synth", description=__doc__)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--latency", type=float, default=0.25, help="seconds of an answer (0.25)")
    parser.add_argument("--slots", type=int, default=16, help="answers the server gives at once")
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--enlarge", type=int, default=1, help="times 112 pixels a side (1)")
    parser.add_argument("--output", type=local_path, help="a JSON file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_result("synth", vars(args), measure(Path(folder), args), args.output)


def settings(concurrency: int, decoders: int, enlarge: int) -> Settings:
    config = get_config("world")
    config.calls.concurrency, config.run.decoders = concurrency, decoders
    if enlarge > 1:
        config.video.max_pixels = config.clip.max_pixels = (112 * enlarge) ** 2
        config.frame.format = "jpeg"
    return Settings.of(config)


def enlarged(folder: Path, times: int) -> None:
    """Writes the videos of a folder again, larger."""
    for path in folder.iterdir():
        frames = decode_mp4(path.read_bytes())
        path.write_bytes(encode_mp4(frames.repeat(times, axis=1).repeat(times, axis=2)))


def measure(folder: Path, args) -> dict:
    raw = folder / "raw"
    world.write(raw, args.videos, seed=0, bad=0.0)
    if args.enlarge > 1:
        enlarged(raw / "videos", args.enlarge)
    command = [
        sys.executable,
        "-m",
        "data.uvrd.responder",
        "--world",
        str(raw),
        "--port",
        "0",
        "--latency",
        str(args.latency),
        "--slots",
        str(args.slots),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http\S+", server.stdout.readline())[0]
        rows = {str(c): _once(folder, raw, url, c, args) for c in args.concurrency}
        last = rows[str(args.concurrency[-1])]
        made = _job(folder / "pairs", raw, url, args.concurrency[-1], args)
        usage = runs.read_usage(made.work)[0]
        synthesize(made)
        if runs.read_usage(made.work)[0] != usage:
            raise UserError("synth: the second run has asked the server")
        shutil.rmtree(made.output)  # the answers are still there
        began = time.perf_counter()
        again = synthesize(made)
        if again["usage"]["calls"] != usage.calls:
            raise UserError("synth: answers of the cache were asked for again")
    finally:
        server.terminate()
        server.wait()
    return {
        "by calls at once": rows,
        "the server's limit, calls/s": round(args.slots / args.latency, 1),
        "CPU, ms a pair": last["CPU, ms a pair"],
        "calls of a second run": 0,
        "from the cache alone": {
            "seconds": round(time.perf_counter() - began, 2),
            "calls": 0,
        },
    }


def _job(output: Path, raw: Path, url: str, concurrency: int, args) -> Job:
    return Job(
        source=raw / world.CAPTIONS,
        output=output,
        server=url,
        model=MODEL,
        settings=settings(concurrency, args.decoders, args.enlarge),
    )


def _once(folder: Path, raw: Path, url: str, concurrency: int, args) -> dict:
    """One synthesis from nothing."""
    job = _job(folder / "pairs", raw, url, concurrency, args)
    for path in (job.output, job.work):
        shutil.rmtree(path, ignore_errors=True)
    done, sizes = 0, {}

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if done in (args.videos // 4, args.videos):
            sizes[f"MB after {done} videos"] = round(resident(os.getpid()), 1)

    taken = _taking()
    began, cpu, decoding = time.perf_counter(), time.process_time(), _of_children()
    manifest = synthesize(job, tick)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu - sum(taken)
    decoding = _of_children() - decoding + sum(taken)
    pairs, calls = sum(manifest["tally"]["pairs"].values()), manifest["usage"]["calls"]
    return {
        "pairs": pairs,
        "calls": calls,
        "seconds": round(seconds, 2),
        "pairs/s": round(pairs / seconds, 1),
        "calls/s": round(calls / seconds, 1),
        "CPU, ms a pair": _share(cpu, manifest),
        "CPU of decoding, ms a pair": _share(decoding, manifest),
        **sizes,
    }


def _share(seconds: float, manifest: dict) -> float:
    return round(1000 * seconds / sum(manifest["tally"]["pairs"].values()), 2)


def _taking() -> list[float]:
    """CPU seconds that this process spends from now on for each video and span it has decoded."""
    seconds: list[float] = []

    def timed(decode):
        def call(*arguments):
            began = time.thread_time()
            try:
                return decode(*arguments)
            finally:
                seconds.append(time.thread_time() - began)

        return call

    Decoder.plain_decode = getattr(Decoder, "plain_decode", Decoder.decode)
    Decoder.decode = timed(Decoder.plain_decode)
    return seconds


def _of_children() -> float:
    """CPU seconds of the processes that have ended: the decoding ones end with a synthesis."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
