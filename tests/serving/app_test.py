"""The application over a real socket, with a stand-in for the model."""

import gc
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gve_jax.serving.errors import RequestError
from tests.serving.servers import NAME, Lengths, expected, in_thread, wait_until
from tests.situations import situation

PATH = "/v1/embeddings"


def test_vectors_usage_and_fingerprint():
    with in_thread() as live:
        status, answer, headers = live.post(PATH, {"model": NAME, "input": ["abc", "abcdefgh"]})
        assert status == 200 and headers["x-gve-fingerprint"] == live.service.fingerprint
        vectors = np.float32([each["embedding"] for each in answer["data"]])
        np.testing.assert_array_equal(vectors, [expected(3), expected(8)])
        assert answer["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
        assert live.get("/info")[1]["fingerprint"] == live.service.fingerprint
        text = live.get("/metrics")[1].decode()
        assert 'gve_requests_total{path="/v1/embeddings",status="200"} 1.0' in text
        assert "gve_inputs_total 2.0" in text and "gve_tokens_total 11.0" in text


@situation(
    "Server",
    "an API key, and a request without it or with another one",
    "401, for everything but /health",
    since="0.3.0",
)
def test_api_key():
    with in_thread(api_key="secret") as live:
        for path in ("/info", "/metrics", "/v1/models", "/nothing"):
            assert live.get(path)[0] == 401
        for key in ("", "Bearer", "Bearer wrong", "Basic secret", "Bearer secret2", "Bearer \xff"):
            status, answer, headers = live.post(PATH, {"input": "a"}, {"Authorization": key})
            assert status == 401 and answer["error"]["code"] == "invalid_api_key"
            assert headers["WWW-Authenticate"] == "Bearer"
        right = {"Authorization": "Bearer secret"}
        assert live.get("/health")[0] == 200
        assert live.post(PATH, {"input": "a"}, right)[0] == 200
        assert live.get("/info", right)[0] == 200
        # Each API has errors of its own.
        assert "detail" in live.post("/v1/multimodalembeddings", {})[1]
        assert "message" in live.post("/v2/embed", {})[1]
        assert live.post("/embed", {})[1]["error_type"] == "Validation"


def test_without_a_key_another_host_is_refused():
    with in_thread() as live:
        for host in (
            "evil.example",
            "evil.example:80",
            "192.168.1.1",
            "",
            "127.0.0.1.evil.example",
        ):
            assert live.post(PATH, {"input": "a"}, {"Host": host})[0] in (400, 403)
        for host in ("localhost", "localhost:80", "127.0.0.1", "[::1]:9", "[::1]"):
            assert live.post(PATH, {"input": "a"}, {"Host": host})[0] == 200
        # A form of a web page can send this without asking.
        assert live.post(PATH, b'{"input": "a"}', {"Content-Type": "text/plain"})[0] == 415


@situation(
    "Server",
    "more requests at once than --max-requests",
    "429 with Retry-After; those that were accepted are answered",
    since="0.3.0",
)
def test_overload_is_429():
    model = Lengths()
    model.gate.clear()
    with in_thread(model, max_requests=3) as live, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(live.post, PATH, {"input": "a" * n}) for n in (1, 2, 3)]
        wait_until(lambda: live.service._requests == 3)
        status, answer, headers = live.post(PATH, {"input": "a"})
        assert status == 429 and headers["Retry-After"] == "1"
        assert answer["error"]["type"] == "rate_limit_error"
        assert live.get("/health")[0] == 200
        model.gate.set()
        assert [each.result()[0] for each in accepted] == [200, 200, 200]
        assert live.post(PATH, {"input": "a"})[0] == 200


def test_bytes_of_waiting_bodies_are_limited():
    model = Lengths()
    model.gate.clear()
    with in_thread(model, max_body=1000) as live, ThreadPoolExecutor(9) as pool:
        sent = [pool.submit(live.post, PATH, {"input": "a" * 950}) for _ in range(9)]
        wait_until(lambda: any(each.done() for each in sent))
        model.gate.set()
        assert sorted(each.result()[0] for each in sent) == [200] * 8 + [429]
        assert live.service._held == 0


@situation("Server", "a request that takes longer than --deadline", "504", since="0.3.0")
def test_deadline_is_504():
    model = Lengths()
    model.gate.clear()
    with in_thread(model, deadline=0.3) as live:
        status, answer, _ = live.post(PATH, {"input": "slow"})
        assert status == 504 and answer["error"]["type"] == "server_error"
        assert live.post(PATH, {"input": "dropped"})[0] == 504  # waits behind the first
        model.gate.set()
        wait_until(lambda: model.batches)
        assert live.post(PATH, {"input": "a"})[0] == 200
        assert len(model.batches) == 2  # the one that nobody waited for was not encoded


def test_a_client_that_went_away_is_dropped():
    model = Lengths()
    model.gate.clear()
    with in_thread(model) as live:
        body = b'{"input": "a"}'
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: live.service._requests == 1)
        wait_until(lambda: live.service._requests == 0)
        model.gate.set()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_not_read(chunked):
    with in_thread(max_body=10_000) as live:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        how = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000000000"
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
            client.sendall(f"{head}{how}\r\n\r\n".encode())
            if chunked:
                client.sendall((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 4)
            assert client.recv(100).startswith(b"HTTP/1.1 413")
        assert live.service._held == 0


def test_a_slow_body_is_408():
    with in_thread(body_seconds=0.5) as live:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
            client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_slow_headers_close_the_connection(monkeypatch):
    monkeypatch.setattr("gve_jax.serving.sockets.IDLE", 0.5)
    with in_thread() as live:
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
            began = time.monotonic()
            try:
                while time.monotonic() - began < 60:
                    client.sendall(b"G")
                    time.sleep(0.1)
            except OSError:
                pass
            assert time.monotonic() - began < 30
        assert live.get("/health")[0] == 200


def test_a_refused_request_leaves_nothing_in_memory():
    bodies = ({"input": "bad"}, {"input": [None]}, {"input": "a", "x": 1}, b"[", {"input": "!"})
    with in_thread(Lengths()) as live:
        gc.collect()
        gc.disable()  # only what nothing refers to is freed
        try:
            for body in bodies:
                assert live.post(PATH, body)[0] in (400, 500)
            wait_until(lambda: not any(type(each) is RequestError for each in gc.get_objects()))
        finally:
            gc.enable()


def test_items_that_cannot_be_read_name_their_index():
    with in_thread() as live:
        status, answer, _ = live.post(PATH, {"input": ["a", "bad news"]})
        assert status == 400 and answer["error"]["message"] == "input 1: bad news: bad"


@pytest.mark.parametrize("merge", [False, True])
def test_a_failing_model_fails_its_request_alone(merge, capfd):
    model = Lengths()
    model.gate.clear()
    with in_thread(model, merge=merge) as live, ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(live.post, PATH, {"input": text}) for text in ("a", "!", "b", "c")]
        wait_until(lambda: live.service._requests == 4)
        model.gate.set()
        statuses = [each.result()[0] for each in sent]
        assert statuses == [200, 500, 200, 200]
        assert live.post(PATH, {"input": "a"})[0] == 200
    assert "the device failed" in capfd.readouterr().err


def test_waiting_requests_are_merged_only_when_asked():
    for merge in (False, True):
        model = Lengths()
        with in_thread(model, merge=merge) as live, ThreadPoolExecutor(8) as pool:
            model.gate.clear()
            first = pool.submit(live.post, PATH, {"input": "first"})
            wait_until(lambda: live.service._requests == 1)
            time.sleep(0.2)
            texts = ["x" * n for n in range(1, 7)]
            sent = [pool.submit(live.post, PATH, {"input": text}) for text in texts]
            wait_until(lambda: live.service.batcher._ready.qsize() == 6)
            model.gate.set()
            assert first.result()[0] == 200
            for text, each in zip(texts, sent, strict=True):
                vector = np.float32(each.result()[1]["data"][0]["embedding"])
                np.testing.assert_array_equal(vector, expected(len(text)))
        assert model.batches == ([1, 6] if merge else [1] * 7)


def test_a_stopping_server_answers_what_it_accepted():
    model = Lengths()
    model.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        with in_thread(model) as live:
            accepted = pool.submit(live.post, PATH, {"input": "abc"})
            wait_until(lambda: live.service._requests == 1)
            threading.Timer(0.5, model.gate.set).start()
        assert accepted.result()[0] == 200
        with pytest.raises(OSError):
            live.get("/health")


def test_limits_of_a_request():
    with in_thread(max_inputs=3, max_media=2) as live:
        status, answer, _ = live.post(PATH, {"input": ["a"] * 4})
        assert status == 400 and "at most 3" in answer["error"]["message"]
        image = {"image": "data:image/png;base64,AAAA"}
        status, answer, _ = live.post(PATH, {"input": [image] * 3})
        assert status == 400 and "at most 2 media" in answer["error"]["message"]


def test_paths_and_methods():
    with in_thread() as live:
        assert live.get("/")[0] == 404 and live.get(PATH)[0] == 405
        assert live.get("/v1/models")[1]["data"][0]["id"] == NAME
