"""The server's process: vectors to the byte, signals, mistakes of the command line."""

import base64
import io
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

from gve_jax import GVE
from gve_jax.distributed.sharding import make_mesh
from gve_jax.errors import UserError
from gve_jax.serve import main
from tests.media.files import clip
from tests.serving.servers import NAME, in_process
from tests.situations import situation

PATH = "/v1/embeddings"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def model(tiny_model):
    return GVE.from_pretrained(tiny_model, mesh=make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def requests():
    """(inputs of a request, the same for `GVE.encode`)."""
    video = clip(8)
    words = "red green blue ball square left right".split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=n)) for n in rng.integers(1, 30, size=8)]
    found = [([text], [text]) for text in texts]
    found += [(texts, texts)]
    found += [([{"image": uri(png(n), "image/png")}], [{"image": png(n)}]) for n in range(2)]
    found += [
        (
            [{"video": uri(video, "video/mp4"), "text": "then"}, texts[0]],
            [{"video": video, "text": "then"}, texts[0]],
        )
    ]
    return found


def ask(server, inputs) -> np.ndarray:
    body = {"model": NAME, "input": inputs, "encoding_format": "base64"}
    status, answer, _ = server.post(PATH, body, timeout=300)
    assert status == 200, answer
    data = [base64.b64decode(each["embedding"]) for each in answer["data"]]
    return np.stack([np.frombuffer(each, "<f4") for each in data])


@situation(
    "Server",
    "the same inputs over HTTP and in GVE.encode, with 1 to 64 clients at once",
    "the same vectors, to the byte",
    since="0.3.0",
)
@pytest.mark.parametrize("clients", [1, 4, 64])
def test_vectors_equal_encode_to_the_byte(server, model, requests, clients):
    expected = [model.encode(inputs) for _, inputs in requests]
    order = list(range(len(requests))) * (1 if clients == 1 else 5)
    np.random.default_rng(clients).shuffle(order)
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda n: ask(server, requests[n][0]), order))
    for n, answer in zip(order, answers, strict=True):
        np.testing.assert_array_equal(answer, expected[n])


def test_an_instruction_is_that_of_encode(server, model):
    body = {"input": ["a cat"], "instruction": "Find the clip."}
    answer = server.post(PATH, body)[1]["data"][0]["embedding"]
    np.testing.assert_array_equal(
        np.float32(answer), model.encode("a cat", prompt="Find the clip.")
    )
    messages = [
        {"role": "system", "content": "Find the clip."},
        {"role": "user", "content": [{"type": "text", "text": "a cat"}]},
    ]
    again = server.post(PATH, {"messages": messages})[1]["data"][0]["embedding"]
    assert again == answer
    other = server.post(PATH, {"input": ["a cat"], "input_type": "document"})[1]
    assert other["data"][0]["embedding"] != answer


def test_files_below_the_root(server, model):
    (server.media / "a.mp4").write_bytes(clip(8))
    status, answer, _ = server.post(PATH, {"input": {"video": f"file://{server.media}/a.mp4"}})
    assert status == 200, answer
    expected = model.encode([{"video": clip(8)}])
    np.testing.assert_array_equal(np.float32([answer["data"][0]["embedding"]]), expected)
    inputs = [{"video": uri(b"x" * 100, "video/mp4")}]
    status, answer, _ = server.post(PATH, {"input": inputs})
    assert status == 400 and answer["error"]["message"].startswith("input 0: ")


@pytest.mark.slow
def test_merged_batches_an_api_key_and_sigterm(tiny_model, model, requests):
    options = ("--batching", "merged", "--max-requests", "100")
    with in_process(tiny_model, *options, GVE_API_KEY="secret") as live:
        key = {"Authorization": "Bearer secret"}
        assert live.post(PATH, {"input": "a"})[0] == 401

        def one(n: int) -> np.ndarray:
            status, answer, _ = live.post(PATH, {"input": requests[n][0]}, key, timeout=300)
            assert status == 200
            return np.float32([each["embedding"] for each in answer["data"]])

        order = list(range(len(requests))) * 4
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(one, order))
            for n, answer in zip(order, answers, strict=True):
                cosines = np.sum(answer * model.encode(requests[n][1]), axis=1)
                assert cosines.min() > 1 - 1e-6
            sent = [pool.submit(one, 8) for _ in range(20)]
            sent[0].result()
            live.process.send_signal(signal.SIGTERM)
            done = [each.exception() for each in sent]
        # What was accepted is answered; the others find no server.
        assert all(error is None or isinstance(error, OSError) for error in done)
        assert live.process.wait(30) == 0
        assert "stopped" in live.process.stdout.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--host 0.0.0.0",
            "can be reached from other machines and needs an API key",
        ),
        ("--port 70000", "--port must be in 0..65535"),
        ("--max-requests 0", "--max-requests must be above 0"),
        ("--deadline nan", "--deadline must be above 0"),
        ("--media-root /nowhere/at/all", "no such folder"),
        ("--batching some", "invalid choice"),
        ("--host 192.0.2.1 --api-key k", "cannot listen on 192.0.2.1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch):
    monkeypatch.delenv("GVE_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        main(["--model", "none", *arguments.split()])


def test_missing_packages_are_named(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("gve_jax.serving.", "uvicorn")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"needs uvicorn.*pip install -e '\.\[serve\]'"):
        main(["--model", "none"])
