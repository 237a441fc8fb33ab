"""A server that speaks the protocol of OpenAI's chat completions and answers for the generated
world, in a model's stead:

    python -m data.uvrd.responder --world DIR [--port 8011] [--latency 0]
    python -m data.uvrd.responder --world DIR --port 0 --run python -m data.uvrd --server {url} ...

It looks at the pictures of a request, finds the scene they are of, and tells of it as the request's
schema asks. Only 127.0.0.1 is served. For tests it can be made to fail (FAULTS).
"""

import argparse
import base64
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
from gve_jax.errors import Parser, run_cli
from gve_jax.storage.filesystem import local_path

MODEL = "shapes"
FAULTS = (
    "down",
    "slow",
    "prose",
    "half",
    "language",
    "refusal",
    "error",
    "busy",
    "echo",
    "schema",
    "huge",
    "denied",
)
_SLOW = 30.0  # seconds
_MOST_BYTES = 64 << 20


class World:
    """Knows the scenes of a folder that `data.uvrd.world` wrote by their pictures."""

    def __init__(self, folder: Path):
        with np.load(folder / world.SCENES, allow_pickle=False) as arrays:
            small = arrays["thumbnails"]
            self.scenes = [world.from_dict(one) for one in json.loads(str(arrays["scenes"]))]
        self._small = small.reshape(*small.shape[:2], -1).astype(np.float32)  # [N, T, D]
        self._squares = (self._small**2).sum(-1)

    def find(self, pictures: Sequence[np.ndarray]) -> tuple[Scene, list[int]]:
        """The scene that fits all of the pictures best, and which frame of it each is."""
        seen = np.stack([_thumbnail(picture) for picture in pictures])  # [K, D]
        products = self._small.reshape(-1, seen.shape[1]) @ seen.T
        products = products.reshape(*self._squares.shape, len(seen))
        distance = self._squares[..., None] - 2 * products  # but for what is equal for all scenes
        scene = int(distance.min(axis=1).sum(axis=-1).argmin())
        return self.scenes[scene], distance[scene].argmin(axis=0).tolist()


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    size = 8 * world.SIDE
    if picture.shape[:2] != (size, size):
        picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))
    return world.thumbnails(picture[None]).reshape(-1).astype(np.float32)


def answer(known: World, name: str, question: str, pictures: list[np.ndarray]) -> dict:
    """What a perfect model would say: the same for the same request."""
    rng = make_rng(zlib.crc32(question.encode()), name, 0)
    scene, frames = known.find(pictures)
    if name == "video_captions":
        return _video(scene, question, rng)
    if name == "frame_captions":
        return _frame(world.visible(scene, frames[0]), rng)
    count = 1
    if name == "clip_query":  # the pictures of the clip come first
        count = int(question.partition("The first ")[2].split()[0])
    # What is under way in the last picture of the reference still counts as what follows.
    last = max(frames[:count])
    phases = (0, 1) if last < PHASE_FRAMES // 2 else (1,)
    try:
        return {"query": captions.what_follows(scene, rng, phases=phases)}
    except ValueError:  # nothing happens any more
        return {"query": captions.what_follows(scene, rng)}


def _video(scene: Scene, question: str, rng: np.random.Generator) -> dict:
    emphasis = question.partition("Emphasis: ")[2].split()
    told = {
        "things,": captions.spatial,
        "what": captions.temporal,
        "theme,": lambda s, r: captions.whole(s, r, long=False),
    }[emphasis[1] if emphasis[0] == "mostly" else emphasis[0]]
    thing = scene.things[int(rng.integers(len(scene.things)))]
    event = thing.events[0] if thing.events else None
    part = captions.event(thing, event, rng) if event else captions.main_object(scene, rng)
    return {
        "summary": told(scene, rng),
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
    """The server, on a free port unless one is given; `with Responder(folder) as server`.

    Args:
      folder: of `data.uvrd.world`.
      latency: seconds that every answer takes.
      fault: by the number of a request, which of FAULTS it meets; "" for none.
      slots: requests that are answered at once; others wait.
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
        self.world, self.latency, self.fault = World(folder), latency, fault
        self.requests: list[dict] = []  # their bodies without pictures, for tests
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

    def number(self, body: dict) -> int:
        with self._lock:
            self.requests.append(body)
            return len(self.requests) - 1


class _Handler(BaseHTTPRequestHandler):
    owner: Responder
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._send(404, {"error": {"message": "no such thing here"}})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if self.path != "/v1/chat/completions" or size > _MOST_BYTES:
            self._send(404, {"error": {"message": "no such thing here"}})
            return
        request = json.loads(self.rfile.read(size))
        parts = request["messages"][-1]["content"]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        question = "".join(part["text"] for part in parts if part["type"] == "text")
        kept = request | {"messages": [request["messages"][0]["content"], question]}
        owner, number = self.owner, self.owner.number(kept)
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
                return self._send(500, {"error": {"message": "out of order"}})
            case "busy":
                return self._send(429, {"error": {"message": "later"}}, {"Retry-After": "3"})
            case "denied":
                return self._send(401, {"error": {"message": "no key"}})
            case "huge":
                return self._say("x" * (2 << 20))
            case "prose":
                return self._say("Here is what I see: a nice video of some shapes.")
            case "refusal":
                return self._say("I'm sorry, but I can't assist with that request.")
            case "echo":  # a model that obeys or repeats whatever it was sent
                return self._say(question)
        name = request["response_format"]["json_schema"]["name"]
        pictures = [
            np.asarray(
                Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
            )
            for url in images
        ]
        said = answer(owner.world, name, question, pictures)
        if fault == "language":
            foreign = "ein roter Kreis bewegt sich und der Stern ist nicht auf dem Grund"
            said = {
                key: [foreign] if isinstance(value, list) else foreign
                for key, value in said.items()
            }
        elif fault == "schema":
            said = {"caption": next(iter(said.values()))}
        text = json.dumps(said)
        if fault == "half":
            return self._say(text[: len(text) // 2], finish="length")
        self._say(text)

    def _say(self, text: str, finish: str = "stop") -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 1000, "completion_tokens": len(text) // 4 + 1}
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
            pass  # the asker is gone


def main(argv=None) -> None:
    parser = Parser(
        prog="python -m data.uvrd.responder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", type=local_path, required=True)
    parser.add_argument("--port", type=int, default=8011, help="8011; 0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of every answer")
    parser.add_argument("--slots", type=int, default=1024, help="answers at once")
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="serve as long as this runs, `{url}` in it being the server's",
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
