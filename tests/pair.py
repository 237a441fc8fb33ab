"""Two processes that are the hosts of one job, and run the functions of many tests: starting JAX
and joining costs more than most of what is asked of them."""

import importlib
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import traceback

import pytest

from tests.conftest import ROOT


class Pair:
    """The hosts of a job, two devices each; started when first needed, and again after a crash."""

    def __init__(self):
        self._processes: list[subprocess.Popen] = []

    def run(self, function: str, *arguments) -> list:
        """What `module:function` gives on each host for plain JSON, or the text of its UserError;
        anything else fails the test."""
        if not self._processes:
            self._start()
        for process in self._processes:
            process.stdin.write(json.dumps([function, arguments]) + "\n")
            process.stdin.flush()
        told: list = [None, None]
        for _ in told:
            host, line = self._lines.get(timeout=300)
            answer = json.loads(line) if line else {"crash": "ended"}
            if crash := answer.get("crash"):  # the other one may wait for this one for ever
                self._log.seek(0)
                said = self._log.read().decode(errors="replace")[-3000:]
                self.close()
                pytest.fail(f"host {host}: {crash}\n{said}")
            told[host] = answer["value"]
        return told

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        job = {
            "GVE_JAX_COORDINATOR": address,
            "GVE_JAX_HOSTS": "2",
            "GVE_JAX_HEARTBEAT_S": "60",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
        }
        self._lines, self._log = queue.Queue(), tempfile.TemporaryFile()
        for host in range(2):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.pair"],
                cwd=ROOT,
                text=True,
                env=os.environ | job | {"GVE_JAX_HOST": str(host)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
            self._processes.append(process)
            threading.Thread(target=self._listen, args=(host, process), daemon=True).start()

    def _listen(self, host: int, process: subprocess.Popen) -> None:
        lines = self._lines
        for line in process.stdout:
            lines.put((host, line))
        lines.put((host, ""))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes = []


def main() -> None:
    """One of the two: a function and its arguments a line, its answer a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what functions print is no answer
    from absl import flags

    from gve_jax.distributed import hosts
    from gve_jax.errors import UserError

    flags.FLAGS.mark_as_parsed()
    hosts.join_job()
    for line in sys.stdin:
        function, arguments = json.loads(line)
        module, name = function.split(":")
        try:
            answer = {"value": getattr(importlib.import_module(module), name)(*arguments)}
        except UserError as error:
            answer = {"value": str(error)}
        except Exception:  # of any kind: the test that asked raises it, with its lines
            answer = {"crash": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
