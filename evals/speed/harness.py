"""Shared parts of the benchmarks: options, timing in turns, child processes, memory, results."""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gve_jax import __version__
from gve_jax.cli import Parser, run_cli
from gve_jax.errors import UserError
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import local_path

WALL = (time.perf_counter,)
WALL_AND_PROCESSOR = (time.perf_counter, time.process_time)


def run(name: str, argv: Sequence[str]) -> None:
    """Runs the `measure(folder, args)` of a benchmark with its `OPTIONS` and a temporary folder."""
    module = importlib.import_module(f"evals.speed.{name}")
    args = parse_options(name, module.__doc__, argv, module.OPTIONS)
    with tempfile.TemporaryDirectory(dir=getattr(args, "folder", None)) as folder:
        result = module.measure(Path(folder), args)
    write_result(name, vars(args), result, args.output)


def parse_options(name: str, description: str, argv, options: Mapping) -> argparse.Namespace:
    """Parses the options of a benchmark, and `--output`.

    Args:
      options: (default, help) or (default, help, choices) of each. A list takes one or more values,
        a tuple as many as it has, False is a switch, and a function is the type of an option
        without a default.
    """
    parser = Parser(f"python -m evals.speed {name}", description)
    options = dict(options) | {"output": (local_path, "JSON file to write the result to")}
    for option, (default, text, *choices) in options.items():
        kind: dict[str, Any] = {"default": default, "type": type(default)}
        if default is False:
            kind = {"action": "store_true"}
        elif callable(default):
            kind = {"type": default}
        elif isinstance(default, list | tuple):
            kind["type"] = type(default[0])
            kind["nargs"] = "+" if isinstance(default, list) else len(default)
        if "default" in kind:
            values = default if isinstance(default, list | tuple) else [default]
            text += f" (default: {' '.join(map(str, values))})"
        if choices:
            kind["choices"] = choices[0]
        parser.add_argument("--" + option.replace("_", "-"), help=text, **kind)
    return parser.parse_args(argv)


def take_turns(
    variants: Mapping[Any, Callable], repeats: int, clocks: Sequence[Callable] = WALL
) -> dict[Any, np.ndarray]:
    """Seconds of every variant, float64 [repeats, clocks].

    The variants run one after the other in each repeat, so that a machine whose speed drifts slows
    all of them alike.
    """
    seconds = {name: np.empty((repeats, len(clocks))) for name in variants}
    for turn in range(repeats):
        for name, run in variants.items():
            start = [clock() for clock in clocks]
            run()
            seconds[name][turn] = [clock() - s for clock, s in zip(clocks, start, strict=True)]
    return seconds


def compare_with_best(variants: Mapping[str, Callable], repeats: int) -> tuple[dict, dict, float]:
    """Times variants in turns and compares the first one with the fastest of the others.

    Returns:
      All wall seconds by variant, sorted; the medians; the fastest other median over the first.
    """
    taken = take_turns(variants, repeats)
    seconds = {name: sorted(values[:, 0].round(3).tolist()) for name, values in taken.items()}
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    first, *others = medians.values()
    return seconds, medians, round(min(others) / first, 2)


def median_seconds(run: Callable, repeats: int) -> float:
    """Median wall seconds of a function that returns JAX arrays, after one run to compile it."""
    jax.block_until_ready(run())
    turns = take_turns({"run": lambda: jax.block_until_ready(run())}, repeats)
    return float(np.median(turns["run"]))


def seconds_since(start: float) -> float:
    """Wall seconds since `start`, a reading of `time.perf_counter`, for a result."""
    return round(time.perf_counter() - start, 2)


def run_in_child(
    function: str,
    *arguments,
    env: Mapping[str, str] | None = None,
    cores: set[int] | None = None,
):
    """Calls a function in a new Python process and returns its result.

    Args:
      function: `module:name`.
      arguments: its arguments, of JSON's types. The result must be of them, too.
      env: additional environment variables, set before Python starts.
      cores: CPU cores that the process may use (default: as this process).

    Raises:
      UserError: the process failed; the last line of its error output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "evals.speed.harness", function, json.dumps(arguments)],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise UserError(f"{function} failed: {last[0].removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def require_proc(benchmark: str) -> None:
    """Raises UserError on systems without Linux's /proc."""
    if not Path("/proc/self/io").exists():
        raise UserError(f"{benchmark}: memory is read from Linux's /proc, which is missing")


def memory_bytes(field: str = "VmRSS", pid: int | str = "self") -> int:
    """A memory field of /proc/PID/status in bytes; `VmRSS` is the resident size."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_anonymous_bytes(run: Callable) -> int:
    """Peak of this process's anonymous memory while `run` runs.

    Pages of memory-mapped files do not count: the kernel drops them when it needs the room.
    """
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, memory_bytes("RssAnon"))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run()
    finally:
        done.set()
        thread.join()
    return peak


def write_result(name: str, settings: Mapping, result: Mapping, output: Path | None) -> None:
    """Prints a result as JSON and, with `output`, writes it to that file."""
    device = jax.devices()[0]
    peers = {peer: sys.modules.get(peer) for peer in ("torch", "transformers")}
    versions = {"gve_jax": __version__, "jax": jax.__version__}
    record = {
        "benchmark": name,
        "settings": {k: v for k, v in settings.items() if k not in ("output", "folder")},
        "machine": f"{os.cpu_count()} x {platform.machine()} CPU, {device.device_kind}",
        "versions": versions | {k: module.__version__ for k, module in peers.items() if module},
        "result": dict(result),
    }
    text = json.dumps(record, indent=1, default=str)
    print(text)
    if output:
        write_json(output, json.loads(text))


def _child_main() -> None:
    module, name = sys.argv[1].split(":")
    value = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))
    print(json.dumps(value))


if __name__ == "__main__":
    run_cli(_child_main)
