"""The ASGI application: routes, API key, limits of time, errors in each API's form."""

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import sys
import time
import traceback
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gve_jax.serving import metrics, search
from gve_jax.serving.body import read_body
from gve_jax.serving.errors import RequestError
from gve_jax.serving.protocols import PROTOCOLS, openai_error
from gve_jax.serving.service import Service, to_json
from gve_jax.serving.sockets import host_name

Answer = Callable[[bytearray], Awaitable[bytes]]  # the body of a request to that of its response
WriteError = Callable[[RequestError], dict]
OPEN_PATHS = ("/health",)  # without an API key


def create_app(service: Service) -> Starlette:
    """The application of a service."""
    routes = [
        Route("/health", _health, methods=["GET"]),
        Route("/info", _info, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        Route("/v1/models", _models, methods=["GET"]),
        _post(search.PATH, service.search, openai_error),
    ]
    for each in PROTOCOLS:
        routes.append(_post(each.path, functools.partial(service.answer, each), each.error))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        service.open()
        try:
            yield
        finally:
            service.close()

    handlers = {HTTPException: _http_error}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.state.service = service
    app.add_middleware(Guard, service=service)
    return app


class Guard:
    """Checks the API key or, without one, that the request is addressed to this machine."""

    def __init__(self, app, service: Service):
        self._app, self._service = app, service
        key = service.settings.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = None if scope["path"] in OPEN_PATHS else self._refusal(dict(scope["headers"]))
        if error is not None:
            protocol = next((p for p in PROTOCOLS if p.path == scope["path"]), None)
            response = _error_response(error, protocol.error if protocol else openai_error)
            if error.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
            return

        async def send_with_fingerprint(message):
            if message["type"] == "http.response.start":
                digest = self._service.fingerprint.encode()
                message["headers"] = [
                    *message["headers"],
                    (b"x-gve-fingerprint", digest),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_fingerprint)

    def _refusal(self, headers: dict[bytes, bytes]) -> RequestError | None:
        if self._key is None:
            # A page in this machine's browser may send requests here under a name of its own.
            if not _is_local(headers.get(b"host", b"").decode("latin-1")):
                return RequestError(403, "without an API key, the Host must be this machine's")
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self._key)
        if scheme.lower() == b"bearer" and right:
            return None
        return RequestError(
            401,
            "the API key is missing or wrong: Authorization: Bearer KEY",
            code="invalid_api_key",
        )


def _is_local(host: str) -> bool:
    """Whether a Host header names the loopback."""
    name = host_name(host)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _post(path: str, answer: Answer, write_error: WriteError) -> Route:
    """A route on which bodies are answered, within the limits of the service."""

    async def handle(request: Request) -> Response:
        service: Service = request.app.state.service
        began = time.perf_counter()
        try:
            response = await _answer(service, answer, request)
        except RequestError as error:
            response = _error_response(error, write_error)
        except Exception as error:  # a bug: the client gets an answer, the log the traceback
            traceback.print_exception(error, file=sys.stderr)
            response = _error_response(RequestError(500, "internal error"), write_error)
        service.metrics.requests.labels(path, response.status_code).inc()
        service.metrics.seconds.labels(path).observe(time.perf_counter() - began)
        return response

    return Route(path, handle, methods=["POST"])


async def _answer(service: Service, answer: Answer, request: Request) -> Response:
    settings = service.settings
    headers = dict(request.scope["headers"])
    with service.admit() as admission:
        body = await read_body(
            headers, request.receive, settings.max_body, settings.body_seconds, admission.hold
        )
        work = asyncio.ensure_future(answer(body))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait(
                {work, gone}, timeout=settings.deadline, return_when=asyncio.FIRST_COMPLETED
            )
            if work.done():
                return Response(work.result(), media_type="application/json")
            if gone.done():
                raise RequestError(400, "the client closed the connection")
            raise RequestError(
                504,
                f"not answered within {settings.deadline:g} seconds: send fewer inputs at once",
                code="timeout",
            )
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            # An error of `work` holds this frame, which holds `work`: without this, what was sent
            # stays in memory until Python next looks for cycles.
            del work, gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _health(request: Request) -> Response:
    if request.app.state.service.draining:
        return _json({"status": "stopping"}, 503)
    return _json({"status": "ok"})


async def _info(request: Request) -> Response:
    return _json(await run_in_threadpool(request.app.state.service.describe))


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.text(), media_type=metrics.CONTENT_TYPE)


async def _models(request: Request) -> Response:
    names = request.app.state.service.info.names
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "gve_jax"} for name in names]
    return _json({"object": "list", "data": data})


async def _http_error(request: Request, error: HTTPException) -> Response:
    paths = ", ".join(each.path for each in PROTOCOLS)
    message = {404: f"no such path; vectors are at {paths}", 405: "method not allowed"}
    found = RequestError(error.status_code, message.get(error.status_code, error.detail))
    response = _error_response(found, openai_error)
    response.headers.update(error.headers or {})
    return response


def _error_response(error: RequestError, write: WriteError) -> Response:
    response = _json(write(error), error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
