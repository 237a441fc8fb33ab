"""POST /search: its hits are those of the index, whatever form the query has."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra serve")

from gve_jax.gve import GVE
from gve_jax.index import Index
from gve_jax.serve import main
from gve_jax.serving.server import Server
from gve_jax.serving.service import Service, Settings
from gve_jax.serving.sockets import bind
from tests.index.fake import FIXED, movie
from tests.media.files import numbered
from tests.serving.servers import NAME, Live, in_thread


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def live(tiny_model, tmp_path_factory):
    """A server in a thread, of an index with two videos and an image."""
    folder = tmp_path_factory.mktemp("search")
    media = folder / "media"
    media.mkdir()
    (media / "a.mp4").write_bytes(movie(0))
    (media / "b.mp4").write_bytes(movie(9, 20))
    Image.fromarray(numbered(8)[5]).save(media / "photo.png")
    model = GVE.from_pretrained(str(tiny_model), workers=1)
    index = Index.create(folder / "idx", media, model, windows=FIXED, sandbox=model.decoder)
    index.update()
    service = Service(model, Settings(names=(NAME,), media_root=media), index=index)
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(service, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30)
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
    finally:
        server.handle_exit(None, None)
        thread.join(60)
        model.decoder.close()


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
    assert search(live, input={"text": "a", "instruction": "Find it."}) == expected(
        live, {"text": "a", "instruction": "Find it."}, k=20
    )
    picture = (index.media_folder / "photo.png").read_bytes()
    found = search(live, input={"image": data_uri(picture, "image/png")}, k=5)
    assert found == search(live, path="photo.png", k=5)
    assert found[0]["path"] == "photo.png" and found[0]["score"] == pytest.approx(1, abs=1e-5)
    span = search(live, path="a.mp4", start_sec=1, end_sec=3)
    assert (span[0]["path"], span[0]["best_start_sec"]) == ("a.mp4", 1)
    assert span[0]["score"] == pytest.approx(1, abs=1e-5)
    file = {"video": "file:///a.mp4", "video_start": 1, "video_end": 3}
    assert search(live, input=file) == span


def test_options_are_those_of_the_page(live):
    assert search(live, text="a", filters={"kind": "image"})[0]["path"] == "photo.png"
    assert search(live, text="a", filters={"path": "none/*"}) == []
    grouped = search(live, text="a", group_by="video")
    assert sorted(hit["path"] for hit in grouped) == ["a.mp4", "b.mp4", "photo.png"]
    info = live.get("/info")[1]
    assert info["index"] | {"version": 0} == {
        "name": "idx", "media": "media", "files": 3, "moments": len(live.service.searcher.index),
        "unreadable": 0, "version": 0,
    }  # fmt: skip
    assert info["sandbox"] == live.service.model.decoder.held is not None


@pytest.mark.parametrize(
    "body, message",
    [
        ({}, "nothing to search for"),
        ({"text": "  "}, "empty"),
        ({"text": ["a"]}, "text must be a string"),
        ({"text": "a", "k": 10**6}, "k must be in"),
        ({"text": "a", "input": "b"}, "'text' does not go with input"),
        ({"input": "a", "messages": []}, "one of input and messages"),
        ({"input": ["a", "b"]}, "one input, not 2"),
        ({"input": {"image": "http://127.0.0.1/"}}, "accepts URIs of"),
        ({"input": {"video": data_uri(b"no video", "video/mp4")}}, "the query"),
        ({"path": "../../etc/passwd"}, "has no file"),
        ({"upload": "x"}, "upload is of the page"),
        ({"text": "a", "filters": {"where": ["=="]}}, "where"),
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
    from gve_jax.errors import UserError
    from tests.index.fake import make_index

    media = tmp_path / "media"
    media.mkdir()
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image, "PNG")
    (media / "a.png").write_bytes(image.getvalue())
    make_index(tmp_path / "idx", media).update()
    arguments = ["--model", str(tiny_model), "--port", "0", "--workers", "1", "--index"]
    with pytest.raises(UserError, match="fingerprint of the model") as refused:
        main([*arguments, str(tmp_path / "idx")])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="none"):
        main([*arguments, str(tmp_path / "none")])
