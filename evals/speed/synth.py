"""What synthesizing pairs costs without the model, and how it scales: the generated world's videos,
and a server on this machine that answers after a fixed time, a few requests at once.

CPU is that of the process that runs the stages (pictures, calls, records); decoding has processes
of its own and is given apart. Memory is its resident size after a quarter of the videos and at the
end. A second run of the same command must ask nothing.
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
from data.uvrd import run as runs
from data.uvrd import world
from data.uvrd.responder import MODEL
from data.uvrd.run import Job, synthesize
from data.uvrd.settings import Settings
from evals.speed.isolation import resident
from evals.speed.result import write_result
from gve_jax.errors import UserError


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evals.speed synth", description=__doc__)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--latency", type=float, default=0.25, help="seconds of an answer (0.25)")
    parser.add_argument("--slots", type=int, default=16, help="answers the server gives at once")
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_result("synth", vars(args), measure(Path(folder), args), args.output)


def settings(concurrency: int, decoders: int) -> Settings:
    config = get_config("world")
    config.calls.concurrency, config.run.decoders = concurrency, decoders
    return Settings.of(config)


def measure(folder: Path, args) -> dict:
    raw = folder / "raw"
    world.write(raw, args.videos, seed=0, bad=0.0)
    command = [sys.executable, "-m", "data.uvrd.responder", "--world", str(raw), "--port", "0",
               "--latency", str(args.latency), "--slots", str(args.slots)]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http\S+", server.stdout.readline())[0]
        rows = {str(c): _once(folder, raw, url, c, args) for c in args.concurrency}
        last = rows[str(args.concurrency[-1])]
        made = _job(folder / "pairs", raw, url, args.concurrency[-1], args)
        usage = runs.usage_of(made.work)[0]
        synthesize(made)
        if runs.usage_of(made.work)[0] != usage:
            raise UserError("synth: the second run has asked the server")
        shutil.rmtree(made.output)  # the answers are still there
        began, cpu = time.perf_counter(), time.process_time()
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
            "CPU, ms a pair": _share(time.process_time() - cpu, again),
            "calls": 0,
        },
    }


def _job(output: Path, raw: Path, url: str, concurrency: int, args) -> Job:
    return Job(source=raw / world.CAPTIONS, output=output, server=url, model=MODEL,
               settings=settings(concurrency, args.decoders))  # fmt: skip


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

    began, cpu, decoding = time.perf_counter(), time.process_time(), _of_children()
    manifest = synthesize(job, tick)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    pairs, calls = sum(manifest["tally"]["pairs"].values()), manifest["usage"]["calls"]
    return {
        "pairs": pairs,
        "calls": calls,
        "seconds": round(seconds, 2),
        "pairs/s": round(pairs / seconds, 1),
        "calls/s": round(calls / seconds, 1),
        "CPU, ms a pair": _share(cpu, manifest),
        "CPU of decoding, ms a pair": _share(_of_children() - decoding, manifest),
        **sizes,
    }


def _share(seconds: float, manifest: dict) -> float:
    return round(1000 * seconds / sum(manifest["tally"]["pairs"].values()), 2)


def _of_children() -> float:
    """CPU seconds of the processes that have ended: the decoding ones end with a synthesis."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
