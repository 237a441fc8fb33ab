"""What a benchmark prints and writes: settings, versions, the machine in words, numbers."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from gve_jax import __version__
from gve_jax.files import write_json


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
