"""A stand-in for a Qdrant server: its REST paths on the loopback, answered by the client's own
memory. It shows that requests have the form of the API, not what a real server does with them."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models


class Requests(http.server.BaseHTTPRequestHandler):
    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = json.loads(body) if body else {}
        parts = self.path.partition("?")[0].strip("/").split("/")
        name, rest = parts[1], "/".join(parts[2:])
        self.server.seen.append((self.command, rest, self.headers.get("api-key")))
        result = self._result(name, rest, given)
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = _answer

    def _result(self, name: str, rest: str, given: dict):
        store, done = self.server.store, {"operation_id": 0, "status": "completed"}
        match self.command, rest:
            case "GET", "exists":
                return {"exists": store.collection_exists(name)}
            case "GET", "":
                return json.loads(store.get_collection(name).model_dump_json())
            case "PUT", "":
                store.create_collection(name, models.VectorParams(**given["vectors"]))
                return True
            case "PUT", "index":
                assert given["field_schema"] == "keyword"
                return done
            case "PUT", "points":
                kind = models.PointsBatch if "batch" in given else models.PointsList
                points = kind(**given)
                store.upsert(name, points.batch if "batch" in given else points.points)
                return done
            case "POST", "points/delete":
                store.delete(name, models.FilterSelector(**given))
                return done
            case "POST", "points/scroll":
                points, offset = store.scroll(
                    name, limit=given["limit"], offset=given.get("offset"), with_payload=True
                )
                points = [{"id": point.id, "payload": point.payload} for point in points]
                return {"points": points, "next_page_offset": offset}
            case "POST", "points/query":
                assert given["params"]["exact"] and given["with_payload"] is False
                chosen = given.get("filter") and TypeAdapter(models.Filter).validate_python(
                    given["filter"]
                )
                found = store.query_points(
                    name, query=given["query"]["nearest"], limit=given["limit"], query_filter=chosen
                )
                points = [{"id": p.id, "version": 0, "score": p.score} for p in found.points]
                return {"points": points}
        raise AssertionError(f"{self.command} {self.path}")

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve() -> Iterator[tuple[str, list]]:
    """The URL of a server, and its requests so far: method, path, key."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Requests)
    server.store, server.seen = QdrantClient(":memory:"), []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
