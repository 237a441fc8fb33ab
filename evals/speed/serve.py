"""The server of vectors with many clients, compared with `GVE.encode` on the same items.

Texts, images (PNG) and videos (of several codecs) are encoded by `GVE.encode` in this process, and
by a server process for which `--clients` clients send them as data: URIs, `--per-request` items at
once; in turns, after the vectors are compared. Each way of batching has a server; while one is
measured, the other one is idle. The ratio is of items a second, server over `encode`, by turn.
"""

import base64
import contextlib
import functools
import http.client
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from evals.parity.reference import write_tokenizer
from evals.speed import harness
from evals.speed.isolation import make_clips
from evals.speed.items import draw_text
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.inputs.batch import default_buckets
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.inputs.prompt import Prompt
from gve_jax.media.item import Item
from gve_jax.model.config import ModelConfig, TextConfig, VisionConfig
from gve_jax.model.embedder import init_params

BATCHING = ("request", "merged")
CLOSE = 0.99999  # least cosine of the server's vectors with those of `encode`

OPTIONS = dict(
    kinds=(["text", "image", "video", "mixed"], "kinds of items"),
    items=(96, "items of each kind"),
    clients=(16, "clients at once"),
    per_request=([1, 6], "items of a request"),
    batch_size=(32, "batch size of both"),
    width=(256, "width of the model, a multiple of 256"),
    layers=(4, "layers of tower and decoder each"),
    batching=(list(BATCHING), "ways of batching"),
    repeats=(5, "turns"),
)


def write_model(folder: Path, width: int, layers: int) -> GVE:
    """Writes a model of Qwen2.5-VL's form with random weights in float32, and returns it."""
    text = TextConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        mrope_section=(16, 24, 24),
    )
    vision = VisionConfig(
        depth=layers,
        hidden_size=width,
        intermediate_size=2 * width,
        num_heads=width // 64,
        out_hidden_size=width,
        fullatt_block_indexes=tuple(range(layers - 1, -1, -2))[::-1],
    )
    config = ModelConfig(vision=vision, text=text, dtype="float32")
    write_tokenizer(folder / "tokenizer.json")
    spec = InputSpec(window_side=vision.window_side)
    preprocess = Preprocessor(Prompt(folder / "tokenizer.json", spec.max_length), spec)
    mesh = make_mesh({"data": -1}, jax.devices()[:1])
    model = GVE(config, init_params(config, 0)[1], preprocess, default_buckets(spec), mesh)
    model.save_pretrained(folder / "model")
    return GVE.from_pretrained(folder / "model")


def draw_items(kind: str, count: int) -> list[Item]:
    """Texts of 8 to 300 letters, images of up to 280 pixels, clips of 2 s; or a quarter, a quarter
    and a half texts, shuffled."""
    rng = np.random.default_rng(0)
    clips = make_clips() if kind in ("video", "mixed") else []

    def draw(number: int) -> Item:
        chosen = ("text", "image", "text", "video")[number % 4] if kind == "mixed" else kind
        match chosen:
            case "text":
                return Item(text=draw_text(rng, 8, 300))
            case "image":
                pixels = rng.integers(0, 256, (*rng.integers(112, 281, 2), 3)).astype(np.uint8)
                Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
                return Item(text="what is it?", image=file.getvalue())
            case "video":
                return Item(text="it moves", video=clips[int(rng.integers(len(clips)))])
        raise UserError(f"serve: unknown kind {kind!r}; known: text, image, video, mixed")

    items = [draw(number) for number in range(count)]
    return [items[index] for index in rng.permutation(count)]


def make_bodies(items: Sequence[Item], size: int) -> list[bytes]:
    """The bodies of requests for `size` items each."""

    def value(item: Item) -> dict:
        fields = {"text": item.text}
        for name, kind in (("image", "image/png"), ("video", "video/mp4")):
            if (data := getattr(item, name)) is not None:
                fields[name] = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return fields

    return [
        json.dumps(
            {"input": [value(item) for item in items[at : at + size]], "encoding_format": "base64"}
        ).encode()
        for at in range(0, len(items), size)
    ]


@contextlib.contextmanager
def serving(model: Path, batching: str, batch_size: int) -> Iterator[int]:
    """The port of a server process."""
    command = [sys.executable, "-m", "gve_jax.serve", "--model", str(model), "--port", "0"]
    command += ["--batching", batching, "--batch-size", str(batch_size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        line = process.stdout.readline()
        if (found := re.search(r"at http://[^ ]*:(\d+);", line)) is None:
            raise UserError(f"serve: the server did not start: {line}")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def ask(port: int, bodies: Sequence[bytes], clients: int) -> np.ndarray:
    """The vectors of all bodies, of which each client sends every `clients`-th, float32 [N, D]."""

    def client(number: int) -> list[np.ndarray]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        with contextlib.closing(connection):
            found = []
            for body in bodies[number::clients]:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/embeddings", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise UserError(f"serve: the server answered {answer.status}: {content[:300]}")
                rows = [each["embedding"] for each in json.loads(content)["data"]]
                found.append(np.stack([np.frombuffer(base64.b64decode(x), "<f4") for x in rows]))
            return found

    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(client, range(clients)))
    return np.concatenate([parts[n % clients][n // clients] for n in range(len(bodies))])


def measure(folder: Path, args) -> dict:
    model = write_model(folder, args.width, args.layers)
    result = {}
    with contextlib.ExitStack() as stack:
        ports = {
            name: stack.enter_context(serving(folder / "model", name, args.batch_size))
            for name in args.batching
        }
        for kind in args.kinds:
            items = draw_items(kind, args.items)
            encode = functools.partial(model.encode, items, batch_size=args.batch_size)
            expected, variants = encode(), {"encode": encode}
            for size in args.per_request:
                bodies = make_bodies(items, size)
                for name, port in ports.items():
                    run = functools.partial(ask, port, bodies, args.clients)
                    for _ in range(2):  # compiles, before anything is timed
                        worst = float((run() * expected).sum(axis=-1).min())
                    if worst < CLOSE:
                        raise UserError(f"serve: the vectors differ: smallest cosine {worst}")
                    variants[f"{name}, {size} a request"] = run
            taken = harness.take_turns(variants, args.repeats)
            seconds = {name: values[:, 0] for name, values in taken.items()}
            rates = seconds["encode"] / np.stack(list(seconds.values()))
            result[kind] = {
                name: {
                    "items/s": round(args.items / float(np.median(seconds[name])), 1),
                    "ratio": round(float(np.median(ratios)), 3),
                    "least and largest": [round(float(f(ratios)), 3) for f in (np.min, np.max)],
                }
                for name, ratios in zip(seconds, rates, strict=True)
            }
            print(kind, json.dumps(result[kind]), file=sys.stderr, flush=True)
    return result
