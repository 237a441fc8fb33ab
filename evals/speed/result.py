"""What a benchmark prints and writes: settings, versions, the machine in words, numbers."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from gve_jax import __version__
from gve_jax.storage.files import write_json


def in_turns(ways: Mapping[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` times, one after the other: the machine's speed drifts."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def write_result(name: str, settings: Mapping, result: Mapping, output: Path | None) -> None:
    """Prints a result as JSON and, with `output`, writes it there."""
    device = jax.devices()[0]
    text = {
        "benchmark": name,
        "settings": {k: v for k, v in settings.items() if k != "output"},
        "machine": f"{os.cpu_count()} x {platform.machine()} CPU, {device.device_kind}",
        "versions": {"gve_jax": __version__, "jax": jax.__version__, **_peers()},
        "result": dict(result),
    }
    print(json.dumps(text, indent=1, default=str))
    if output:
        write_json(output, json.loads(json.dumps(text, default=str)))


def _peers() -> dict[str, str]:
    found = {name: sys.modules.get(name) for name in ("torch", "transformers")}
    return {name: module.__version__ for name, module in found.items() if module}
