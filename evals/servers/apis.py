"""Requests and responses of the APIs of embedding servers.

`openai` is vLLM's form of OpenAI's API, in which an input is a conversation (`messages`): OpenAI's
own form has no place for images and videos. Shapes as of openai 3.57, vLLM late 2026, cohere 7.3,
voyageai 0.5.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Content:
    """One input.

    parts: ("text", a text), ("image", a data URL) or ("video", a data URL), in order.
    system: the system message, "" for none.
    is_query: False for a document.
    """

    parts: tuple[tuple[str, str], ...]
    system: str
    is_query: bool


@dataclass(frozen=True)
class Api:
    """One API.

    Attributes:
      path: of its requests, below the server's URL.
      key: environment variable with the API key.
      takes_video: whether an input may have a video.
      takes_system: whether an input may have a system message.
      write: (model, inputs, dimensions or None) -> body. All inputs are queries, or none is.
      vectors: response -> its list of vectors.
    """

    path: str
    key: str
    takes_video: bool
    takes_system: bool
    write: Callable[[str, Sequence[Content], int | None], dict]
    vectors: Callable[[Mapping], list]

    def read(self, response: Mapping, count: int) -> np.ndarray:
        """Vectors float64 [count, D] of a response, in the order of the inputs.

        Raises:
          ValueError: a response of another form, or with other vectors; the message continues
            "the server answered with".
        """
        try:
            rows = self.vectors(response)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("JSON that is not a response of this API") from error
        if len(rows) != count:
            raise ValueError(f"{len(rows)} vectors to {count} inputs")
        decoded = [_numbers(row) for row in rows]
        if len({row.shape for row in decoded}) != 1:
            raise ValueError("vectors of different lengths")
        return np.stack(decoded)


def tokens_of(response: Mapping) -> int | None:
    """Tokens that a response counts, in the fields of any of the APIs; None if it has none."""
    places = (
        ("usage", "total_tokens"),
        ("usage", "prompt_tokens"),
        ("meta", "billed_units", "input_tokens"),
        ("meta", "tokens", "input_tokens"),
    )
    for place in places:
        value = response
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return int(value)
    return None


def _numbers(row) -> np.ndarray:
    try:
        if isinstance(row, str):
            return np.frombuffer(base64.b64decode(row, validate=True), "<f4").astype(np.float64)
        array = np.array(row)
    except ValueError as error:
        raise ValueError("a vector that is not a list of numbers") from error
    if array.ndim != 1 or not array.size or array.dtype.kind not in "fi":
        raise ValueError("a vector that is not a list of numbers")
    return array.astype(np.float64)


def _write_openai(model: str, inputs: Sequence[Content], dimensions: int | None) -> dict:
    conversations = []
    for one in inputs:
        parts = [
            {"type": "text", "text": value}
            if kind == "text"
            else {"type": f"{kind}_url", f"{kind}_url": {"url": value}}
            for kind, value in one.parts
        ]
        system = [{"role": "system", "content": one.system}] if one.system else []
        conversations.append([*system, {"role": "user", "content": parts}])
    # vLLM took only one conversation a request for long, so that one is not put into a list.
    messages = conversations[0] if len(conversations) == 1 else conversations
    body = {"model": model, "messages": messages, "encoding_format": "float"}
    return body | ({"dimensions": dimensions} if dimensions else {})


def _write_cohere(model: str, inputs: Sequence[Content], dimensions: int | None) -> dict:
    def part(kind: str, value: str) -> dict:
        if kind == "text":
            return {"type": "text", "text": value}
        return {"type": "image_url", "image_url": {"url": value}}

    body = {
        "model": model,
        "input_type": "search_query" if inputs[0].is_query else "search_document",
        "embedding_types": ["float"],
        "inputs": [{"content": [part(*one) for one in content.parts]} for content in inputs],
    }
    return body | ({"output_dimension": dimensions} if dimensions else {})


def _write_voyage(model: str, inputs: Sequence[Content], dimensions: int | None) -> dict:
    def part(kind: str, value: str) -> dict:
        name = kind if kind == "text" else f"{kind}_base64"
        return {"type": name, name: value}

    body = {
        "model": model,
        "input_type": "query" if inputs[0].is_query else "document",
        "inputs": [{"content": [part(*one) for one in content.parts]} for content in inputs],
    }
    return body | ({"output_dimension": dimensions} if dimensions else {})


def _indexed(response: Mapping) -> list:
    """The vectors of `data`, ordered by `index`, which a server may return in any order."""
    data = response["data"]
    order = [one.get("index", number) for number, one in enumerate(data)]
    if sorted(order) != list(range(len(data))):
        raise ValueError(f"the indices {order[:8]} for {len(data)} vectors")
    return [data[order.index(number)]["embedding"] for number in range(len(data))]


APIS = {
    "openai": Api("/v1/embeddings", "OPENAI_API_KEY", True, True, _write_openai, _indexed),
    "cohere": Api(
        "/v2/embed",
        "CO_API_KEY",
        False,
        False,
        _write_cohere,
        lambda response: response["embeddings"]["float"],
    ),
    "voyage": Api(
        "/v1/multimodalembeddings", "VOYAGE_API_KEY", True, False, _write_voyage, _indexed
    ),
}
