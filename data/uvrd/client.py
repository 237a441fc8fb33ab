"""Client for a vision-language model behind an OpenAI-compatible server, with a cache on disk."""

import asyncio
import base64
import dataclasses
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2  # the HTTP library of openai
import jsonschema
import openai
from openai.types.chat import ChatCompletion

from data.http_errors import FATAL, excerpt, is_retried, retry_after
from data.uvrd import text
from data.uvrd.prompts import Prompt
from data.uvrd.settings import Settings
from gve_jax.errors import UserError
from gve_jax.storage.digests import json_sha256
from gve_jax.storage.files import atomic_write
from gve_jax.streams.rows import Reject

API_KEY = "OPENAI_API_KEY"  # environment variable with the server's key; optional
_MAX_RESPONSE_BYTES = 1 << 20
_MALFORMED = (AttributeError, RecursionError, TypeError, ValueError)  # of a list of models
_MIN_CALLS = 20  # the share of failed calls is taken of at least this many


@dataclasses.dataclass(frozen=True)
class Answer:
    value: dict
    key: str  # of the request in the cache
    tries: int


@dataclasses.dataclass
class Usage:
    """Requests and tokens: `calls` were answered by the server, `cached` from the cache."""

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


class ModelClient:
    """`async with ModelClient(...) as client`; `ask` may run concurrently.

    openai's own retries are off: their backoff cannot be configured, they refuse a long
    `Retry-After`, and failed attempts could not be counted.

    Args:
      url: base URL, including `/v1`.
      model: the model's name on that server.
      settings: prompts' parameters, sampling, retries.
      cache: folder of responses, including those that were rejected.
    """

    def __init__(
        self, url: str, model: str, settings: Settings, cache: Path, sleep: Callable = asyncio.sleep
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--server {url!r} must be an http:// or https:// URL")
        self.url, self.model, self.settings = url.rstrip("/"), model, settings
        self._cache, self._sleep = cache, sleep
        self._local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self.usage, self.faults = Usage(), Counter()
        self._fatal: UserError | None = None

    async def __aenter__(self) -> "ModelClient":
        calls, key = self.settings.calls, os.environ.get(API_KEY)
        # Identity, so that _limit_body sees the real size. Without a key no header is sent.
        self._headers = {"Accept-Encoding": "identity"}
        self._headers |= {} if key else {"Authorization": openai.omit}
        self._slots = asyncio.Semaphore(calls.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=key or "none",  # openai insists on one
            timeout=calls.seconds,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not self._local,  # no proxy between this machine and itself
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=calls.concurrency),
                event_hooks={"response": [_limit_body]},
            ),
        )
        return self

    async def __aexit__(self, *exception) -> None:
        await self._client.close()

    async def check(self) -> None:
        """Raises UserError if the server does not answer or does not have the model."""
        try:
            async with asyncio.timeout(min(30.0, self.settings.calls.seconds)):
                models = await self._client.models.list(extra_headers=self._headers)
            known = [str(model.id) for model in models.data]
        except (TimeoutError, openai.APIConnectionError) as error:
            reason = str(error.__cause__ or error) or type(error).__name__
            raise UserError(f"--server {self.url}: no answer ({reason})") from error
        except (openai.APIStatusError, *_MALFORMED) as error:
            status = getattr(error, "status_code", 200)
            raise UserError(
                f"--server {self.url}: status {status} without a list of models: not an "
                "OpenAI-compatible server, or the wrong path"
            ) from error
        if self.model not in known:
            raise UserError(
                f"--model {self.model!r} is not on {self.url}; it has {', '.join(known[:8])}"
            )

    async def ask(
        self,
        prompt: Prompt,
        slots: dict[str, object],
        images: list[bytes],
        fault: Callable[[dict], str] = lambda value: "",
    ) -> Answer:
        """Returns a valid answer, from the cache where possible.

        Args:
          slots: values for the prompt's template.
          images: JPEG or PNG.
          fault: returns why an answer that fits the schema is invalid, "" if it is valid.

        Raises:
          Reject: none of `server.tries` answers is valid (with the reason of the last), the server
            refuses this request, or all attempts failed.
          UserError: the server refuses every request, or too many calls have failed.
        """
        for seed_offset in range(self.settings.server.tries):
            body = self._body(prompt, slots, images, seed_offset)
            key = json_sha256(body)[:32]
            response = self._read(key)
            if response is None:
                async with self._slots:
                    response = await self._call(body)
                atomic_write(
                    self._path(key), lambda file, r=response: file.write(json.dumps(r).encode())
                )
                self.usage.calls += 1
                self.usage.prompt_tokens += response["usage"][0]
                self.usage.completion_tokens += response["usage"][1]
            else:
                self.usage.cached += 1
            try:
                value = parse(response["text"], response["finish"], prompt)
                if why := fault(value):
                    raise Reject("answer: " + why.partition(":")[0], why)
                return Answer(value, key, seed_offset + 1)
            except Reject as reject:
                self.faults[reject.reason] += 1
                last = reject
        raise last

    def _body(self, prompt: Prompt, slots: dict, images: list[bytes], seed_offset: int) -> dict:
        sampling = self.settings.server
        parts: list[dict] = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images
        ]
        question = prompt.user.substitute({k: str(v) for k, v in slots.items()})
        if sampling.schema == "prompt":
            question += "\nThe object's JSON schema: " + json.dumps(prompt.schema)
        parts.append({"type": "text", "text": question})
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": parts},
            ],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": self.settings.seed + seed_offset,
        }
        if sampling.schema == "json_schema":
            named = {"name": prompt.name, "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif sampling.schema == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def _call(self, body: dict) -> dict:
        calls, wait = self.settings.calls, 0.0
        if self._fatal:
            raise self._fatal
        for attempt in range(calls.attempts):
            if attempt:
                backoff = calls.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1)
                await self._sleep(min(max(backoff, wait), calls.most_backoff))
            self.usage.attempts += 1
            wait = 0.0
            try:
                async with asyncio.timeout(calls.seconds):
                    # Not chat.completions.create: it looks up a type for every nested value of the
                    # body, which doubles the time of a call.
                    completion = await self._client.post(
                        "/chat/completions",
                        body=body,
                        cast_to=ChatCompletion,
                        options={"headers": self._headers},
                    )
                return _content(completion)
            except (TimeoutError, openai.APITimeoutError):
                why = "no answer in time"
            except openai.APIStatusError as error:
                why, detail = f"status {error.status_code}", excerpt(error.response.content)
                if error.status_code in FATAL:
                    self._fatal = UserError(f"--server {self.url}: {why}: {detail}")
                    raise self._fatal from None
                if not is_retried(error.status_code):
                    raise Reject(f"server: {why}", detail) from None
                wait = retry_after(error.response.headers.get("Retry-After"))
            except openai.APIConnectionError as error:
                cause = error.__cause__
                why = str(cause) if isinstance(cause, httpx2.DecodingError) else "no connection"
            except (RecursionError, ValueError):
                why = "malformed response"
            self.faults[f"call: {why}"] += 1
        self.usage.failed += 1
        done = self.usage.calls + self.usage.failed
        if self.usage.failed > calls.most_failures * max(done, _MIN_CALLS):
            self._fatal = UserError(
                f"--server {self.url}: {self.usage.failed} of {done} calls failed, the last with "
                f"{why!r} (calls.most_failures {calls.most_failures:g}); repeat the command to "
                "resume"
            )
            raise self._fatal
        raise Reject(f"server: {why}", f"after {calls.attempts} attempts")

    def _path(self, key: str) -> Path:
        return self._cache / key[:2] / f"{key}.json"

    def _read(self, key: str) -> dict | None:
        try:
            response = json.loads(self._path(key).read_bytes())
            return response if {"text", "finish", "usage"} <= response.keys() else None
        except (OSError, ValueError, AttributeError):
            return None  # damaged: the request is sent again


class _LimitedStream(httpx2.AsyncByteStream):
    """A response's body, which fails past _MAX_RESPONSE_BYTES."""

    def __init__(self, stream: httpx2.AsyncByteStream):
        self._stream = stream

    async def __aiter__(self):
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > _MAX_RESPONSE_BYTES:
                raise httpx2.DecodingError(f"a response above {_MAX_RESPONSE_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _limit_body(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx2.DecodingError("a compressed response, which was not accepted")
    response.stream = _LimitedStream(response.stream)


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _content(completion: ChatCompletion) -> dict:
    """What the cache stores of a response: text, finish reason, tokens in and out.

    Raises:
      ValueError: a field is missing or of another type; openai does not validate responses.
    """
    try:
        choice, usage = completion.choices[0], completion.usage
        content = choice.message.content
        if content is None:
            content = choice.message.refusal or ""
        tokens = [usage.prompt_tokens, usage.completion_tokens] if usage else [0, 0]
        tokens = [int(count or 0) for count in tokens]
    except (AttributeError, IndexError, OverflowError, TypeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, str):
        raise ValueError("content is not a string")
    return {"text": content, "finish": str(choice.finish_reason or ""), "usage": tokens}


def parse(content: str, finish: str, prompt: Prompt) -> dict:
    """Returns the JSON object of an answer, also out of a code fence or after reasoning.

    Raises:
      Reject: a refusal, prose, truncated JSON, an object that does not fit the schema.
    """
    content = re.sub(r"^.*</think>", "", content, flags=re.DOTALL).strip()
    if match := re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", content, re.DOTALL):
        content = match[1]
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        if text.is_refusal(content):
            raise Reject("answer: refusal", content[:120]) from None
        half = finish == "length" or content.count("{") > content.count("}")
        raise Reject("answer: half JSON" if half else "answer: prose", content[:120]) from None
    if error := jsonschema.exceptions.best_match(prompt.validator.iter_errors(value)):
        raise Reject("answer: another schema", error.message[:200])
    return value
