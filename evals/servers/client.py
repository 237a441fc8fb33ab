"""Sends requests to an embedding server: retries, rate limits, and counts."""

import dataclasses
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from data.http_errors import FATAL, excerpt, is_retried, retry_after
from evals.servers.apis import Api, tokens_of
from gve_jax.errors import UserError
from gve_jax.storage.files import read_json, write_json

try:
    import httpx2  # the HTTP library of openai
except ImportError as error:
    raise UserError(f"--server needs {error.name}: pip install -e '.[synth]'") from error

MOST_BYTES = 64 << 20  # of a response
BACKOFF, MOST_BACKOFF = 1.0, 60.0  # seconds before the second attempt, and at most
MOST_FAILURES = 3  # requests in a row that fail in all of their attempts


class Refused(Exception):
    """The server does not embed these inputs. retry: whether a later attempt may succeed."""

    def __init__(self, reason: str, retry: bool = False):
        super().__init__(reason)
        self.retry = retry


@dataclasses.dataclass
class Usage:
    """Sums over all commands with one OUTPUT. `requests` were answered; `retries` are attempts
    after a first one; `unknown` are answers that did not state their tokens."""

    requests: int = 0
    retries: int = 0
    tokens: int = 0
    unknown: int = 0


class Client:
    """May be called from several threads.

    Args:
      url: the server's, with or without the `/v1` of the path.
      api: of its requests.
      seconds: for an answer.
      attempts: of a request.
      connections: open at once.
      per_minute: requests at most; None for no limit.
      record: JSON file of the usage; see `Usage`.
      sleep: waits for seconds (default: until then or `stop`).
    """

    def __init__(
        self,
        url: str,
        api: Api,
        *,
        seconds: float = 300.0,
        attempts: int = 6,
        connections: int = 8,
        per_minute: float | None = None,
        record: Path | None = None,
        sleep: Callable[[float], object] | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--server {url!r} must be an http:// or https:// URL")
        if parts.username or parts.password or parts.query:
            raise UserError(f"--server must have no user, password or query: set {api.key}")
        self.url = url.rstrip("/")
        version = "/" + api.path.split("/")[1]
        self._address = self.url.removesuffix(version) + api.path
        self._attempts, self._seconds = attempts, seconds
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._gap = 60 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0
        self._failures, self.fatal = 0, None
        self._record, self.usage = record, Usage()
        if record is not None and record.exists():
            try:
                self.usage = Usage(**read_json(record, "; delete it"))
            except TypeError as error:
                raise UserError(f"{record}: not a record of usage; delete it") from error
        key = os.environ.get(api.key)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._client = httpx2.Client(
            timeout=seconds,
            limits=httpx2.Limits(max_connections=connections),
            trust_env=not local,  # no proxy between this machine and itself
            follow_redirects=False,
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
        )

    def post(self, body: dict) -> tuple[dict, dict]:
        """The JSON of an answer, and its headers.

        Raises:
          Refused: the server refuses this request, or all attempts failed.
          UserError: it refuses every request (unknown model, wrong key), or does not answer.
        """
        data, reason = json.dumps(body).encode(), ""
        for attempt in range(self._attempts):
            if attempt:
                with self._lock:
                    self.usage.retries += 1
                self._sleep(
                    min(BACKOFF * 2 ** (attempt - 1), MOST_BACKOFF) * random.uniform(0.5, 1)
                )
            self._wait_for_turn()
            if self.fatal is not None:
                raise self.fatal
            try:
                status, headers, content = self._send(data)
            except httpx2.TimeoutException:
                reason = f"no answer within {self._seconds:g} s"
                continue
            except (httpx2.HTTPError, _TooLarge) as error:
                reason = str(error) or type(error).__name__
                continue
            if status == 200:
                try:
                    answer = json.loads(content)
                    if not isinstance(answer, dict):
                        raise ValueError
                except (ValueError, RecursionError):
                    reason = f"an answer that is not a JSON object: {excerpt(content)!r}"
                    continue
                self._count(answer)
                return answer, headers
            reason = f"status {status}: {excerpt(content)}"
            if status in FATAL:
                raise self.stop(reason)
            if not is_retried(status):
                raise Refused(reason)
            self._pause(retry_after(headers.get("retry-after")))
        with self._lock:
            self._failures += 1
            stopped = self._failures >= MOST_FAILURES
        if stopped:
            raise self.stop(f"{reason} ({MOST_FAILURES} requests in a row failed)")
        raise Refused(f"{reason} (in the last of {self._attempts} attempts)", retry=True)

    def stop(self, reason: str) -> UserError:
        """The error that ends this request and all that wait; those in flight are finished."""
        self._stopped.set()
        with self._lock:
            if self.fatal is None:
                self.fatal = UserError(f"--server {self.url}: {reason}")
            return self.fatal

    def save(self) -> None:
        if self._record is not None:
            with self._lock:
                write_json(self._record, dataclasses.asdict(self.usage))

    def _send(self, data: bytes) -> tuple[int, dict, bytes]:
        with self._client.stream("POST", self._address, content=data) as response:
            blocks, size = [], 0
            for block in response.iter_bytes():
                blocks.append(block)
                size += len(block)
                if size > MOST_BYTES:
                    raise _TooLarge(f"an answer above {MOST_BYTES >> 20} MiB")
            return response.status_code, dict(response.headers), b"".join(blocks)

    def _count(self, answer: dict) -> None:
        tokens = tokens_of(answer)
        with self._lock:
            self._failures = 0
            self.usage.requests += 1
            self.usage.tokens += tokens or 0
            self.usage.unknown += tokens is None

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            self._sleep(turn - now)

    def _pause(self, seconds: float) -> None:
        """Delays the requests of all threads, as a rate limit concerns all."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + min(seconds, 10 * MOST_BACKOFF))


class _TooLarge(Exception):
    pass
