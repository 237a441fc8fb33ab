"""The server of vectors on a socket."""

from collections.abc import Callable

from gve_jax.serving import sockets
from gve_jax.serving.app import create_app
from gve_jax.serving.service import Service

CONNECTIONS = 1024  # above it, uvicorn answers 503
GRACE = 10.0  # seconds beyond the deadline of requests that a stopping server waits


class Server(sockets.Server):
    """A server that answers what it accepted before it ends; a second signal ends it at once."""

    def __init__(self, service: Service, ready: Callable[[], None] = lambda: None):
        super().__init__(
            create_app(service),
            ready,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(service.settings.deadline + GRACE),
        )
        self._service = service

    def handle_exit(self, sig, frame) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._service.draining = True
