"""Runs the page on a socket."""

import contextlib
import ipaddress
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator

import uvicorn

from gve_jax.errors import UserError
from gve_jax.index import Index
from gve_jax.page.app import MAX_UPLOAD, create_app

CONNECTIONS = 128  # above it, uvicorn answers 503
GRACE = 3  # seconds that requests in flight have when the server is stopped


class Server(uvicorn.Server):
    """A server that calls `ready` once requests are accepted."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's second delivery of the signal: Ctrl-C is how the page is ended."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address; a port of 0 is a free one.

    Raises:
      UserError: no such address, or a port that is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host} port {port}: {reason}") from error
    return bound


def make_server(
    index: Index,
    listener: socket.socket,
    host: str = "127.0.0.1",
    *,
    max_upload: int = MAX_UPLOAD,
    ready: Callable[[str], None] = lambda url: None,
) -> Server:
    """A server, to `run(sockets=[listener])` until SIGINT or SIGTERM.

    Args:
      host: that the listener was bound to.
      ready: is called with the address of the page once requests are accepted. If other machines
        can reach it, it has a key.
    """
    address, port = listener.getsockname()[:2]
    local = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    key = None if local else secrets.token_urlsafe(18)
    names = {"localhost"} if local else {"localhost", host.lower(), socket.gethostname().lower()}

    def host_allowed(name: str) -> bool:
        if name in names:
            return True
        try:  # a name may be made to resolve to this machine, an address cannot
            return ipaddress.ip_address(name).is_loopback or not local
        except ValueError:
            return False

    app = create_app(index, max_upload=max_upload, host_allowed=host_allowed, key=key)
    shown = f"[{address}]" if ":" in address else address
    url = f"http://{shown}:{port}/" + ("" if key is None else f"?key={key}")
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    return Server(config, lambda: ready(url))


def open_browser(url: str) -> None:
    """Opens the page, without waiting for the browser."""
    threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
