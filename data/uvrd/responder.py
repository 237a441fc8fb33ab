"""A server with OpenAI's chat completions protocol that describes videos of the generated world in
place of a model:

    python -m data.uvrd.responder --world DIR [--port 8011] [--latency 0]
    python -m data.uvrd.responder --world DIR --port 0 --run python -m data.uvrd --server {url} ...

It finds the scene that the images of a request show and describes it in the request's schema. It
listens on 127.0.0.1 only. For tests it can be made to fail (FAULTS).
"""

import argparse
import base64
import contextlib
import io
import json
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from data.shapes import captions
from data.shapes.scene import PHASE_FRAMES, Scene, make_rng
from data.uvrd import world
from gve_jax.cli import Parser, run_cli
from gve_jax.storage.filesystem import local_path

MODEL = "shapes"
FAULTS = tuple(
    "down slow prose half language refusal error busy echo schema huge malformed denied".split()
)
_SLOW = 30.0  # seconds
_MOST_BYTES = 64 << 20


class SceneIndex:
    """Finds the scenes of a folder of `data.uvrd.world` by their frames."""

    def __init__(self, folder: Path):
        with np.load(folder / world.SCENES, allow_pickle=False) as arrays:
            small = arrays["thumbnails"]
            self.scenes = [world.from_dict(one) for one in json.loads(str(arrays["scenes"]))]
        self._small = small.reshape(*small.shape[:2], -1).astype(np.float32)  # [N, T, D]
        self._squares = (self._small**2).sum(-1)

    def find(self, images: Sequence[np.ndarray]) -> tuple[Scene, list[int]]:
        """The scene closest to all images, and the index of each image's closest frame."""
        queries = np.stack([_thumbnail(image) for image in images])  # [N, D]
        products = self._small.reshape(-1, queries.shape[1]) @ queries.T
        products = products.reshape(*self._squares.shape, len(queries))
        distance = self._squares[..., None] - 2 * products  # up to a constant of each image
        scene = int(distance.min(axis=1).sum(axis=-1).argmin())
        return self.scenes[scene], distance[scene].argmin(axis=0).tolist()


def _thumbnail(image: np.ndarray) -> np.ndarray:
    size = 8 * world.SIDE
    if image.shape[:2] != (size, size):
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    return world.thumbnails(image[None]).reshape(-1).astype(np.float32)


def answer(index: SceneIndex, name: str, question: str, images: list[np.ndarray]) -> dict:
    """A perfect model's answer; deterministic."""
    rng = make_rng(zlib.crc32(question.encode()), name, 0)
    scene, frames = index.find(images)
    if name == "video_captions":
        return _video(scene, question, rng)
    if name == "frame_captions":
        return _frame(world.visible(scene, frames[0]), rng)
    count = 1
    if name == "clip_query":  # the images of the clip come first
        count = int(question.partition("The first ")[2].split()[0])
    # An event that is under way in the last reference image still counts as following.
    last = max(frames[:count])
    phases = (0, 1) if last < PHASE_FRAMES // 2 else (1,)
    try:
        return {"query": captions.what_follows(scene, rng, phases=phases)}
    except ValueError:  # no event follows
        return {"query": captions.what_follows(scene, rng)}


def _video(scene: Scene, question: str, rng: np.random.Generator) -> dict:
    emphasis = question.partition("Emphasis: ")[2].split()
    summarize = {
        "things,": captions.spatial,
        "what": captions.temporal,
        "theme,": lambda s, r: captions.whole(s, r, long=False),
    }[emphasis[1] if emphasis[0] == "mostly" else emphasis[0]]
    thing = scene.things[int(rng.integers(len(scene.things)))]
    event = thing.events[0] if thing.events else None
    part = captions.event(thing, event, rng) if event else captions.main_object(scene, rng)
    return {
        "summary": summarize(scene, rng),
        "spatio_temporal": captions.detailed(scene, rng),
        "abstract": captions.theme(scene, rng),
        "keywords": captions.keyword_list(scene),
        "partial": part,
    }


def _frame(scene: Scene, rng: np.random.Generator) -> dict:
    if not scene.things:
        ground = f"a {scene.background} background with no objects."
        return {
            "summary": ground,
            "spatio_temporal": f"there are no objects on {ground}",
            "abstract": ground,
            "keywords": [f"{scene.background} background", "no objects"],
            "partial": ground,
        }
    thing = scene.things[int(rng.integers(len(scene.things)))]
    return {
        "summary": captions.spatial(scene, rng),
        "spatio_temporal": captions.detailed(scene, rng),
        "abstract": captions.theme(scene, rng),
        "keywords": captions.keyword_list(scene),
        "partial": f"{captions.a(captions.full_name(thing))} is in the {thing.place}.",
    }


class Responder:
    """The server; `with Responder(folder) as server`.

    Args:
      folder: written by `data.uvrd.world`.
      port: 0 for a free one.
      latency: seconds that every answer takes.
      fault: returns one of FAULTS for the number of a request; "" for none.
      slots: requests answered concurrently; others wait.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        latency: float = 0.0,
        fault: Callable[[int], str] = lambda number: "",
        slots: int = 1024,
    ):
        self.scenes, self.latency, self.fault = SceneIndex(folder), latency, fault
        self.requests: list[dict] = []  # bodies without images, for tests
        self.authorizations: set[str | None] = set()  # headers of the requests
        self.counts: Counter = Counter()
        self._lock, self.slots = threading.Lock(), threading.Semaphore(slots)
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "Responder":
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.05)

    def record(self, body: dict) -> int:
        """Stores a request; returns its number."""
        with self._lock:
            self.requests.append(body)
            return len(self.requests) - 1


class _Handler(BaseHTTPRequestHandler):
    owner: Responder
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def log_message(self, *arguments) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # the client did not read the response
            super().handle()

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._send(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if self.path != "/v1/chat/completions" or size > _MOST_BYTES:
            self._send(404, {"error": {"message": "not found"}})
            return
        request = json.loads(self.rfile.read(size))
        self.owner.authorizations.add(self.headers.get("Authorization"))
        parts = request["messages"][-1]["content"]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        question = "".join(part["text"] for part in parts if part["type"] == "text")
        stored = request | {"messages": [request["messages"][0]["content"], question]}
        owner, number = self.owner, self.owner.record(stored)
        fault = owner.fault(number)
        owner.counts[fault or "good"] += 1
        with owner.slots:
            if owner.latency:
                time.sleep(owner.latency)
            self._answer(fault, request, question, images)

    def _answer(self, fault: str, request: dict, question: str, images: list[str]) -> None:
        owner = self.owner
        match fault:
            case "down":
                self.close_connection = True
                self.connection.close()
                return
            case "slow":
                owner.closing.wait(_SLOW)
                self.close_connection = True
                return
            case "error":
                return self._send(500, {"error": {"message": "internal error"}})
            case "busy":
                return self._send(
                    429, {"error": {"message": "try again later"}}, {"Retry-After": "3"}
                )
            case "denied":
                return self._send(401, {"error": {"message": "no key"}})
            case "malformed":
                return self._say(7)
            case "huge":
                return self._say("x" * (2 << 20))
            case "prose":
                return self._say("Here is what I see: a nice video of some shapes.")
            case "refusal":
                return self._say("I'm sorry, but I can't assist with that request.")
            case "echo":  # a model that repeats whatever it was sent
                return self._say(question)
        name = request["response_format"]["json_schema"]["name"]
        # Not in a sandbox: only this machine reaches the stand-in, and data.uvrd has just written
        # each image itself.
        pixels = [
            np.asarray(
                Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
            )
            for url in images
        ]
        value = answer(owner.scenes, name, question, pixels)
        if fault == "language":
            foreign = "ein roter Kreis bewegt sich und der Stern ist nicht auf dem Grund"
            value = {
                key: [foreign] if isinstance(text, list) else foreign for key, text in value.items()
            }
        elif fault == "schema":
            value = {"caption": next(iter(value.values()))}
        text = json.dumps(value)
        if fault == "half":
            return self._say(text[: len(text) // 2], finish="length")
        self._say(text)

    def _say(self, text: str, finish: str = "stop") -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 1000, "completion_tokens": len(str(text)) // 4 + 1}
        self._send(
            200, {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
        )

    def _send(self, status: int, value: dict, headers: dict | None = None) -> None:
        data = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client has disconnected


def main(argv=None) -> None:
    parser = Parser("python -m data.uvrd.responder", __doc__)
    parser.add_argument(
        "--world", type=local_path, required=True, help="folder written by data.uvrd.world"
    )
    parser.add_argument(
        "--port", type=int, default=8011, help="port; 0 for a free one (default: 8011)"
    )
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds that each answer takes (default: 0)"
    )
    parser.add_argument(
        "--slots", type=int, default=1024, help="concurrent answers (default: 1024)"
    )
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="command to serve; {url} in it is replaced by the server's URL",
    )
    args = parser.parse_args(argv)
    server = Responder(args.world, port=args.port, latency=args.latency, slots=args.slots)
    if args.run:
        with server:
            command = [part.replace("{url}", server.url) for part in args.run]
            sys.exit(subprocess.run(command, check=False).returncode)
    print(f"model {MODEL!r} at {server.url}", flush=True)
    server.serve()


if __name__ == "__main__":
    run_cli(main)
