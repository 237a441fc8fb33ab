"""The page's application over HTTP: hits, media with ranges, thumbnails, uploads, refusals."""

import io
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra serve")

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.page.queries import Recent
from gve_jax.serving.sockets import bind
from tests.conftest import ROOT
from tests.index.fake import make_index, movie
from tests.media.files import numbers
from tests.page.pages import Live, live_page, write_media
from tests.situations import situation

VIDEO = "/media/cam%201/a%231.mp4"
STRIP = "/thumbnails/cam%201/a%231.mp4"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with live_page(tmp_path_factory.mktemp("page"), max_upload=1 << 20) as live:
        yield live


@pytest.mark.parametrize(
    "path, kind",
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
    + [("/icon.svg", "image/svg+xml")],
)
def test_page_and_its_policy(live, path, kind):
    answer = live.get(path)
    assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    text = answer.body.decode()
    outside = {url for url in re.findall(r"https?://[^\s\"')]+", text)}
    assert outside <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|innerHTML", text)


def test_hits_are_those_of_the_index(live):
    expected = [hit.to_json() for hit in live.index.search("a dog", k=5)]
    found = live.search(text="a dog", k=5)
    assert found == expected
    assert {"rank", "score", "start_sec", "end_sec"} <= found[0].keys()
    grouped = live.search(text="a dog", group_by="video")
    assert grouped == [hit.to_json() for hit in live.index.search("a dog", group_by="video")]
    assert [hit["path"] for hit in live.search(text="x", filters={"where": ["year>=2020"]})] == [
        "b.mp4"
    ]
    assert {hit["kind"] for hit in live.search(text="x", filters={"kind": "image"})} == {"image"}
    assert live.search(text="x", filters={"path": "none/*"}) == []


def test_more_like_a_moment(live):
    best = live.search(path="cam 1/a#1.mp4", start_sec=1, end_sec=3)[0]
    assert best["path"] == "cam 1/a#1.mp4" and best["score"] == pytest.approx(1, abs=1e-5)
    assert (best["best_start_sec"], best["best_end_sec"]) == (1, 3)
    best = live.search(path="photo.png")[0]
    assert best["path"] == "photo.png" and best["score"] == pytest.approx(1, abs=1e-5)


def test_a_dropped_file_is_searched_for(live):
    for name, kind in (("b.mp4", "video"), ("photo.png", "image")):
        answer = live.post("/api/upload", (live.media / name).read_bytes())
        assert answer.status == 200 and answer.json()["kind"] == kind
        best = live.search(upload=answer.json()["upload"])[0]
        assert best["path"] == name and best["score"] == pytest.approx(1, abs=1e-5)
        mixed = live.search(upload=answer.json()["upload"], text="at night")
        assert mixed[0]["score"] < 0.999


def test_a_query_is_embedded_once(live):
    live.search(text="embedded once")
    asked = []
    model, encode = live.index.model, live.index.model.encode_query
    model.encode_query = lambda items, **options: asked.append(items) or encode(items, **options)
    try:
        live.search(text="embedded once", k=3)
        live.post("/api/timeline", {"text": "embedded once", "timeline_path": "b.mp4"})
        assert not asked
        live.search(text="another")
        assert len(asked) == 1
    finally:
        del model.encode_query


def test_time_line(live):
    fields = {"text": "a dog", "timeline_path": "cam 1/a#1.mp4"}
    answer = live.post("/api/timeline", fields).json()
    expected = live.index.timeline(live.index.encode_query("a dog"), "cam 1/a#1.mp4")
    found = [(row["start_sec"], row["end_sec"], row["score"]) for row in answer["data"]]
    assert found == expected and answer["duration"] == 4
    assert live.post("/api/timeline", fields | {"timeline_path": "no.mp4"}).status == 404
    assert live.post("/api/timeline", {"text": "a dog"}).status == 404


def test_media_with_ranges(live):
    data = (live.media / "cam 1" / "a#1.mp4").read_bytes()
    whole = live.get(VIDEO)
    assert whole.status == 200 and whole.body == data
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    for text, part in (
        ("bytes=0-0", data[:1]),
        ("bytes=100-199", data[100:200]),
        ("bytes=100-", data[100:]),
        ("bytes=-10", data[-10:]),
        (f"bytes=5-{len(data) + 99}", data[5:]),
    ):
        answer = live.get(VIDEO, Range=text)
        assert answer.status == 206 and answer.body == part, text
        first = len(data) - len(part) if text != "bytes=0-0" else 0
        if text == "bytes=100-199":
            first = 100
        expected = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        assert answer.headers["content-range"] == expected
    assert live.get(VIDEO, Range=f"bytes={len(data)}-").status == 416
    assert live.get(VIDEO, Range="bytes=9-2").status == 400
    assert live.get(VIDEO, Range="lines=1-2").status == 400
    head = live.request("HEAD", VIDEO)
    assert head.status == 200 and head.headers["content-length"] == str(len(data)) and not head.body


@pytest.mark.parametrize(
    "path",
    ["../index/index.json", "%2e%2e/index/index.json", "..%2findex%2findex.json", "/etc/passwd"]
    + ["%2fetc%2fpasswd", "metadata.jsonl", "bad.mp4", "cam%201", "", "b.mp4%00", "./b.mp4"]
    + ["cam%201/../b.mp4", "%ff%fe", "b.mp4/", "a" * 5000],
)
@pytest.mark.parametrize("folder", ["media", "thumbnails"])
def test_only_files_of_the_index_are_served(live, folder, path):
    answer = live.get(f"/{folder}/{path}")
    assert answer.status == 404 and "no such file" in answer.message


@situation(
    "Search page",
    "a file of the index that has changed since it was indexed",
    "not served: 404",
    since="0.3.0",
)
def test_a_file_that_has_changed_is_not_served(live):
    path = live.media / "b.mp4"
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    try:
        for folder in ("media", "thumbnails"):
            answer = live.get(f"/{folder}/b.mp4")
            assert answer.status == 409 and "has changed since it was indexed" in answer.message
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    data = path.read_bytes()
    path.unlink()
    try:
        path.symlink_to("/etc/passwd")
        assert live.get("/media/b.mp4").status == 409
        path.unlink()
        assert live.get("/media/b.mp4").status == 404
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_thumbnails_show_the_moment(live):
    answer = live.get(f"{STRIP}?start_sec=1&end_sec=3")
    assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg"
    strip = np.asarray(Image.open(io.BytesIO(answer.body)))
    tiles = np.stack(np.split(strip, 4, axis=1))
    assert numbers(tiles) == [12, 17, 22, 27]  # of the frames 10 to 29
    photo = live.get("/thumbnails/photo.png")
    assert numbers(np.asarray(Image.open(io.BytesIO(photo.body)))[None]) == [5]
    assert live.get(f"{STRIP}?start_sec=99&end_sec=100").status == 200  # the last frame
    for text in ("start_sec=x", "start_sec=nan", "end_sec=-1", "end_sec=inf"):
        assert live.get(f"{STRIP}?{text}").status == 400


def test_thumbnails_are_decoded_once(live, monkeypatch):
    first = live.get(f"{STRIP}?start_sec=0&end_sec=2").body
    monkeypatch.setattr(live.index.sandbox, "pictures", None)
    assert live.get(f"{STRIP}?start_sec=0&end_sec=2").body == first


@situation(
    "Search page",
    "a request that another web site makes the browser send",
    "refused: 403",
    since="0.3.0",
)
@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.168.0.1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),  # another port of this machine
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(live, headers, status):
    for path in ("/api/index", VIDEO):
        assert live.get(path, **headers).status == status
    answer = live.post("/api/search", {"text": "x"}, **headers)
    assert answer.status == status


def test_a_link_of_another_site_opens_the_page(live):
    assert live.get("/", Sec_Fetch_Site="cross-site").status == 200


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"", 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 60_000, 400, "not JSON"),
        (b'{"text": "x", "k": NaN}', 400, "NaN"),
        (b" " * (1 << 17), 413, "larger than"),
        ({}, 400, "nothing to search for"),
        ({"text": " " * 20_000}, 400, "at most 10,000 characters"),
        ({"text": 1}, 400, "text must be a string"),
        ({"path": "no.mp4"}, 400, "has no file 'no.mp4'"),
        ({"path": "/etc/passwd"}, 400, "has no file"),
        ({"path": "bad.mp4"}, 400, "has no file"),
        ({"path": "b.mp4", "upload": "x"}, 400, "not both"),
        ({"path": "b.mp4", "start_sec": 50, "end_sec": 60}, 400, "no frame between 50"),
        ({"path": "b.mp4", "start_sec": -1}, 400, "start_sec must be a number of at least 0"),
        ({"path": "b.mp4", "start_sec": True}, 400, "start_sec must be"),
        ({"upload": "x"}, 400, "drop it again"),
        ({"text": "x", "k": 0}, 400, "k must be in 1..200"),
        ({"text": "x", "k": 1.5}, 400, "k must be in 1..200"),
        ({"text": "x", "k": 10**9}, 400, "k must be in 1..200"),
        ({"text": "x", "group_by": "day"}, 400, "group_by must be one of"),
        ({"text": "x", "group": "day"}, 400, "unknown field 'group'"),
        ({"text": "x", "filters": []}, 400, "filters must be an object"),
        ({"text": "x", "filters": {"size": 1}}, 400, "filters: unknown field 'size'"),
        ({"text": "x", "filters": {"kind": "audio"}}, 400, "kind must be video or image"),
        ({"text": "x", "filters": {"after": "soon"}}, 400, "must be a date"),
        ({"text": "x", "filters": {"after": 2020}}, 400, "after must be a string"),
        ({"text": "x", "filters": {"where": "?"}}, 400, "must be KEY=VALUE"),
        ({"text": "x", "filters": {"path": [1]}}, 400, "path must be a string or a list"),
        ({"text": "x", "filters": {"min_duration": "1"}}, 400, "min_duration must be a number"),
    ],
)
def test_mistakes_are_answers(live, body, status, message):
    answer = live.post("/api/search", body)
    assert (answer.status, message in answer.message) == (status, True), answer.body


def test_other_types_methods_and_paths(live):
    assert live.post("/api/search", {"text": "x"}, Content_Type="text/plain").status == 415
    assert live.get("/api/search").status == 405
    assert live.get("/nothing").status == 404
    assert live.get("/static/page.js").status == 404


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"no image", 422),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 422),
        (movie(0)[:2000], 422),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422),
        (bytes(1 << 20), 422),
        (bytes((1 << 20) + 1), 413),
    ],
    ids=["empty", "text", "damaged", "cut", "svg", "zeros", "large"],
)
def test_bad_uploads_are_answers(live, body, status):
    answer = live.post("/api/upload", body, Content_Type="application/octet-stream")
    assert answer.status == status and answer.message and "Traceback" not in answer.message


def test_an_upload_without_a_length_is_limited(live):
    parts = iter([bytes(1 << 19)] * 3)
    answer = live.request("POST", "/api/upload", parts)  # chunked
    assert answer.status == 413


@situation(
    "Search page",
    "`search index` adds files while the page is open",
    "the page shows them within seconds",
    since="0.3.0",
)
def test_an_index_that_changes_is_followed(tmp_path):
    with live_page(tmp_path) as live:
        before = live.get("/api/index").json()
        assert (before["files"], before["moments"], before["unreadable"]) == (3, 5, 1)
        other = Index.open(live.index.folder, live.index.model, sandbox=live.index.sandbox)
        (live.media / "c.mp4").write_bytes(movie(20))
        other.update()
        after = live.get("/api/index").json()
        assert after["files"] == 4 and after["version"] != before["version"]
        assert "c.mp4" in {hit["path"] for hit in live.search(text="x")}
        other.remove("c.mp4")
        assert "c.mp4" not in {hit["path"] for hit in live.search(text="x")}
        assert live.get("/media/c.mp4").status == 404


@situation(
    "Search page",
    "--host 0.0.0.0: other machines can reach the page",
    "its address has a key, and requests without it are refused",
    since="0.3.0",
)
def test_other_machines_need_the_key(tmp_path):
    with live_page(tmp_path, host="0.0.0.0") as live:
        key = live.url.partition("?key=")[2]
        assert len(key) >= 24
        for path in ("/", "/page.js", "/api/index", VIDEO, "/?key=wrong"):
            assert live.get(path).status == 401
        answer = live.get(f"/?key={key}")
        cookie = answer.headers["set-cookie"]
        assert answer.status == 303 and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        given = cookie.partition(";")[0]
        assert live.get("/api/index", Cookie=given).status == 200
        assert live.get("/api/index", Cookie=given, Host="10.1.2.3:80").status == 200
        assert live.get("/api/index", Cookie=given, Host="evil.example").status == 403


@situation(
    "Search page",
    "a port that another program uses",
    "one line that names it",
    since="0.3.0",
)
def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as used:
        with pytest.raises(UserError, match="cannot listen on 127.0.0.1 port .*in use"):
            bind("127.0.0.1", used.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen on no.invalid"):
        bind("no.invalid", 0)


def test_the_command(tmp_path):
    media = write_media(tmp_path / "media")
    with make_index(tmp_path / "index", media) as index:
        index.update()
    script = (
        "from gve_jax.search import main\nfrom tests.index.fake import Model\n"
        f"main(['serve', '--index', {str(index.folder)!r}, '--no-browser', '--model', 'm'], "
        "load=lambda name: Model())"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith(f"{index.folder}: 5 moments at http://127.0.0.1:"), line
        live = Live(index, media, line.split()[4])
        assert live.get("/").status == 200 and len(live.search(text="x")) > 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_recent_values_are_kept():
    recent = Recent(3)
    recent.put("a", 1)
    recent.put("b", 2, 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
    recent.put("d", 4, 9)
    assert (recent.get("a"), recent.get("d")) == (None, 4)
    recent.put("d", 5, 1)
    recent.put("e", 6, 2)
    assert (recent.get("d"), recent.get("e")) == (5, 6)
