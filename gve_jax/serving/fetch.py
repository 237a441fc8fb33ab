"""Downloads media from the public internet, and from nowhere else (`--allow-urls`).

A client chooses the addresses, so each could be one that only this machine reaches: a cloud's
metadata service, a printer, a database. Every hop is checked: its scheme, and all addresses that
its name resolves to, which must be public. The connection goes to the very address that was
checked: a name may resolve to another one a moment later.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin, urlsplit

from gve_jax.serving.errors import bad_request

MAX_REDIRECTS = 5
MAX_URL = 2048  # characters
THREADS = 16  # downloads at once
_BLOCK = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
# Networks that contain IPv4 addresses, which a gateway would connect to: NAT64, 6to4, Teredo.
_TUNNELS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32")))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    if any(found.version == net.version and found in net for net in _TUNNELS):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_private)


class Fetcher:
    """Downloads URLs.

    Args:
      most_bytes: of a response.
      seconds: for all hops of a URL together.
      permits: whether an address may be connected to; replaced by tests only.
    """

    def __init__(self, most_bytes: int, seconds: float, permits: Callable[[str], bool] = is_public):
        self._most, self._seconds, self._permits = most_bytes, seconds, permits
        self._tls = ssl.create_default_context()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def fetch(self, url: str) -> bytes:
        """The content of a URL.

        Raises:
          RequestError: an address that is not allowed, an error of the other server, too many
            redirects, too large, too slow.
        """
        deadline = time.monotonic() + self._seconds
        for _ in range(MAX_REDIRECTS + 1):
            host, port, secure, target = _split(url)
            address = self._resolve(host, port)
            connection = _Connection(host, port, address, self._tls if secure else None, deadline)
            try:
                with connection.ends_at_deadline():
                    answer = connection.get(target)
                    if answer.status in _REDIRECTS:
                        url = urljoin(url, answer.headers.get("Location", ""))
                        continue
                    return self._read(answer, host)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if time.monotonic() >= deadline:
                    raise bad_request(
                        f"{host}: not downloaded in {self._seconds:g} seconds"
                    ) from None
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise bad_request(f"{host}: the download failed ({reason})") from None
            finally:
                connection.close()
        raise bad_request(f"more than {MAX_REDIRECTS} redirects")

    def _resolve(self, host: str, port: int) -> str:
        """An address of a host; all of them must be allowed."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise bad_request(f"{host[:100]}: unknown host") from None
        addresses = [entry[4][0] for entry in found]
        # The message does not tell an address: a client would learn what this network's names are.
        if not addresses or not all(map(self._permits, addresses)):
            raise bad_request(f"{host[:100]}: not an address of the public internet")
        return addresses[0]

    def _read(self, answer: http.client.HTTPResponse, host: str) -> bytes:
        if answer.status != 200:
            raise bad_request(f"{host}: the server answered with status {answer.status}")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise bad_request(f"{host}: the response is compressed")
        too_large = bad_request(f"{host}: larger than {self._most:,} bytes")
        if answer.length is not None and answer.length > self._most:
            raise too_large
        parts, size = [], 0
        while block := answer.read1(_BLOCK):
            size += len(block)
            if size > self._most:
                raise too_large
            parts.append(block)
        if answer.length:  # it states more than it sent, or was ended at the deadline
            raise http.client.IncompleteRead(b"", answer.length)
        return b"".join(parts)


def _split(url: str) -> tuple[str, int, bool, str]:
    """(host, port, whether by TLS, path and query) of a URL."""
    if len(url) > MAX_URL or any(ord(c) <= 32 or ord(c) > 126 for c in url):
        raise bad_request(f"a URL must be up to {MAX_URL} printable ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise bad_request(f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise bad_request("a URL, and each that it redirects to, must be http: or https:")
    if "@" in parts.netloc:
        raise bad_request("a URL must not contain a user name")
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, port or (443 if secure else 80), secure, target


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, in the name of its host."""

    def __init__(
        self, host: str, port: int, address: str, tls: ssl.SSLContext | None, deadline: float
    ):
        left = max(deadline - time.monotonic(), 0.001)
        super().__init__(host, port, timeout=left)
        self._address, self._tls, self._deadline = address, tls, deadline
        if tls is not None:
            self.default_port = 443  # else the Host header states the port

    def connect(self) -> None:
        # Neither a proxy nor a second look-up of the name.
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def get(self, target: str) -> http.client.HTTPResponse:
        headers = {"Accept-Encoding": "identity", "Accept": "image/*, video/*", "User-Agent": "gve"}
        self.request("GET", target, headers=headers)
        self._socket = self.sock  # a response that closes the connection takes it
        return self.getresponse()

    def ends_at_deadline(self) -> "_Watch":
        return _Watch(self, self._deadline)

    def abort(self) -> None:
        """Ends what another thread waits for. The timeout of a socket is for each part of an
        answer, of which a hostile server sends one byte at a time."""
        for sock in (self.sock, getattr(self, "_socket", None)):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class _Watch:
    """Aborts a connection at a time, unless it is left before."""

    def __init__(self, connection: _Connection, deadline: float):
        left = max(deadline - time.monotonic(), 0)
        self._timer = threading.Timer(left, connection.abort)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *exception) -> None:
        self._timer.cancel()


def schemes(allow_urls: bool, media_root: bool) -> Iterator[str]:
    """The schemes of URIs that a server accepts."""
    yield "data:"
    if media_root:
        yield "file:"
    if allow_urls:
        yield from ("http:", "https:")
