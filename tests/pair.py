"""Two processes that act as the hosts of one job for many tests: starting JAX and joining the job
takes longer than most of the tests."""

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
    """The two hosts, with two devices each; started on first use and again after a crash."""

    def __init__(self):
        self._processes: list[subprocess.Popen] = []

    def run(self, function: str, *arguments) -> list:
        """Calls `module:function` with plain JSON on both hosts and returns the results.

        The result of a UserError is its message. Other exceptions fail the test."""
        if not self._processes:
            self._start()
        for process in self._processes:
            process.stdin.write(json.dumps([function, arguments]) + "\n")
            process.stdin.flush()
        results: list = [None, None]
        for _ in results:
            host, line = self._lines.get(timeout=300)
            answer = json.loads(line) if line else {"crash": "exited"}
            if crash := answer.get("crash"):  # the other host may wait for this one forever
                self._log.seek(0)
                log = self._log.read().decode(errors="replace")[-3000:]
                self.close()
                pytest.fail(f"host {host}: {crash}\n{log}")
            results[host] = answer["value"]
        return results

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
    """Runs one host: reads a function and its arguments per line, writes an answer per line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of the functions must not mix with the answers
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
        except Exception:  # the calling test fails with its traceback
            answer = {"crash": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
