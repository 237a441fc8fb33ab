"""An embedder behind a server as an encoder of `evals.uvrb`: `--server URL --model NAME`."""

import base64
import io
import mimetypes
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from PIL import Image

from evals.servers.apis import APIS, Content
from evals.servers.client import Client, Refused, Usage
from evals.servers.options import Options
from evals.uvrb.embeddings import PartlyEncoded
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.errors import MediaError
from gve_jax.media.item import as_item
from gve_jax.media.quarantine import failure
from gve_jax.media.sandbox import Failure, Sandbox
from gve_jax.retrieval.tiles import NORM_TOLERANCE

CHUNK = 64
QUALITY = 95  # of the JPEGs that frames are sent as
_PROBES = "a red ball rolls from left to right", "two people talk in a kitchen"


class ServerEncoder:
    """Sends each item to a server. Implements `Encoder`; see docs/uvrb.md.

    Args:
      model: its name on the server.
      client: of the server.
      options: see `Options`.
      sandbox: reads videos where frames are sent.

    Raises:
      UserError: the server does not answer a text with a vector, or answers in another order.
    """

    def __init__(self, model: str, client: Client, options: Options, sandbox: Sandbox):
        # Items that are embedded and stored together: SIGKILL loses them.
        self.chunk = max(CHUNK, options.concurrency * options.batch)
        self._model, self.client, self._options = model, client, options
        self._api, self._sandbox = APIS[options.api], sandbox
        self._spec = InputSpec(num_frames=options.frames)
        self.embedding_dim: int | None = None
        server = self._probe() or client.url
        self.fingerprint = {
            "framework": "API",
            "server": server,
            "api": options.api,
            "model": model,
            "media": options.media,
            "instruction_as": options.instruction_as,
            "dimensions": options.dimensions,
        }
        if options.media == "frames":
            self.fingerprint["inputs.num_frames"] = options.frames

    @property
    def tokens_encoded(self) -> int | None:
        """Tokens that the server counted; None if it did not count those of every request."""
        return None if self.client.usage.unknown else self.client.usage.tokens

    @property
    def usage(self) -> Usage:
        return self.client.usage

    @property
    def sandbox(self) -> dict | None:
        return self._sandbox.held

    def encode_valid(
        self, inputs: Sequence[dict], ids: Sequence[str], quarantine
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows float32 [N valid, D] and valid bool [N].

        Raises:
          PartlyEncoded: the server failed, or the command was interrupted; it has the items that
            were embedded before.
        """
        found: dict[int, np.ndarray | Failure] = {}
        pool = ThreadPoolExecutor(self._options.concurrency)
        try:
            tasks = {
                pool.submit(self._embed, [inputs[n] for n in group], [ids[n] for n in group]): group
                for group in self._groups(inputs)
            }
            for task in as_completed(tasks):
                found |= zip(tasks[task], task.result(), strict=True)
        except BaseException as error:
            if not isinstance(error, UserError):
                self.client.stop("interrupted")
            pool.shutdown(cancel_futures=True)
            for task, group in tasks.items():
                if task.done() and not task.cancelled() and task.exception() is None:
                    found |= zip(group, task.result(), strict=True)
            done = sorted(found)
            part = self._collect(found, done, inputs, ids, quarantine)
            raise PartlyEncoded(done, *part, reason=error) from error
        finally:
            pool.shutdown()
            self.client.save()
        return self._collect(found, range(len(inputs)), inputs, ids, quarantine)

    def _collect(self, found, indices, inputs, ids, quarantine) -> tuple[np.ndarray, np.ndarray]:
        rows, valid = [], []
        for index in indices:
            one = found[index]
            valid.append(not isinstance(one, Failure))
            if isinstance(one, Failure):
                item = as_item(inputs[index])
                line = failure(ids[index], item, one.reason, one.seconds, one.retry)
                quarantine.record(**line)
            else:
                rows.append(one)
        return np.array(rows, np.float32).reshape(-1, self.embedding_dim), np.array(valid, bool)

    def _groups(self, inputs: Sequence[dict]) -> Iterator[list[int]]:
        """Indices of the items of each request: texts of one side together, media alone."""
        waiting: dict[bool, list[int]] = {True: [], False: []}
        for index, item in enumerate(inputs):
            if item.get("image") or item.get("video"):
                yield [index]
                continue
            group = waiting["instruction" in item]
            group.append(index)
            if len(group) == self._options.batch:
                yield list(group)
                group.clear()
        yield from (group for group in waiting.values() if group)

    def _embed(self, items: Sequence[dict], ids: Sequence[str]) -> list[np.ndarray | Failure]:
        """The vector of each item of a request, or why there is none."""
        began = time.perf_counter()
        try:
            contents = [self._content(item) for item in items]
            vectors = self._request(contents)
        except (MediaError, OSError) as error:
            retry = getattr(error, "retry", True)
            return [Failure(str(error), time.perf_counter() - began, retry)]  # media come alone
        except Refused as error:
            if len(items) > 1 and not error.retry:  # one of them may be the reason
                return [self._embed([item], [id])[0] for item, id in zip(items, ids, strict=True)]
            reason = f"the server: {error}"
            return [Failure(reason, time.perf_counter() - began, error.retry)] * len(items)
        return [self._unit(vector) for vector in vectors]

    def _unit(self, vector: np.ndarray) -> np.ndarray | Failure:
        if not np.isfinite(vector).all():
            return Failure("the server: a vector with NaN or infinite numbers", 0.0, True)
        length = np.linalg.norm(vector)
        if not length or not np.isfinite(length):
            return Failure("the server: a vector without a direction", 0.0, True)
        # Unit vectors stay as they are: rounding again could change ranks.
        return vector if abs(length - 1) <= NORM_TOLERANCE else vector / length

    def _request(self, contents: Sequence[Content]) -> np.ndarray:
        body = self._api.write(self._model, contents, self._options.dimensions)
        return self._read(self.client.post(body)[0], len(contents))

    def _read(self, answer: dict, count: int) -> np.ndarray:
        try:
            vectors = self._api.read(answer, count)
        except ValueError as error:
            raise self.client.stop(f"the server answered with {error}") from error
        wanted = self.embedding_dim or self._options.dimensions or vectors.shape[1]
        if vectors.shape[1] != wanted:
            raise self.client.stop(
                f"the server answered with a vector of {vectors.shape[1]} dimensions, not {wanted}"
            )
        return vectors

    def _probe(self) -> str | None:
        """Sends texts to learn the dimensions and, with batches, whether their order is kept.
        Returns the fingerprint that servers of this library state."""
        contents = [Content((("text", text),), "", False) for text in _PROBES]
        try:
            body = self._api.write(self._model, contents[:1], self._options.dimensions)
            answer, headers = self.client.post(body)
            first = self._read(answer, 1)
            self.embedding_dim = first.shape[1]
            if self._options.batch > 1:
                second, both = self._request(contents[1:]), self._request(contents)
                alone = np.concatenate([first, second])
                if np.linalg.norm(both - alone) > np.linalg.norm(both[::-1] - alone):
                    raise self.client.stop("the server answers a batch in another order: --batch 1")
        except Refused as error:
            raise self.client.stop(f"no vector of a text: {error}") from error
        return headers.get("x-gve-fingerprint")

    def _content(self, item: dict) -> Content:
        """Raises MediaError for media that cannot be read."""
        instruction, text = item.get("instruction") or "", item.get("text") or ""
        parts = []
        if item.get("video"):
            parts += self._video(item)
        if item.get("image"):
            parts.append(("image", _data_url(Path(item["image"]), "image/jpeg")))
        if self._options.instruction_as == "text" and instruction:
            text = f"{instruction}\n{text}" if text else instruction
        if text:
            parts.append(("text", text))
        system = instruction if self._options.instruction_as == "system" else ""
        return Content(tuple(parts), system, "instruction" in item)

    def _video(self, item: dict) -> list[tuple[str, str]]:
        if self._options.media == "video":
            path = Path(item["video"])
            if path.is_dir():
                raise MediaError(f"{path}: a folder of frames; --send frames sends it")
            return [("video", _data_url(path, "video/mp4"))]
        only = {key: item[key] for key in ("video", "frame_order", "fps") if key in item}
        clip = self._sandbox.frames(as_item(only), self._spec)
        return [("image", _jpeg(frame)) for frame in clip.frames]


def _data_url(path: Path, default: str) -> str:
    kind = mimetypes.guess_type(path.name)[0] or default
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _jpeg(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
