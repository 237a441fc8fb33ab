"""Downloads: which addresses are public, redirects, limits. Servers are on the loopback."""

import contextlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gve_jax.serving.errors import RequestError
from gve_jax.serving.fetch import Fetcher, is_public

LINK_LOCAL = "http://169.254.169.254/latest/meta-data/"


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 127.0.0.1 127.8.9.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1
    192.0.2.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fc00::1
    ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:0:1::1
    2001:db8::1 localhost nonsense""".split(),
)
def test_other_addresses(address):
    assert not is_public(address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        name = self.path.partition("?")[0][1:]
        if name == "good":
            self._send(200, b"content")
        elif name == "large":
            self._send(200, b"x" * 2000)
        elif name == "stream":
            self._send(200, None)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        elif name == "slow":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.stopped.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()
        elif name == "short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x")
            self.close_connection = True
        elif name == "zipped":
            self._send(200, b"x", ("Content-Encoding", "gzip"))
        elif name == "loop":
            self._send(302, b"", ("Location", "/loop"))
        elif name == "relative":
            self._send(307, b"", ("Location", "good"))
        elif name == "away":
            self._send(302, b"", ("Location", self.path.partition("?")[2]))
        else:
            self._send(404, b"")

    def _send(self, status, body, *headers):
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        if body is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.stopped = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def tried():
    return []


@pytest.fixture
def fetcher(tried):
    def permits(address: str) -> bool:
        tried.append(address)
        return address == "127.0.0.1"

    fetcher = Fetcher(1000, 1.5, permits)
    yield fetcher
    fetcher.close()


def refused(fetcher, url: str) -> str:
    with pytest.raises(RequestError) as error:
        fetcher.fetch(url)
    assert error.value.status == 400
    return error.value.message


def test_content_and_redirects(fetcher, web):
    assert fetcher.fetch(f"{web.url}/good?a=1") == b"content"
    assert fetcher.fetch(f"{web.url}/relative") == b"content"
    path, headers = web.asked[0]
    assert path == "/good?a=1" and headers["Host"] == web.url.removeprefix("http://")
    assert "Authorization" not in headers and "Cookie" not in headers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("large", "larger than 1,000 bytes"),
        ("stream", "larger than 1,000 bytes"),
        ("short", "failed|ended early"),
        ("zipped", "compressed"),
        ("loop", "more than 5 redirects"),
        ("missing", "status 404"),
        ("away?", "must be http: or https:|redirects"),
        ("away?file:///etc/passwd", "must be http: or https:"),
        ("away?ftp://127.0.0.1/", "must be http: or https:"),
        (f"away?{LINK_LOCAL}", "not an address of the public internet"),
        ("away?http://[::1]/", "not an address of the public internet"),
        ("away?http://u:p@127.0.0.1/", "user name"),
    ],
)
def test_other_answers_are_refused(fetcher, web, name, message):

    assert re.search(message, refused(fetcher, f"{web.url}/{name}"))


def test_an_address_is_connected_to_only_after_its_check(fetcher, web, tried):
    refused(fetcher, f"{web.url}/away?{LINK_LOCAL}")
    assert tried == ["127.0.0.1", "169.254.169.254"] and len(web.asked) == 1


def test_one_byte_at_a_time_ends_at_the_deadline(fetcher, web):
    began = time.monotonic()
    assert "not downloaded in 1.5 seconds" in refused(fetcher, f"{web.url}/slow")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
        "http://localhost/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest",
        "https://10.0.0.1/",
        "http:///path",
        "http://a b/",
        "http://host:99999/",
        "http://[::1/",
        "http://exa\x00mple/",
        "http://" + "a" * 3000,
        "http://u@8.8.8.8/",
    ],
)
def test_by_default_only_public_addresses(url):
    fetcher = Fetcher(1000, 5)
    refused(fetcher, url)
    fetcher.close()
