"""Hostile requests: each gets a clean 4xx, the server lives, and its memory does not grow."""

import base64
import io
import json
import random
import re
import socket
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.files import clip
from tests.serving.servers import NAME, Live, wait_until

PATHS = ("/v1/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/embed")
LINK_LOCAL = "http://169.254.169.254/latest/meta-data/iam"


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that states side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + crc

    header = side.to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(bytes(100_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def noise(rng: random.Random) -> bytes:
    """A picture or a video that is damaged."""
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image, "PNG")
    data = bytearray(rng.choice((image.getvalue(), clip(8))))
    start = rng.randrange(8)
    del data[start + rng.randrange(1, len(data) // 2) :]
    for _ in range(20):
        data[rng.randrange(len(data))] = rng.randrange(256)
    data[:4] = rng.randbytes(4)
    return bytes(data)


WRONG = (None, 0, -1, 1e308, True, "", [], {}, [[]], [None], {"a": 1}, [[[["x"]]]], [1, "a"], 2**70)


def wrong_types(rng: random.Random):
    name = rng.choice(("input", "messages", "inputs", "texts", "images"))
    body = {name: rng.choice(WRONG)}
    if rng.random() < 0.5:
        body = {"input": "a", rng.choice(("dimensions", "encoding_format", "model")): [1]}
    return body


def nested(rng: random.Random):
    depth = rng.choice((33, 1000, 100_000))
    return rng.choice(
        (
            b'{"input":' + b"[" * depth + b"]" * depth + b"}",
            b'{"input":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}",
            b"[" * depth,
        )
    )


def bad_json(rng: random.Random):
    good = json.dumps({"input": "a", "model": NAME}).encode()
    return rng.choice(
        (
            b"",
            b"\0" * 100,
            good[: rng.randrange(1, len(good) - 1)],
            b'{"input": NaN}',
            b'{"input": "a", "dimensions": Infinity}',
            b'{"input": "\xff\xfe"}',
            b'{"input": "' + b'\\"' * 100_000,
            b'{"input": ' + b"9" * 10_000 + b"}",
            b'{"input":[' + b"[]," * 600_000 + b"[]]}",
            json.dumps({"input": "a"}).encode("utf-16"),
            rng.randbytes(1000),
        )
    )


def bad_media(rng: random.Random):
    uri = rng.choice(
        (
            "data:image/png;base64,@@@@",
            "data:image/png;base64,AAAAA",
            "data:image/png,plain",
            "data:",
            "data:;base64,",
            "data:image/png;base64," + "A" * 400_000,
            data_uri(bomb(60_000)),
            data_uri(bomb(2**31 - 1)),
            data_uri(noise(rng)),
            "data:video/jpeg;base64," + "AAAA," * 1_000_000,  # frames of vLLM's form
            "data:video/jpeg;base64," + "AAAA," * 8,
        )
    )
    return media(rng, uri)


def media(rng: random.Random, uri: str) -> dict:
    kind = "video" if uri.startswith("data:video") else rng.choice(("image", "video"))
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": uri}}
    return rng.choice(
        (
            {"messages": [{"role": "user", "content": [part]}]},
            {"input": [{kind: uri}]},
            {"input": ["a", {kind: uri, "text": "b"}]},
        )
    )


def bad_uris(rng: random.Random):
    return media(
        rng,
        rng.choice(
            (
                LINK_LOCAL,
                "http://127.0.0.1:22/",
                "http://localhost/",
                "http://[::1]/",
                "http://[fe80::1]/",
                "http://[::ffff:169.254.169.254]/",
                "http://2852039166/",
                "http://0x7f000001/",
                "http://10.0.0.1/a.mp4",
                "https://192.168.0.1/a.png",
                "http://u:p@127.0.0.1/",
                "http://127.0.0.1\r\nHost: x/",
                "ftp://127.0.0.1/",
                "gopher://127.0.0.1:70/_x",
                "file:///etc/passwd",
                "file:///proc/self/environ",
                "file:///dev/zero",
                "file://localhost/../../etc/passwd",
                "file:///%2e%2e/%2e%2e/etc/passwd",
                "file:///a%00.mp4",
                "file:///a\0.mp4",
                "/etc/passwd",
                "../../etc/passwd",
                "\ud800",
                "x" * 100_000,
            )
        ),
    )


def bad_options(rng: random.Random):
    key = rng.choice(("num_frames", "max_frames", "fps", "min_pixels", "max_pixels", "video_start"))
    value = rng.choice((10**6, -1, 0.5, "2", 10**400, True, [1], -0.0 if key == "fps" else -2))
    uri = data_uri(b"no video", "video/mp4")
    return {"input": [{"video": uri, key: value}]}


def bad_texts(rng: random.Random):
    return rng.choice(
        (
            {"input": "\ud800"},
            {"input": ["ok", "   "]},
            {"input": "a", "instruction": "x" * 100_000},
            {"input": "a", "instruction": "\udfff"},
            {"input": "a", "prompt_name": "../../x"},
            {"input": "a", "model": "\0"},
            {"input": "a", "model": "x" * 10**6},
            {"input": "a", "x" * 10**6: 1},
            {"input": ["a"] * 3000},
            {"input": [1, 2, 3]},
            {"input": [[2**70]]},
            {"input": [10**6] * 100_000},
        )
    )


BODIES: tuple[Callable, ...] = (
    wrong_types,
    nested,
    bad_json,
    bad_media,
    bad_uris,
    bad_options,
    bad_texts,
)


def raw(port: int, data: bytes, wait: float = 120) -> bytes:
    """The first line that a server answers to bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as client:
        try:
            client.sendall(data)
        except OSError:
            pass  # refused before everything was sent
        return client.recv(1000).split(b"\r\n")[0]


def raw_request(rng: random.Random) -> bytes:
    path = rng.choice(PATHS)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    return rng.choice(
        (
            head + b"Content-Length: 99999999999\r\n\r\n",
            head + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n{",
            head + b"Content-Length: -1\r\n\r\n",
            head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
            head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            head + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
            head + b"X\0: a\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
            b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"DELETE /embed HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50 + b"\r\n\r\n",
            rng.randbytes(50) + b"\r\n\r\n",
        )
    )


def attack(live: Live, number: int) -> str | None:
    """One hostile request by its number; what is wrong with the answer."""
    rng = random.Random(number)
    if rng.random() < 0.15:
        request = raw_request(rng)
        line = raw(live.port, request)
        return None if re.match(rb"HTTP/1.1 4\d\d ", line) else f"{request[:200]!r}: {line!r}"
    path = rng.choice(PATHS) if rng.random() < 0.3 else PATHS[0]
    body = rng.choice(BODIES)(rng)
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    status, answer, _ = live.post(path, body, timeout=300)
    error = answer["error"] if path == PATHS[0] and isinstance(answer, dict) else {"message": "x"}
    clean = 400 <= status < 500 and error["message"] and len(json.dumps(answer)) < 8000
    return None if clean else f"{path} {body[:200]!r}: {status} {str(answer)[:500]}"


def memory(live: Live) -> int:
    status = Path(f"/proc/{live.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def run(live: Live, numbers: range) -> None:
    """Sends hostile requests by their numbers: each is refused, and opens no connection."""
    before = live.events.read_text().splitlines()
    assert any(line.startswith("socket.bind") for line in before)  # the record works
    with ThreadPoolExecutor(4) as pool:
        wrong = [each for each in pool.map(lambda n: attack(live, n), numbers) if each]
    assert not wrong, "\n".join(wrong)
    assert live.post("/v1/embeddings", {"input": "a"})[0] == 200
    assert live.process.poll() is None
    connections = live.events.read_text().splitlines()[len(before) :]
    assert not connections, "\n".join(connections)


def test_a_hundred_hostile_requests(server):
    run(server, range(100))


@pytest.mark.slow
def test_a_thousand_hostile_requests_do_not_accumulate_memory(server):
    run(server, range(100, 1100))  # libraries load, the allocator settles
    found = [memory(server)]
    for start in range(1100, 2100, 250):
        run(server, range(start, start + 250))
        found.append(memory(server))
    assert found[-1] < 1.01 * found[0], found


@pytest.mark.slow
def test_slow_bodies_hold_nobody_up(server):
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        for client in clients:
            client.sendall(head + b"Content-Length: 100000\r\n\r\n{")
        began = time.monotonic()
        assert server.post("/v1/embeddings", {"input": "a"})[0] == 200
        assert time.monotonic() - began < 20
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: server.get("/metrics")[1].find(b"gve_requests_in_progress 0.0") > 0)
