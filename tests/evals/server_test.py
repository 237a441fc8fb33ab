"""Embedders behind a server: equal scores, the forms of requests, and servers that fail."""

import base64
import contextlib
import http.server
import io
import json
import os
import signal
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from evals.servers import client as client_module
from evals.servers.apis import APIS
from evals.uvrb.__main__ import main
from gve_jax.errors import UserError
from gve_jax.media.video import load_video
from tests.evals.small_uvrb import COLOURS, make_benchmark, read_jsonl, write_jsonl
from tests.serving.servers import in_process, write_model
from tests.situations import situation

SETS = "MSRVTT,MS-TI,LoVR-C2V"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("data"), (*SETS.split(","), "CRB-T"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(client_module, "BACKOFF", 0.001)


def score(data, output, *options, sets="MSRVTT"):
    arguments = ["--data", data, "--datasets", sets, "--output", output, *options]
    main([str(argument) for argument in arguments])
    return json.loads((output / "results.json").read_text())


class Colours(http.server.BaseHTTPRequestHandler):
    """Embeds the colours of texts, images and videos, in the form of each API.

    `server.faults` are functions that are called with the body and the answer, in turn, one a
    request; each may change the answer or return (status, headers, body).
    """

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.bodies.append((self.path, body, dict(self.headers)))
            number = len(server.bodies)
        if "messages" in body:
            many = body["messages"]
            many = many if isinstance(many[0], list) else [many]
            contents = [conversation[-1]["content"] for conversation in many]
        else:
            contents = [one["content"] for one in body["inputs"]]
        rows = [colours(content).tolist() for content in contents]
        if "embedding_types" in body:
            answer = {"embeddings": {"float": rows}, "meta": {"billed_units": {"input_tokens": 7}}}
        else:
            data = [{"index": n, "embedding": row} for n, row in enumerate(rows)]
            answer = {"data": data[::-1], "usage": {"total_tokens": 7}}
        status, headers = 200, {}
        found = server.fault(number, body, answer) if server.fault else None
        if found is not None:
            status, headers, answer = found
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def colours(parts) -> np.ndarray:
    """First and last colour of the media, else those that the text names."""
    frames = []
    for part in parts:
        kind = part["type"].removesuffix("_url").removesuffix("_base64")
        if kind == "text":
            continue
        value = part[part["type"]]
        data = base64.b64decode((value if isinstance(value, str) else value["url"]).split(",")[1])
        if kind == "video":
            frames += list(load_video(data, 4).frames)
        else:
            with Image.open(io.BytesIO(data)) as image:
                frames.append(np.asarray(image))
    if frames:
        ends = [frame.mean(axis=(0, 1)) for frame in (frames[0], frames[-1])]
        return np.concatenate(ends) - 60
    words = [word for word in parts[-1]["text"].split() if word in COLOURS]
    first, last = (words[0], words[-1]) if words else ("red", "red")
    return np.concatenate([COLOURS[first], COLOURS[last]]) - 60.0


@contextlib.contextmanager
def serve(fault=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Colours)
    server.lock, server.bodies, server.fault = threading.Lock(), [], fault
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@situation(
    "Evaluation",
    "our own server scored with --server, and its model with --model",
    "every query has the same ranks; unit vectors are equal up to rounding",
    since="0.3.0",
)
@pytest.mark.slow  # compiles a model in two processes
def test_scores_by_server_equal_those_by_model(data, tmp_path):
    folder = write_model(tmp_path / "model")
    ours = score(data, tmp_path / "ours", "--model", folder, sets=SETS)
    with in_process(folder, "--limits.seconds", "300") as live:
        theirs = score(
            data, tmp_path / "theirs", "--server", live.url, "--model", "tiny", sets=SETS
        )
    for name in SETS.split(","):
        a, b = (np.load(tmp_path / side / f"per_query/{name}.npz") for side in ("ours", "theirs"))
        for key in ("ids", "score", "first_rank"):
            np.testing.assert_array_equal(a[key], b[key])
        assert theirs["datasets"][name]["score"] == ours["datasets"][name]["score"]
    assert theirs["fingerprint"]["server"] != live.url  # the digest that our server states
    assert theirs["server"]["tokens"] > 0 and theirs["digests"] == ours["digests"]


FORMS = {
    "openai": ("/v1/embeddings", ()),
    "voyage": ("/v1/multimodalembeddings", ()),
    "cohere": ("/v2/embed", ()),
}


@pytest.mark.parametrize("api", FORMS)
def test_each_api_is_asked_in_its_form(data, tmp_path, api, monkeypatch, capsys):
    monkeypatch.setenv(APIS[api].key, "secret")
    with serve() as server:
        options = ("--server", server.url, "--model", "m", "--api", api, "--batch", "3")
        found = score(data, tmp_path, *options, "--price", "2", sets="MSRVTT,MS-TI")
        assert "secret" not in (tmp_path / "results.json").read_text()
    assert found["datasets"]["MSRVTT"]["score"] == 1
    paths, bodies, headers = zip(*server.bodies, strict=True)
    assert set(paths) == {FORMS[api][0]}
    assert {one["Authorization"] for one in headers} == {"Bearer secret"}
    # Three probes; five texts in two requests; five videos and five images with a text, alone.
    assert len(bodies) == 3 + 2 + 5 + 5 and found["server"]["requests"] == 15
    assert found["server"]["tokens"] == 7 * 15
    assert found["server"]["cost_usd"] == pytest.approx(2 * 7 * 15 / 1e6)
    assert "server: 15 requests, 0 retries, 105 tokens, $0.0002" in capsys.readouterr().out
    sent = json.dumps(bodies)
    assert ("Find the clip" in sent) == (api == "openai")  # others have types of inputs
    types = {part["type"] for body in bodies for part in _parts(body)}
    assert (
        types
        == {
            "openai": {"text", "video_url", "image_url"},
            "voyage": {"text", "video_base64", "image_base64"},
            "cohere": {"text", "image_url"},
        }[api]
    )
    kinds = Counter(body.get("input_type") for body in bodies)
    documents = {"openai": None, "voyage": "document", "cohere": "search_document"}[api]
    assert kinds[documents] >= 5
    # Both sets have the same videos, which are sent once. Another server may have other weights.
    with serve() as other:
        again = ("--server", other.url, *options[2:])
        with pytest.raises(UserError, match=r"server = .*, now .*; choose another --output"):
            score(data, tmp_path, *again, sets="MSRVTT,MS-TI")


def _parts(body):
    if "messages" not in body:
        return [part for one in body["inputs"] for part in one["content"]]
    many = body["messages"] if isinstance(body["messages"][0], list) else [body["messages"]]
    return [part for conversation in many for part in conversation[-1]["content"]]


def test_frames_are_sent_in_the_order_of_a_control(data, tmp_path):
    with serve() as server:
        options = ("--server", server.url, "--model", "m", "--send", "frames")
        found = score(
            data, tmp_path, *options, "--send-frames", "4", "--control", "reversed", sets="CRB-T"
        )
    assert found["datasets"]["CRB-T"]["score"] == 1
    assert found["controls"]["reversed"]["datasets"]["CRB-T"]["score"] == 0
    assert found["controls"]["reversed"]["paired"]["datasets"]["CRB-T"]["difference"] == 1
    assert Counter(len(_parts(body)) for _, body, _ in server.bodies) == {1: 6, 4: 10}


def _nan(answer):
    answer["data"][0]["embedding"][0] = float("nan")


def _short(answer):
    del answer["data"][0]["embedding"][0]


def _none(answer):
    answer["data"] = []


def _index(answer):
    answer["data"][0]["index"] = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_short, "the server answered with a vector of 5 dimensions, not 6"),
        (_none, "the server answered with 0 vectors to 1 inputs"),
        (_index, r"the server answered with the indices \[5\] for 1 vectors"),
        (lambda a: a.clear(), "the server answered with JSON that is not a response of this API"),
        (
            lambda a: a["data"][0].update(embedding=["x"]),
            "the server answered with a vector that is not a list of numbers",
        ),
    ],
)
def test_an_answer_that_cannot_be_right_stops_the_command(data, tmp_path, change, message):
    """What was embedded before stays: the repeated command sends the rest."""

    def fault(number, body, answer):
        if number == 8:
            change(answer)

    with serve(fault) as server:
        options = ("--server", server.url, "--model", "m", "--concurrency", "1")
        with pytest.raises(UserError, match=f"--server {server.url}: {message}"):
            score(data, tmp_path, *options)
        asked = len(server.bodies)
        assert score(data, tmp_path, *options)["datasets"]["MSRVTT"]["score"] == 1
        # 1 + 10 items, and another probe: nothing but the item of the fault was sent twice.
        assert asked in (8, 9) and len(server.bodies) == 1 + 10 + 1 + 1


def test_a_vector_with_nan_is_of_an_unreadable_item_that_is_sent_again(data, tmp_path):
    def fault(number, body, answer):
        if number == 8:
            _nan(answer)

    with serve(fault) as server:
        options = ("--server", server.url, "--model", "m", "--max-bad-share", "0.2")
        found = score(data, tmp_path, *options)
        assert found["quarantined"] == 1
        line = json.loads((tmp_path / "quarantine.jsonl").read_text())
        assert line["reason"] == "the server: a vector with NaN or infinite numbers"
        assert score(data, tmp_path, *options)["quarantined"] == 0


def _busy(number, body, answer):
    """Every second request meets a rate limit, an overloaded server, or no JSON."""
    kinds = [(429, {"Retry-After": "0.01"}, {}), (503, {}, b"busy"), (200, {}, b"<html>")]
    return kinds[number // 2 % 3] if number % 2 == 0 else None


def test_failed_requests_are_repeated(data, tmp_path):
    with serve(_busy) as server:
        found = score(data, tmp_path, "--server", server.url, "--model", "m")
    assert found["datasets"]["MSRVTT"]["score"] == 1 and found["quarantined"] == 0
    usage = found["server"]
    assert usage["requests"] == 11 and usage["retries"] == len(server.bodies) - 11 > 3
    assert json.loads((tmp_path / "server.json").read_text())["requests"] == 11


def test_a_server_that_drops_stops_the_command_and_loses_nothing(data, tmp_path):
    def fault(number, body, answer):
        return (500, {}, b"out of memory") if number > 6 and not recovered else None

    recovered = []
    with serve(fault) as server:
        options = ("--server", server.url, "--model", "m", "--concurrency", "2")
        with pytest.raises(UserError, match=r"status 500: out of memory \(3 requests in a row"):
            score(data, tmp_path, *options)
        recovered.append(True)
        asked = len(server.bodies)
        assert score(data, tmp_path, *options)["quarantined"] == 0
        assert len(server.bodies) - asked == 1 + 5  # a probe, and the items without a vector
    with pytest.raises(UserError, match=r"--server .*(refused|Connection)"):
        score(data, tmp_path, *options)


def test_an_interrupt_loses_no_answer(data, tmp_path):
    def fault(number, body, answer):
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with serve(fault) as server:
        options = ("--server", server.url, "--model", "m", "--concurrency", "1")
        with pytest.raises(KeyboardInterrupt):
            score(data, tmp_path, *options)
        assert len(server.bodies) in (6, 7)  # one may have been on its way
        assert score(data, tmp_path, *options)["datasets"]["MSRVTT"]["score"] == 1
    assert len(server.bodies) == 1 + 10 + 1  # each item once, and two probes


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}, b'{"message": "no model m"}'), 'status 404: {"message": "no model m"}'),
        ((401, {}, b"key\x00\n"), "status 401: key"),
        ((422, {}, b"messages?"), "no vector of a text: status 422: messages"),
    ],
)
def test_a_server_that_refuses_the_first_text_is_named(data, tmp_path, answer, message):
    with serve(lambda *_: answer) as server:
        with pytest.raises(UserError) as caught:
            score(data, tmp_path, "--server", server.url, "--model", "m")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.bodies) == 1


def test_a_text_that_is_refused_costs_itself_alone(data, tmp_path):
    def fault(number, body, answer):
        if "blue red" in json.dumps(body):
            return 413, {}, b"too long"

    with serve(fault) as server:
        options = ("--server", server.url, "--model", "m", "--batch", "4")
        found = score(data, tmp_path, *options, "--max-bad-share", "0.2")
    record = found["datasets"]["MSRVTT"]
    assert record["score"] == 0.8 and record["left_out"]["queries"] == ["q1"]


def test_an_order_that_is_not_kept_is_noticed_before_any_work(data, tmp_path):
    def fault(number, body, answer):
        rows = answer["embeddings"]["float"]
        rows[0] = [float(len(body["inputs"][0]["content"][0]["text"])), 1, 1, 1, 1, 1]
        if len(rows) > 1:
            rows[1] = [float(len(body["inputs"][1]["content"][0]["text"])), 1, 1, 1, 1, 1]
            rows.reverse()

    with serve(fault) as server:
        options = ("--server", server.url, "--model", "m", "--api", "cohere", "--batch", "2")
        with pytest.raises(UserError, match="answers a batch in another order: --batch 1"):
            score(data, tmp_path, *options)
    assert len(server.bodies) == 3


def test_a_folder_of_frames_is_sent_as_frames_only(data, tmp_path):
    root = tmp_path / "data/UVRB/MSRVTT"
    root.mkdir(parents=True)
    (root / "jsonl").mkdir()
    for name in ("red_blue", "blue_red"):
        (root / "videos_frames" / name).mkdir(parents=True)
        first, last = name.split("_")
        for number in range(4):
            colour = COLOURS[first if number < 2 else last]
            path = root / "videos_frames" / name / f"{number}.png"
            Image.new("RGB", (64, 48), colour).save(path)
    pairs = (("q0", "red blue", "red_blue"), ("q1", "blue red", "blue_red"))
    write_jsonl(root / "jsonl/queries.jsonl", [{"id": q, "text": t} for q, t, _ in pairs])
    write_jsonl(root / "jsonl/instances.jsonl", [{"qid": q, "pos": [v]} for q, _, v in pairs])
    write_jsonl(
        root / "jsonl/corpus.jsonl", [{"id": v, "video": f"videos/{v}.mp4"} for *_, v in pairs]
    )
    with serve() as server:
        options = ("--server", server.url, "--model", "m", "--send-frames", "4")
        found = score(tmp_path / "data", tmp_path / "a", *options, "--send", "frames")
        assert found["datasets"]["MSRVTT"]["score"] == 1
        with pytest.raises(UserError, match="not one document can be read"):
            score(tmp_path / "data", tmp_path / "b", *options[:4], "--max-bad-share", "1")
    (line, _) = read_jsonl(tmp_path / "b/quarantine.jsonl")
    assert line["reason"].endswith("a folder of frames; --send frames sends it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "http://a"], "--server needs --model"),
        (["--server", "ftp://a", "--model", "m"], "must be an http:// or https:// URL"),
        (["--server", "http://u:p@a", "--model", "m"], "no user, password or query: set OPENAI_A"),
        (["--model", "m", "--price", "1"], "--price needs --server"),
        (["--server", "http://a", "--mteb", "b"], "--server and --mteb exclude each other"),
        (["--server", "http://a", "--model", "m", "--control"], "--control needs --send frames"),
        (["--server", "http://a", "--model", "m", "--batch", "0"], "--batch 0 must be above 0"),
        (
            ["--server", "http://a", "--model", "m", "--api", "cohere", "--send", "video"],
            "--api cohere takes no videos: --send frames",
        ),
        (["--server", "http://a", "--model", "m", "--baseline", "b"], "--baseline needs a model"),
        ([], "--model, --server, --mteb or --embeddings is required"),
    ],
)
def test_refuses_options_that_exclude_each_other(data, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        score(data, tmp_path, *options, sets="MSRVTT,CRB-T")
