"""Runs the page on a socket."""

import ipaddress
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable

from gve_jax.index import Index
from gve_jax.page.app import MAX_UPLOAD, create_app
from gve_jax.serving.sockets import Server

CONNECTIONS = 128  # above it, uvicorn answers 503
GRACE = 3  # seconds that requests in flight have when the server is stopped


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
    options = {"lifespan": "off", "limit_concurrency": CONNECTIONS}
    return Server(app, lambda: ready(url), timeout_graceful_shutdown=GRACE, **options)


def open_browser(url: str) -> None:
    """Opens the page, without waiting for the browser."""
    threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
