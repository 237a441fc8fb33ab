"""Servers for tests: a process with a small model, and one in a thread with a stand-in for it."""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gve_jax.inputs.batch import default_buckets
from gve_jax.inputs.preprocess import InputSpec, Row
from gve_jax.inputs.profiles import PROFILES
from gve_jax.media.sandbox import Failure
from gve_jax.serving.server import Server
from gve_jax.serving.service import Service, Settings
from gve_jax.serving.sockets import bind
from tests import checkpoint_files
from tests.conftest import ROOT

NAME = "tiny"


class Lengths:
    """A stand-in for `GVE`: vectors of the lengths of texts; a text that begins with `bad` cannot
    be read, `broken` fails the model. Waits for `gate` before it encodes."""

    embedding_dim, source = 4, None

    def __init__(self, profile: str = "gve"):
        spec = InputSpec(profile=profile)
        prompt = SimpleNamespace(profile=PROFILES[profile], text_of=lambda ids: "x" * len(ids))
        self.preprocess = SimpleNamespace(spec=spec, prompt=prompt)
        self.buckets, self.prompts = default_buckets(spec), {"query": "Find it.", "A": "a"}
        self.config, self.fingerprint = SimpleNamespace(dtype="float32"), {"weights": "w"}
        self.sandbox = None
        self.gate, self.batches = threading.Event(), []
        self.gate.set()

    def prepare(self, item, prompt=None):
        text = item.text or ""
        if text.startswith("bad"):
            return Failure(f"{text}: bad", 0.1)
        count = len(text) + 100 * len(item.instruction or prompt or "")
        tokens = np.full(min(count, self.preprocess.spec.max_length), ord(text[:1] or "b"))
        return Row(tokens, tokens, [], [], tokens[:0])

    def encode_rows(self, rows, batch_size=32):
        self.gate.wait(20)
        self.batches.append(len(rows))
        if any(len(row.tokens) and row.tokens[0] == ord("!") for row in rows):
            raise RuntimeError("the device failed")
        return np.array([[len(row.tokens), 1, 2, 3] for row in rows], np.float32)


def expected(count: float) -> np.ndarray:
    vector = np.array([count, 1, 2, 3], np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclasses.dataclass
class Live:
    """A server that runs; requests go over its socket. `events` is the file of `watched`."""

    url: str
    service: Service | None = None
    process: subprocess.Popen | None = None
    events: Path | None = None

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, path: str, body, headers=None, timeout=300):
        """(status, JSON of the answer, headers); `body` is JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request(
            "POST", path, data, {"Content-Type": "application/json"}, headers, timeout
        )

    def get(self, path: str, headers=None):
        return self.request("GET", path, None, {}, headers)

    def request(self, method, path, data, defaults, headers=None, timeout=300):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, data, defaults | (headers or {}))
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return answer.status, content, answer.headers
        finally:
            connection.close()


@contextlib.contextmanager
def in_thread(model=None, fetcher=None, index=None, **settings) -> Iterator[Live]:
    """A server in a thread of this process."""
    service = Service(model or Lengths(), Settings(names=(NAME,), **settings), fetcher, index)
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = threading.Event()
    server = Server(service, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30)
        yield Live(url, service)
    finally:
        server.handle_exit(None, None)
        thread.join(30)
        assert not thread.is_alive()


def write_model(folder: Path) -> Path:
    """A small model that is loaded in float32."""
    checkpoint_files.write(folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"torch_dtype": "float32"}))
    return folder


@contextlib.contextmanager
def in_process(model: Path, *arguments: str, **environment: str) -> Iterator[Live]:
    """A process of `python -m gve_jax.serve`, watched; it is killed in the end."""
    events = model / "events.log"
    command = [sys.executable, "-m", "tests.serving.watched", str(events)]
    command += ["--model", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--served-name", NAME, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=(log := open(model / "server.log", "wb")),
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert (found := re.search(r"at (http://\S+);", line)), Path(log.name).read_text()
        yield Live(found[1], process=process, events=events)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        log.close()


def wait_until(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
