"""A live page over an index of an encoder for tests."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from gve_jax.index import Index
from gve_jax.page.server import make_server
from gve_jax.serving.sockets import bind
from tests.index.fake import make_index, movie
from tests.media.files import numbered


class Answer:
    """Attributes: status, headers with names in lower case, body."""

    def __init__(self, response: http.client.HTTPResponse):
        self.status, self.body = response.status, response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    def json(self):
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json()["error"]["message"]


class Live:
    """A client of a live page.

    Attributes:
      index: that it shows.
      media: folder of the index.
      url, port: of the page.
    """

    def __init__(self, index: Index, media: Path, url: str):
        self.index, self.media, self.url = index, media, url
        self.port = int(url.split(":")[2].split("/")[0])

    def request(self, method: str, path: str, body=None, **headers: str) -> Answer:
        """A request; `_` in the names of headers is `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, given)
            return Answer(connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, value, **headers: str) -> Answer:
        data = value if isinstance(value, bytes) else json.dumps(value)
        headers = {"Content_Type": "application/json"} | headers
        return self.request("POST", path, data, **headers)

    def search(self, **fields) -> list[dict]:
        answer = self.post("/api/search", fields)
        assert answer.status == 200, answer.body
        return answer.json()["data"]


def write_media(root: Path) -> Path:
    """Two videos, an image, an unreadable file and metadata."""
    (root / "cam 1").mkdir(parents=True)
    (root / "cam 1" / "a#1.mp4").write_bytes(movie(0))
    (root / "b.mp4").write_bytes(movie(9, 20))
    (root / "bad.mp4").write_bytes(b"bad")
    Image.fromarray(numbered(8)[5]).save(root / "photo.png")
    (root / "metadata.jsonl").write_text('{"path": "b.mp4", "year": 2020}\n')
    return root


@contextlib.contextmanager
def serving(index: Index, media: Path, host: str = "127.0.0.1", **options) -> Iterator[Live]:
    """The page of an index, in a thread of this process."""
    started, urls = threading.Event(), []

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    listener = bind(host, 0)
    server = make_server(index, listener, host, ready=ready, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(30)
        yield Live(index, media, urls[0])
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def live_page(folder: Path, **options) -> Iterator[Live]:
    media = write_media(folder / "media")
    index = make_index(folder / "index", media)
    index.update()
    with serving(index, media, **options) as live:
        yield live
