"""A fake Google Cloud Storage server on loopback: the part of the JSON API that gcsfs, tensorstore
and Google's client use, with objects in memory and a journal of all writes in order.

A killed process leaves in a bucket a prefix of the journal; `replay` recreates that state.
"""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse
from typing import NamedTuple


class Object(NamedTuple):
    data: bytes
    generation: int


class Write(NamedTuple):
    """A change of a bucket; `data` is None if the object was removed."""

    bucket: str
    name: str
    data: bytes | None


class FakeGcs:
    """The server; use it as a context manager. `url` is its address."""

    def __init__(self):
        self.buckets: dict[str, dict[str, Object]] = {}
        self.read_only: set[str] = set()
        self.journal: list[Write] = []
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.lock, self._generation = threading.RLock(), 0
        handler = type("Bound", (_Handler,), {"gcs": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def make(self, bucket: str) -> dict[str, Object]:
        return self.buckets.setdefault(bucket, {})

    def read(self, bucket: str, name: str) -> bytes:
        return self.buckets[bucket][name].data

    def put(self, bucket: str, name: str, data: bytes) -> Object:
        with self.lock:
            self._generation += 1
            created = self.buckets[bucket][name] = Object(data, self._generation)
            self.journal.append(Write(bucket, name, data))
            return created

    def remove(self, bucket: str, name: str) -> None:
        with self.lock:
            del self.buckets[bucket][name]
            self.journal.append(Write(bucket, name, None))

    def replay(self, writes: list[Write], bucket: str) -> None:
        """Applies `writes`, all from the journal of one bucket, to `bucket`."""
        self.make(bucket)
        for write in writes:
            if write.data is None:
                self.remove(bucket, write.name)
            else:
                self.put(bucket, write.name, write.data)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # tensorstore sends many requests at once

    def handle_error(self, request, client_address) -> None:
        # gcsfs sends two requests at once and closes the second when the first is sufficient.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    gcs: FakeGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_) -> None:
        pass

    def _answer(self, status: int, body: object = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, why: str) -> None:
        self._answer(status, {"error": {"code": status, "message": why}})

    def _resource(self, bucket: str, name: str, stored: Object) -> dict:
        time = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "metageneration": "1",
            "size": str(len(stored.data)),
            "generation": str(stored.generation),
            "updated": time,
            "timeCreated": time,
            "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
        }

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        with self.gcs.lock:
            if path.startswith("/resumable/"):
                return self._chunk(path.removeprefix("/resumable/"), body)
            path, uploads = re.subn("^/upload(?=/storage)", "", path)
            path = re.sub("^/download(?=/storage)", "", path)
            if not path.startswith("/storage/v1/b/"):
                return self._fail(404, "no such method")
            bucket, *rest = map(
                urllib.parse.unquote, path.removeprefix("/storage/v1/b/").strip("/").split("/")
            )
            if bucket not in self.gcs.buckets:
                return self._fail(404, "The specified bucket does not exist.")
            if self.command != "GET" and bucket in self.gcs.read_only:
                return self._fail(403, "the account does not have storage.objects.create access")
            if uploads:
                return self._upload(bucket, body)
            if not rest:
                return self._answer(200, {"kind": "storage#bucket", "id": bucket, "name": bucket})
            if len(rest) == 1:
                return self._list(bucket)
            return self._object(bucket, *rest[1:])

    do_GET = do_POST = do_PUT = do_DELETE = do_any

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        items, prefixes = [], set()
        for name, stored in sorted(self.gcs.buckets[bucket].items()):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            inner, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                prefixes.add(prefix + inner + cut)
            else:
                items.append(self._resource(bucket, name, stored))
        # Prefixes come before items: clients do not rely on the order across pages.
        entries = [("prefixes", entry) for entry in sorted(prefixes)]
        entries += [("items", entry) for entry in items]
        first = int(self.query.get("pageToken", 0))
        stop = first + int(self.query.get("maxResults", 1000))
        page = {"kind": "storage#objects", "items": [], "prefixes": []}
        for kind, entry in entries[first:stop]:
            page[kind].append(entry)
        if stop < len(entries):
            page["nextPageToken"] = str(stop)
        self._answer(200, page)

    def _refused(self, stored: Object | None) -> bool:
        """Whether a condition on the generation fails; if so, sends the answer."""
        generation = str(stored.generation) if stored else "0"
        if self.query.get("ifGenerationMatch", generation) != generation:
            self._fail(412, "conditionNotMet")
            return True
        if stored and self.query.get("ifGenerationNotMatch") == generation:
            self._answer(304)
            return True
        return False

    def _object(self, bucket: str, name: str, verb: str = "", *target: str) -> None:
        stored = self.gcs.buckets[bucket].get(name)
        if not stored:
            return self._fail(404, f"No such object: {bucket}/{name}")
        if verb in ("rewriteTo", "moveTo"):
            to = target[1] if verb == "rewriteTo" else bucket
            resource = self._resource(to, target[-1], self.gcs.put(to, target[-1], stored.data))
            if verb == "moveTo":
                self.gcs.remove(bucket, name)
                return self._answer(200, resource)
            return self._answer(200, {"done": True, "resource": resource})
        if self._refused(stored):
            return None
        if self.command == "DELETE":
            self.gcs.remove(bucket, name)
            return self._answer(204)
        if self.query.get("alt") != "media":
            return self._answer(200, self._resource(bucket, name, stored))
        data, status, headers = stored.data, 200, {"x_goog_generation": str(stored.generation)}
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = span.groups()
            if not first:
                first, last = max(0, len(data) - int(last)), ""
            first, last = int(first), min(int(last or len(data) - 1), len(data) - 1)
            if first > last:
                return self._fail(416, "the requested range is not satisfiable")
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        return self._answer(status, data, **headers)

    def _upload(self, bucket: str, body: bytes) -> None:
        kind, name = self.query["uploadType"], self.query.get("name")
        if kind == "multipart":
            boundary = re.search('boundary="?([^"]+)"?', self.headers["Content-Type"])[1].encode()
            _, head, rest = body.split(b"--" + boundary, 2)
            name = json.loads(head.split(b"\n\n", 1)[1])["name"]
            body = rest[: rest.rindex(b"\n--" + boundary + b"--")].split(b"\n\n", 1)[1]
        if self._refused(self.gcs.buckets[bucket].get(name)):
            return None
        if kind == "resumable":
            key = str(len(self.gcs.uploads))
            self.gcs.uploads[key] = (bucket, name, bytearray())
            return self._answer(200, Location=f"{self.gcs.url}/resumable/{key}")
        return self._answer(200, self._resource(bucket, name, self.gcs.put(bucket, name, body)))

    def _chunk(self, key: str, body: bytes) -> None:
        if self.command == "DELETE":
            self.gcs.uploads.pop(key, None)
            return self._answer(204)
        bucket, name, data = self.gcs.uploads[key]
        data += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*":
            return self._answer(308, Range=f"bytes=0-{len(data) - 1}")
        assert int(total) == len(data), (total, len(data))
        stored = self.gcs.put(bucket, name, bytes(data))
        return self._answer(200, self._resource(bucket, name, stored))
