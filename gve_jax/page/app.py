"""The ASGI application of the page.

    GET  /                     the page; /page.js, /page.css, /icon.svg
    GET  /api/index            numbers of files and moments; `version` changes with the index
    POST /api/search           {"text": ..., "k": 20, "group_by": "moment", "filters": {...}}
    POST /api/timeline         {"text": ..., "timeline_path": ...}: scores of the moments of a file
    POST /api/upload           an image or a video as the body: a name for `upload` of a query
    GET  /media/PATH           a file of the index, with ranges
    GET  /thumbnails/PATH?start_sec=&end_sec=

Errors are {"error": {"message": ...}}.
"""

import asyncio
import hmac
import json
import mimetypes
import os
import stat
import sys
import traceback
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.index.requests import LiveIndex, read_query, read_search
from gve_jax.index.store import Media
from gve_jax.media.dataset_paths import text_to_path
from gve_jax.media.errors import MediaError
from gve_jax.page.queries import Encoder
from gve_jax.page.thumbnails import Thumbnails
from gve_jax.serving.sockets import host_name

STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
MAX_JSON = 1 << 16  # bytes
MAX_UPLOAD = 256 << 20  # bytes
BODY_SECONDS = 120.0  # in which a body must arrive
COOKIE = "gve_page_key"
# What mimetypes does not know everywhere; a browser plays none of the others.
_TYPES = {".m4v": "video/mp4", ".mkv": "video/x-matroska", ".mov": "video/quicktime"}
_TYPES |= {".ts": "video/mp2t", ".mts": "video/mp2t", ".avif": "image/avif", ".webp": "image/webp"}


class Page:
    """What the handlers share."""

    def __init__(self, index: Index, max_upload: int = MAX_UPLOAD):
        self.index, self.max_upload = index, max_upload
        self.encoder, self.thumbnails = Encoder(index), Thumbnails(index.sandbox)
        self.uploading = asyncio.Semaphore(2)  # bounds the memory
        self.live = LiveIndex(index)

    def file(self, path: str) -> tuple[Media, Path, os.stat_result]:
        """A file of the index, as it was indexed.

        Raises:
          HTTPException: there is none, or it has changed.
        """
        file = self.index.find(path)
        if file is None:
            raise HTTPException(404, "the index has no such file")
        real = self.index.media_folder / text_to_path(file.path)
        try:
            found = os.stat(real)
        except OSError as error:
            raise HTTPException(404, f"{file.path}: {error.strerror}") from None
        same = (found.st_size, found.st_mtime_ns) == (file.size, file.mtime_ns)
        if not (same and stat.S_ISREG(found.st_mode)):
            text = "has changed since it was indexed: bring the index up to date"
            raise HTTPException(409, f"{file.path}: {text}")
        return file, real, found


def create_app(
    index: Index,
    *,
    max_upload: int = MAX_UPLOAD,
    host_allowed: Callable[[str], bool],
    key: str | None = None,
) -> Starlette:
    """The application of an index.

    Args:
      max_upload: bytes of a dropped file.
      host_allowed: whether the name or address in a Host header is of this server. A page of
        another site that has its name resolve to this machine is refused by it.
      key: that the first visit must state as `/?key=KEY`; a cookie keeps it.
    """
    routes = [Route(path, _static(*entry)) for path, entry in STATIC.items()]
    routes += [
        Route("/api/index", _describe),
        Route("/api/search", _search, methods=["POST"]),
        Route("/api/timeline", _timeline, methods=["POST"]),
        Route("/api/upload", _upload, methods=["POST"]),
        Route("/media/{path:path}", _media),
        Route("/thumbnails/{path:path}", _thumbnail),
    ]
    handlers = {
        HTTPException: lambda request, error: _error(error.status_code, error.detail),
        UserError: lambda request, error: _error(400, str(error)),
        MediaError: lambda request, error: _error(422, str(error)),
        ClientDisconnect: lambda request, error: _error(400, "the client went away"),
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.page = Page(index, max_upload)
    app.add_middleware(Guard, host_allowed=host_allowed, key=key)
    return app


class Guard:
    """Refuses requests of other sites and of strangers; adds the headers of every response."""

    def __init__(self, app, host_allowed: Callable[[str], bool], key: str | None):
        self._app, self._host_allowed, self._key = app, host_allowed, key

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        request = Request(scope)
        answer = self._refusal(request) or self._login(request)
        try:
            await (answer or self._app)(scope, receive, send_with_headers)
        except Exception as error:  # a bug: the page gets an answer, the log the traceback
            traceback.print_exception(error, file=sys.stderr)
            if not started:
                await _error(500, "internal error")(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self._host_allowed(host_name(host)):
            return _error(403, "the Host header names another machine")
        site = request.headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") and request.url.path != "/":
            return _error(403, "requests of other sites are refused")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return _error(403, "requests of other sites are refused")
        return None

    def _login(self, request: Request) -> Response | None:
        if self._key is None or _equal(request.cookies.get(COOKIE, ""), self._key):
            return None
        if request.url.path == "/" and _equal(request.query_params.get("key", ""), self._key):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self._key, httponly=True, samesite="strict")
            return answer
        return _error(401, "open the address that the command printed, with its key")


def _equal(given: str, key: str) -> bool:
    return hmac.compare_digest(given.encode(), key.encode())


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message[:1000]}}, status)


def _static(name: str, media_type: str) -> Callable:
    data = (resources.files("gve_jax.page") / "static" / name).read_bytes()

    async def get(request: Request) -> Response:
        return Response(data, media_type=media_type, headers={"cache-control": "no-cache"})

    return get


async def _body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
      HTTPException: too large or too slow.
    """
    too_large = HTTPException(413, f"the body is larger than {most:,} bytes")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > 2 * most:
                    raise too_large
                else:  # a client that is cut off while it sends may not read the answer
                    parts.clear()
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive in {BODY_SECONDS:g} s") from None
    if size > most:
        raise too_large
    return b"".join(parts)


async def _json(request: Request) -> object:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site cannot send it
        raise HTTPException(415, "Content-Type must be application/json")
    try:
        return json.loads(await _body(request, MAX_JSON), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


async def _describe(request: Request) -> Response:
    page: Page = request.app.state.page

    def describe() -> dict:
        return page.live.describe() | {"max_upload": page.max_upload}

    return JSONResponse(await run_in_threadpool(describe), headers={"cache-control": "no-store"})


async def _search(request: Request) -> Response:
    page: Page = request.app.state.page
    query, options = read_search(await _json(request))

    def search() -> dict:
        page.live.refresh()  # before a file of the index is looked up
        return page.live.answer(options, page.encoder.vector(query))

    return JSONResponse(await run_in_threadpool(search))


async def _timeline(request: Request) -> Response:
    page: Page = request.app.state.page
    query, options = read_query(await _json(request), "timeline_path")
    path = options.get("timeline_path")

    def timeline() -> dict:
        file = page.index.find(path) if isinstance(path, str) else None
        if file is None:
            raise HTTPException(404, "timeline_path must be a file of the index")
        rows = page.index.timeline(page.encoder.vector(query), file.path)
        keys = ("start_sec", "end_sec", "score")
        data = [dict(zip(keys, row, strict=True)) for row in rows]
        return {"path": file.path, "duration": file.duration, "data": data}

    return JSONResponse(await run_in_threadpool(timeline))


async def _upload(request: Request) -> Response:
    page: Page = request.app.state.page
    async with page.uploading:
        data = await _body(request, page.max_upload)
        if not data:
            raise HTTPException(400, "the body is empty; it must be an image or a video")
        name, kind = await run_in_threadpool(page.encoder.add_upload, data)
    return JSONResponse({"upload": name, "kind": kind})


async def _media(request: Request) -> Response:
    page: Page = request.app.state.page
    file, real, found = await run_in_threadpool(page.file, request.path_params["path"])
    suffix = os.path.splitext(file.path)[1].lower()
    media_type = _TYPES.get(suffix) or mimetypes.guess_type(f"x{suffix}")[0] or ""
    if not media_type.startswith(("video/", "image/")):
        media_type = f"{file.kind}/unknown"
    headers = {"cache-control": "private, no-cache"}
    return FileResponse(real, media_type=media_type, stat_result=found, headers=headers)


async def _thumbnail(request: Request) -> Response:
    page: Page = request.app.state.page
    try:
        values = [float(request.query_params.get(name, 0)) for name in ("start_sec", "end_sec")]
        if not all(0 <= value < 1e9 for value in values):
            raise ValueError
    except ValueError:
        raise HTTPException(400, "start_sec and end_sec must be numbers of at least 0") from None

    def strip() -> bytes:
        file, real, _ = page.file(request.path_params["path"])
        return page.thumbnails.strip(file, real, *values)

    headers = {"cache-control": "private, max-age=3600"}
    return Response(await run_in_threadpool(strip), media_type="image/jpeg", headers=headers)
