"""Asks a vision-language model behind an OpenAI-compatible server; answers are kept on disk."""

import asyncio
import base64
import dataclasses
import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jsonschema

from data.pairs.rows import Reject
from data.uvrd import text
from data.uvrd.prompts import Prompt
from data.uvrd.settings import Settings
from gve_jax.errors import UserError

KEY = "OPENAI_API_KEY"  # the variable of the environment that holds the server's key
_MOST_BYTES = 1 << 20  # of an answer
_AGAIN = (408, 409, 425, 429)  # and 5xx
_STOP = (401, 403, 404)  # nothing that this run sends will be answered
_FEW = 20  # calls, of which the share of failed ones is taken at least


@dataclasses.dataclass(frozen=True)
class Answer:
    value: dict
    key: str  # of the request in the cache
    tries: int


@dataclasses.dataclass
class Usage:
    """What was asked and what it took; `calls` went to the server, `cached` did not."""

    calls: int = 0
    cached: int = 0
    attempts: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: dict) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + other.get(field.name, 0))

    def cost(self, price_in: float, price_out: float) -> float:
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


class Server:
    """`async with Server(...)`; `ask` may run many times at once.

    Args:
      url: up to and with `/v1`.
      model: its name there.
      settings: what is asked and how.
      cache: the folder of answers, valid ones and those that were rejected.
    """

    def __init__(
        self, url: str, model: str, settings: Settings, cache: Path, sleep: Callable = asyncio.sleep
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--server {url!r} is no http:// or https:// address")
        self.url, self.model, self.settings = url.rstrip("/"), model, settings
        self._cache, self._sleep = cache, sleep
        self._local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self.usage, self.faults = Usage(), Counter()
        self._jitter, self._stopped = random.Random(), None

    async def __aenter__(self) -> "Server":
        calls, key = self.settings.calls, os.environ.get(KEY)
        context = httpx.create_ssl_context()
        # A client a call at once: one for all looks through all of its connections for each call,
        # several times over. The last one used comes first: it has a connection that is open.
        self._free: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        self._clients = [
            httpx.AsyncClient(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=calls.seconds,
                verify=context,
                limits=httpx.Limits(max_connections=1),
                trust_env=not self._local,  # no proxy is between this machine and itself
            )
            for _ in range(calls.concurrency)
        ]
        for client in self._clients:
            self._free.put_nowait(client)
        return self

    async def __aexit__(self, *exception) -> None:
        for client in self._clients:
            await client.aclose()

    async def check(self) -> None:
        """Raises UserError, in one line, if no server answers, or not with this model."""
        try:
            async with asyncio.timeout(min(30.0, self.settings.calls.seconds)):
                response = await self._clients[0].get(f"{self.url}/models")
            known = [str(one["id"]) for one in response.json()["data"]]
        except (httpx.HTTPError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise UserError(f"--server {self.url}: no answer ({why})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--server {self.url}: status {response.status_code} and no list of models: "
                "another kind of server, or another path"
            ) from error
        if self.model not in known:
            raise UserError(
                f"--model {self.model!r} is not at {self.url}; it has {', '.join(known[:8])}"
            )

    async def ask(
        self,
        prompt: Prompt,
        slots: dict[str, object],
        images: list[bytes],
        fault: Callable[[dict], str] = lambda value: "",
    ) -> Answer:
        """A valid answer, of the cache where it is there.

        Args:
          prompt: what is asked.
          slots: of its template.
          images: JPEG or PNG.
          fault: why an answer that fits the schema is none; "" if it is one.

        Raises:
          Reject: not one of `server.tries` answers is valid; the last one's reason. Or the server
            says that this very request cannot be answered, or nothing after all attempts.
          UserError: the server wants nothing of us; too many calls have failed.
        """
        tries = self.settings.server.tries
        for number in range(tries):
            body = self._body(prompt, slots, images, number)
            key = hashlib.sha256(body).hexdigest()[:32]
            kept = self._read(key)
            if kept is None:
                client = await self._free.get()
                try:
                    kept = await self._call(client, body)
                finally:
                    self._free.put_nowait(client)
                self._write(key, kept)
                self.usage.calls += 1
                self.usage.prompt_tokens += kept["usage"][0]
                self.usage.completion_tokens += kept["usage"][1]
            else:
                self.usage.cached += 1
            try:
                value = parse(kept["text"], kept["finish"], prompt)
                if why := fault(value):
                    raise Reject("answer: " + why.partition(":")[0], why)
                return Answer(value, key, number + 1)
            except Reject as reject:
                self.faults[reject.reason] += 1
                last = reject
        raise last

    def _body(self, prompt: Prompt, slots: dict, images: list[bytes], number: int) -> bytes:
        asked = self.settings.server
        parts: list[dict] = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images
        ]
        question = prompt.user.substitute({k: str(v) for k, v in slots.items()})
        if asked.schema == "prompt":
            question += "\nThe object's JSON schema: " + json.dumps(prompt.schema)
        parts.append({"type": "text", "text": question})
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": parts},
            ],
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "max_tokens": asked.max_tokens,
            "seed": self.settings.seed + number,  # another try is another answer
        }
        if asked.schema == "json_schema":
            named = {"name": prompt.name, "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif asked.schema == "json_object":
            body["response_format"] = {"type": "json_object"}
        return json.dumps(body).encode()

    async def _call(self, client: httpx.AsyncClient, body: bytes) -> dict:
        calls = self.settings.calls
        if self._stopped:
            raise self._stopped
        wait = 0.0
        for attempt in range(calls.attempts):
            if attempt:
                pause = calls.backoff * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1)
                await self._sleep(min(max(pause, wait), calls.most_backoff))
            self.usage.attempts += 1
            why, wait = "", 0.0
            try:
                async with asyncio.timeout(calls.seconds):
                    status, headers, data = await self._post(client, body)
            except TimeoutError:
                why = "no answer in time"
            except httpx.HTTPError as error:
                why = "no connection" if isinstance(error, httpx.TransportError) else str(error)
            else:
                if status == 200:
                    try:
                        return _content(data)
                    except (ValueError, KeyError, TypeError, IndexError):
                        why = "an answer that is none"
                elif status in _AGAIN or status >= 500:
                    why, wait = f"status {status}", _retry_after(headers)
                elif status in _STOP:
                    self._stopped = UserError(
                        f"--server {self.url}: status {status}: {_said(data)}"
                    )
                    raise self._stopped
                else:
                    raise Reject(f"server: status {status}", _said(data))
            self.faults[f"call: {why}"] += 1
        self.usage.failed += 1
        done = self.usage.calls + self.usage.failed
        if self.usage.failed > calls.most_failures * max(done, _FEW):
            self._stopped = UserError(
                f"--server {self.url}: {self.usage.failed} of {done} calls failed, the last with "
                f"{why!r} (calls.most_failures {calls.most_failures:g}); repeat the command to go "
                "on"
            )
            raise self._stopped
        raise Reject(f"server: {why}", f"after {calls.attempts} attempts")

    async def _post(
        self, client: httpx.AsyncClient, body: bytes
    ) -> tuple[int, httpx.Headers, bytes]:
        headers, data = {"Content-Type": "application/json"}, bytearray()
        url = f"{self.url}/chat/completions"
        async with client.stream("POST", url, content=body, headers=headers) as response:
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > _MOST_BYTES:
                    raise httpx.DecodingError(f"an answer above {_MOST_BYTES} bytes")
            return response.status_code, response.headers, bytes(data)

    def _path(self, key: str) -> Path:
        return self._cache / key[:2] / f"{key}.json"

    def _read(self, key: str) -> dict | None:
        try:
            kept = json.loads(self._path(key).read_bytes())
            return kept if {"text", "finish", "usage"} <= kept.keys() else None
        except (OSError, ValueError, AttributeError):
            return None  # a damaged one is asked again

    def _write(self, key: str, kept: dict) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{key}.{os.getpid()}.part")  # other workers may write the same
        part.write_text(json.dumps(kept))
        os.replace(part, path)


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds; 0 without one, and for a date, which needs clocks that agree."""
    try:
        return max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0


def _said(data: bytes) -> str:
    said = " ".join(data[:300].decode(errors="replace").split())
    return "".join(c if c.isprintable() else "?" for c in said)


def _content(data: bytes) -> dict:
    """What is kept of a response: its text, why it ended, tokens in and out."""
    response = json.loads(data)
    choice = response["choices"][0]
    message, usage = choice["message"], response.get("usage") or {}
    said = message.get("content")
    if said is None:
        said = message.get("refusal") or ""
    if not isinstance(said, str):
        raise ValueError("content is no text")
    tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    return {"text": said, "finish": str(choice.get("finish_reason") or ""), "usage": tokens}


def parse(said: str, finish: str, prompt: Prompt) -> dict:
    """The object of an answer, which may stand in a fence or after a model's thoughts.

    Raises:
      Reject: a refusal, prose, half JSON, an object that does not fit the schema.
    """
    said = re.sub(r"^.*</think>", "", said, flags=re.DOTALL).strip()
    if match := re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", said, re.DOTALL):
        said = match[1]
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        if text.is_refusal(said):
            raise Reject("answer: refusal", said[:120]) from None
        half = finish == "length" or said.count("{") > said.count("}")
        raise Reject("answer: half JSON" if half else "answer: prose", said[:120]) from None
    if error := jsonschema.exceptions.best_match(prompt.validator.iter_errors(value)):
        raise Reject("answer: another schema", error.message[:200])
    return value
