"""What the servers of this library share: a socket, its connections, and how they end."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gve_jax.errors import UserError

IDLE = 30.0  # seconds from a response, or from connecting, to the complete headers of a request


class Connection(H11Protocol):
    """A connection that is closed if it is idle: no complete headers arrive, or a response is not
    taken. uvicorn's own time-out ends with the first byte of the next request."""

    _timer, _unsent = None, 0

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()

    def on_response_complete(self) -> None:
        self._watch()  # first: the next request may already be here
        super().on_response_complete()

    def _watch(self) -> None:
        self._stop_watching()
        self._unsent = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(IDLE, self._expire)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        left = self.transport.get_write_buffer_size()
        if 0 < left < self._unsent:  # a large response is being taken
            self._watch()
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT, then ends with status 0.

    Args:
      ready: is called once requests are accepted.
      options: of `uvicorn.Config`.
    """

    def __init__(self, app: Any, ready: Callable[[], None] = lambda: None, **options):
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(IDLE),
            h11_max_incomplete_event_size=64 << 10,
            **options,
        )
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's second delivery of the signal, which would end the process by it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in signals}
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


def host_name(header: str) -> str:
    """The name or address in a Host header, in lower case and without the port."""
    name = header if header.endswith("]") else header.rsplit(":", 1)[0]
    return name.strip("[]").lower()
