"""From the body of a request to the body of its response, whatever carries them."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gve_jax import __version__
from gve_jax.errors import UserError
from gve_jax.gve import GVE
from gve_jax.index import Index
from gve_jax.index.requests import Options
from gve_jax.inputs.user_inputs import read_inputs
from gve_jax.media.item import Item
from gve_jax.retrieval.unit import unit_rows
from gve_jax.serving import search
from gve_jax.serving.batching import Batcher, Encoded
from gve_jax.serving.body import parse_json
from gve_jax.serving.errors import RequestError, bad_request, overloaded
from gve_jax.serving.fetch import Fetcher
from gve_jax.serving.media import Resolver
from gve_jax.serving.metrics import Metrics
from gve_jax.serving.protocols import ModelInfo, Protocol, Result
from gve_jax.serving.requests import EmbedRequest, InputReader, Reference, check_instruction
from gve_jax.storage.digests import json_sha256

T = TypeVar("T")
HELD = 8  # times `max_body`: most bytes of bodies in memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a server allows; fields are the options of `python -m gve_jax.serve`."""

    names: tuple[str, ...] = ("gve",)
    api_key: str | None = None
    merge: bool = False
    batch_size: int = 32
    max_requests: int = 64
    max_body: int = 64 << 20
    max_inputs: int = 2048
    max_media: int = 64
    deadline: float = 120.0
    body_seconds: float = 60.0
    media_root: Path | None = None
    allow_urls: bool = False
    url_bytes: int = 64 << 20
    url_seconds: float = 30.0
    token_ids: bool = False


class Service:
    """Answers requests with a model; `open` and `close` it in the event loop.

    Args:
      model: a loaded model.
      fetcher: of URLs (default: by the settings).
      index: to search, opened with `model` (default: none).
    """

    def __init__(
        self,
        model: GVE,
        settings: Settings,
        fetcher: Fetcher | None = None,
        index: Index | None = None,
    ):
        self.model, self.settings, self.metrics = model, settings, Metrics()
        spec, profile = model.preprocess.spec, model.preprocess.prompt.profile
        self.most_frames = max(pairs for pairs, _ in model.buckets.shapes) * spec.temporal
        self.info = ModelInfo(
            names=settings.names,
            dim=model.embedding_dim,
            shortest=profile.shortest,
            takes_instructions=profile.takes_instructions,
            prompts=model.prompts,
            decode=model.preprocess.prompt.text_of if settings.token_ids else None,
        )
        self.fingerprint = json_sha256(model.fingerprint, sort_keys=True)[:16]
        if fetcher is None and settings.allow_urls:
            fetcher = Fetcher(settings.url_bytes, settings.url_seconds)
        self._resolver = Resolver(settings.media_root, fetcher, self.most_frames)
        # Parsing and writing JSON of megabytes must not hold up other requests.
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="json")
        self.searcher = None if index is None else search.Searcher(index)
        self._requests = self._held = 0
        self.draining = False

    def open(self) -> None:
        self.batcher = Batcher(
            self.model,
            merge=self.settings.merge,
            batch_size=self.settings.batch_size,
            observe=self.metrics.observe_batch,
        )

    def close(self) -> None:
        self.batcher.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._resolver.fetcher is not None:
            self._resolver.fetcher.close()

    @contextlib.contextmanager
    def admit(self) -> Iterator["Admission"]:
        """Counts a request while it is answered.

        Raises:
          RequestError: 429, as many requests as are allowed are being answered.
        """
        if self._requests >= self.settings.max_requests:
            raise overloaded(
                f"the server is answering {self._requests} requests, its maximum: try again"
            )
        self._requests += 1
        self.metrics.waiting.set(self._requests)
        admission = Admission(self)
        try:
            yield admission
        finally:
            admission.release()
            self._requests -= 1
            self.metrics.waiting.set(self._requests)

    def hold(self, count: int) -> None:
        """Counts bytes of bodies; raises RequestError, 429, when there are too many."""
        if count > 0 and self._held + count > HELD * self.settings.max_body:
            raise overloaded("the server holds too many bytes of requests: try again")
        self._held += count
        self.metrics.held.set(self._held)

    async def answer(self, protocol: Protocol, body: bytearray) -> bytes:
        """The JSON of the response.

        Raises:
          RequestError: what is wrong with the request, or that the model failed.
        """
        request = await self._in_thread(self._read, protocol.read, body)
        body.clear()
        items = await self._items(request)
        encoded = await self.batcher.encode(items, request.prompt)
        response = await self._in_thread(self._write, protocol, request, encoded)
        self.metrics.inputs.inc(len(items))
        self.metrics.tokens.inc(sum(encoded.tokens))
        return response

    async def search(self, body: bytearray) -> bytes:
        """The JSON of the response to a search; raises as `answer`."""
        if self.searcher is None:
            raise RequestError(404, "no index is served here: start the server with --index")
        request = await self._in_thread(self._read, search.read, body)
        body.clear()
        if request.embed is None:
            item = await self._in_thread(self.searcher.item, request.query)
        else:
            (item,) = await self._items(request.embed)
        item = await self.batcher.decode(self.searcher.decode, item)
        prompt = self.info.prompts.get("query") if self.info.takes_instructions else None
        encoded = await self.batcher.encode([item], prompt)
        response = await self._in_thread(self._write_hits, request.options, encoded)
        self.metrics.inputs.inc()
        self.metrics.tokens.inc(sum(encoded.tokens))
        return response

    def describe(self) -> dict:
        """The content of /info: the fields of text-embeddings-inference, and ours."""
        spec, settings = self.model.preprocess.spec, self.settings
        return {
            "model_id": self.info.names[0],
            "model_sha": (self.model.source or {}).get("commit"),
            "model_dtype": self.model.config.dtype,
            "model_type": {"embedding": {"pooling": "last_token"}},
            "max_concurrent_requests": settings.max_requests,
            "max_input_length": spec.max_length,
            "max_batch_tokens": settings.batch_size * spec.max_length,
            "max_batch_requests": settings.batch_size,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": True,
            "version": __version__,
            "served_names": list(self.info.names),
            "dim": self.info.dim,
            "shortest_dim": self.info.shortest,
            "profile": spec.profile,
            "modalities": ["text", "image", "video"],
            "prompts": sorted(self.info.prompts) if self.info.takes_instructions else [],
            "batching": "all requests" if settings.merge else "per request",
            "max_body": settings.max_body,
            "max_media": settings.max_media,
            "index": self.searcher and self.searcher.describe(),
            "sandbox": self.model.sandbox,
            "fingerprint": self.fingerprint,
            "fingerprint_fields": self.model.fingerprint,
        }

    def _in_thread(self, function, *args):
        return asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    def _read(self, read: Callable[[dict, ModelInfo, InputReader], T], body: bytearray) -> T:
        settings = self.settings
        reader = InputReader(settings.max_inputs, settings.max_media, self.most_frames)
        request = read(parse_json(body), self.info, reader)
        if isinstance(request, EmbedRequest):
            request.references = reader.references
        return request

    async def _items(self, request: EmbedRequest) -> list[Item]:
        found: dict[Reference, Any] = {}
        local = [each for each in request.references if not self._resolver.is_remote(each)]
        remote = [each for each in request.references if self._resolver.is_remote(each)]
        # All of them before any download: a request with a mistake downloads nothing.
        found |= await self._in_thread(lambda: {r: self._resolver.resolve(r) for r in local})
        loop = asyncio.get_running_loop()
        downloads = [
            loop.run_in_executor(self._resolver.fetcher.pool, self._download, each)
            for each in remote
        ]
        try:
            found |= dict(zip(remote, await asyncio.gather(*downloads), strict=True))
        finally:
            while downloads:  # emptied: their errors hold this frame
                downloads.pop().cancel()
        return await self._in_thread(self._make_items, request, found)

    def _download(self, reference: Reference) -> bytes:
        try:
            return self._resolver.resolve(reference)
        except RequestError as error:
            raise RequestError(
                error.status, f"{reference.where}: {error.message}", reference.where
            ) from None

    def _make_items(self, request: EmbedRequest, found: dict[Reference, Any]) -> list[Item]:
        try:
            items = read_inputs([_replace(value, found) for value in request.inputs])
        except UserError as error:
            raise bad_request(str(error), "input") from None
        request.inputs, request.references = [], []
        for index, item in enumerate(items):
            check_instruction(item.instruction, f"input {index}: instruction")
            if item.instruction and not self.info.takes_instructions:
                raise bad_request(f"input {index}: {self.info.names[0]} takes no instructions")
        return items

    def _write(self, protocol: Protocol, request: EmbedRequest, encoded: Encoded) -> bytes:
        most = self.model.preprocess.spec.max_length
        if request.refuse_truncated:
            for index, count in enumerate(encoded.tokens):
                if count >= most:
                    raise bad_request(f"input {index} has {most:,} tokens or more, the maximum")
        vectors = encoded.hidden[:, : request.dimensions]
        if request.normalize:
            vectors = unit_rows(vectors, "the model")
        response = protocol.write(request, self.info, Result(vectors, encoded.tokens))
        return to_json(response)

    def _write_hits(self, options: Options, encoded: Encoded) -> bytes:
        return to_json(self.searcher.answer(options, unit_rows(encoded.hidden, "the model")[0]))


class Admission:
    """The bytes that one request holds."""

    def __init__(self, service: Service):
        self._service, self._bytes = service, 0

    def hold(self, count: int) -> None:
        self._service.hold(count)
        self._bytes += count

    def release(self) -> None:
        self._service.hold(-self._bytes)
        self._bytes = 0


def to_json(value: Any) -> bytes:
    """ASCII JSON: messages may repeat half of a surrogate pair that a client sent."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _replace(value: Any, found: dict[Reference, Any]) -> Any:
    """A value with what its references refer to."""
    if isinstance(value, Reference):
        return found[value]
    if isinstance(value, list):
        return [_replace(each, found) for each in value]
    if isinstance(value, dict):
        return {key: _replace(each, found) for key, each in value.items()}
    return value
