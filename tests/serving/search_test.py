"""POST /search: its hits are those of the index, whatever form the query has."""

import base64
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.serve import main
from tests.index.fake import SANDBOX, SPEC, Model, make_index, movie
from tests.page.pages import write_media
from tests.serving.servers import Lengths, Live, in_thread

VIDEO = "cam 1/a#1.mp4"


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Encoder(Lengths):
    """The encoder of `tests.index.fake`, with what a server needs."""

    embedding_dim = Model.embedding_dim

    def __init__(self):
        super().__init__()
        self._model, self.prompts = Model(), {}
        self.fingerprint, self.preprocess.spec = self._model.fingerprint, SPEC

    def encode_query(self, items, prompt=None, prompt_name=None):
        return self._model.encode_query(items, prompt or self.prompts.get("query"))

    def prepare(self, item, prompt=None):
        vector = self._model.encode_query([item], prompt)[0]
        return SimpleNamespace(tokens=[1, 2, 3], vector=vector)

    def encode_rows(self, rows, batch_size=32):
        return np.stack([2 * row.vector for row in rows])


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A server of an index with two videos, an image and a file that cannot be read."""
    folder = tmp_path_factory.mktemp("search")
    media = write_media(folder / "media")
    make_index(folder / "idx", media).update()
    encoder = Encoder()
    index = Index.open(folder / "idx", encoder, sandbox=SANDBOX)
    with in_thread(encoder, index=index, media_root=media) as live:
        yield live


def search(live: Live, **body) -> list[dict]:
    status, answer, headers = live.post("/search", body)
    assert status == 200, answer
    assert headers["x-gve-fingerprint"] == live.service.fingerprint
    return answer["data"]


def expected(live: Live, query, **options) -> list[dict]:
    return [hit.to_json() for hit in live.service.searcher.index.search(query, **options)]


def test_hits_of_each_form_of_a_query_are_those_of_the_index(live):
    index = live.service.searcher.index
    text = expected(live, "a dog", k=5)
    assert search(live, text="a dog", k=5) == text
    assert search(live, input="a dog", k=5) == text
    messages = [{"role": "user", "content": [{"type": "text", "text": "a dog"}]}]
    assert search(live, messages=messages, k=5) == text
    picture = (index.media_folder / "photo.png").read_bytes()
    found = search(live, input={"image": data_uri(picture, "image/png")}, k=5)
    assert found == search(live, path="photo.png", k=5)
    assert found[0]["path"] == "photo.png" and found[0]["score"] == pytest.approx(1, abs=1e-5)
    span = search(live, path=VIDEO, start_sec=1, end_sec=3)
    assert (span[0]["path"], span[0]["best_start_sec"]) == (VIDEO, 1)
    assert span[0]["score"] == pytest.approx(1, abs=1e-5)
    uri = (index.media_folder / VIDEO).as_uri()
    assert search(live, input={"video": uri, "video_start": 1, "video_end": 3}) == span
    live.service.model.prompts["query"] = "Find it."
    try:
        prompted = search(live, text="a dog", k=5)
    finally:
        live.service.model.prompts.clear()
    assert prompted == expected(live, "a dog", k=5, prompt="Find it.") != text


def test_options_are_those_of_the_page(live):
    assert search(live, text="a", filters={"kind": "image"})[0]["path"] == "photo.png"
    assert search(live, text="a", filters={"path": "none/*"}) == []
    grouped = search(live, text="a", group_by="video")
    assert sorted(hit["path"] for hit in grouped) == ["b.mp4", VIDEO, "photo.png"]
    info = live.get("/info")[1]
    assert info["index"] | {"version": 0} == {
        "name": "idx", "media": "media", "files": 3, "moments": len(live.service.searcher.index),
        "unreadable": 1, "version": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "body, message",
    [
        ({}, "nothing to search for"),
        ({"text": "  "}, "nothing to embed"),
        ({"text": ["a"]}, "text must be a string"),
        ({"text": "a", "k": 10**6}, "k must be in"),
        ({"text": "a", "input": "b"}, "'text' does not go with input"),
        ({"input": "a", "messages": []}, "one of input and messages"),
        ({"input": ["a", "b"]}, "one input, not 2"),
        ({"input": {"image": "http://127.0.0.1/"}}, "accepts URIs of"),
        ({"input": {"video": data_uri(b"no video", "video/mp4")}}, "the query"),
        ({"path": "../../etc/passwd"}, "has no file"),
        ({"upload": "x"}, "upload is of the page"),
        ({"text": "a", "filters": {"where": ["=="]}}, "must be KEY=VALUE"),
        ({"text": "a", "filters": {"owner": "x"}}, "unknown field"),
        ({"text": "\ud800"}, ""),
    ],
)
def test_a_malformed_search_is_400(live, body, message):
    status, answer, _ = live.post("/search", body)
    assert status == 400 and message in answer["error"]["message"], answer


def test_searches_at_once_are_those_alone(live):
    texts = [f"query {n}" for n in range(8)]
    alone = [search(live, text=text, k=3) for text in texts]
    found = [None] * len(texts)

    def ask(number: int) -> None:
        found[number] = search(live, text=texts[number], k=3)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_without_an_index_a_search_is_404():
    with in_thread() as live:
        status, answer, _ = live.post("/search", {"text": "a"})
        assert status == 404 and "--index" in answer["error"]["message"]
        assert live.get("/info")[1]["index"] is None


def test_the_index_of_another_model_is_refused_in_one_line(tiny_model, tmp_path, capsys):
    media = tmp_path / "media"
    media.mkdir()
    (media / "a.mp4").write_bytes(movie(0, 20))
    make_index(tmp_path / "idx", media).update()
    arguments = ["--model", str(tiny_model), "--port", "0", "--workers", "1", "--index"]
    with pytest.raises(UserError, match="fingerprint of the model") as refused:
        main([*arguments, str(tmp_path / "idx")])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="none"):
        main([*arguments, str(tmp_path / "none")])
