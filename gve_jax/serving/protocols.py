"""The APIs that a server speaks: each reads its requests into an `EmbedRequest` and writes vectors
and errors in its own form.

Request and response shapes are those of OpenAI (openai 3.57), vLLM's `messages` (late 2026), Cohere
v2 (cohere 7.3), Voyage (voyageai 0.5) and text-embeddings-inference.
"""

import base64
import dataclasses
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from gve_jax.errors import UserError
from gve_jax.inputs.instructions import choose_instruction
from gve_jax.retrieval.quantization import quantize_embeddings
from gve_jax.serving.body import json_type
from gve_jax.serving.errors import RequestError, bad_request
from gve_jax.serving.requests import EmbedRequest, Fields, InputReader, check_instruction

_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "passage", "search_document", "retrieval.passage")
_OTHER = ("classification", "clustering", "image", "text-matching", "separation")
_RANGES = (
    "vectors of 8-bit integers need ranges that are fixed for a corpus: take floats, and use "
    "gve_jax.retrieval.quantization"
)
_TOKEN_IDS = (
    "token ids are refused: ids of another tokenizer, such as tiktoken's, would be embedded as "
    "another text. Send texts (LangChain: check_embedding_ctx_length=False), or start the server "
    "with --token-ids if the ids are of this model's tokenizer"
)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What requests are checked against.

    Attributes:
      names: names of the model that clients may use; the first is written to responses.
      dim: dimensions of its vectors.
      shortest: fewest leading dimensions that are vectors, None for a model without Matryoshka
        training.
      takes_instructions: whether its prompt has a place for an instruction.
      prompts: instructions by name; "query" and "document" are the defaults of queries, documents.
      decode: the text of token ids; None refuses them.
    """

    names: tuple[str, ...]
    dim: int
    shortest: int | None
    takes_instructions: bool
    prompts: dict[str, str]
    decode: Callable[[list[int]], str] | None = None


@dataclasses.dataclass
class Result:
    """Vectors float32 [N, D] of the inputs of a request, and their numbers of tokens."""

    vectors: np.ndarray
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One API.

    Attributes:
      path: of its requests.
      read: (body, model, reader of inputs) -> request.
      write: (request, model, result) -> JSON.
      error: error -> JSON.
    """

    path: str
    read: Callable[[dict, ModelInfo, InputReader], EmbedRequest]
    write: Callable[[EmbedRequest, ModelInfo, Result], Any]
    error: Callable[[RequestError], dict]


# OpenAI and vLLM


def openai_error(error: RequestError) -> dict:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    fields = {"message": error.message, "type": kinds.get(error.status, kind)}
    return {"error": fields | {"param": error.param, "code": error.code or str(error.status)}}


def _read_openai(body: dict, model: ModelInfo, reader: InputReader) -> EmbedRequest:
    fields = Fields(body)
    _check_model(fields, model)
    given = fields.take("input", (str, list, dict))
    inputs = read_inputs_of(given, fields.take("messages", list), model, reader)
    frames = fields.take("media_io_kwargs", dict)
    if frames is not None:
        inputs = _with_frames(inputs, frames, reader)
    encoding = fields.choice("encoding_format", ("float", "base64"), "float")
    dtype = fields.choice("output_dtype", ("float", "binary", "ubinary", "int8", "uint8"), "float")
    if dtype in ("int8", "uint8"):
        raise bad_request(_RANGES, "output_dtype")
    truncates = fields.take("truncation", bool, True)
    request = EmbedRequest(
        inputs,
        prompt=_read_prompt(fields, model),
        dimensions=_read_dimensions(fields, model, "dimensions", "output_dimension"),
        refuse_truncated=not truncates,
        output=(encoding, dtype),
    )
    # Fields of vLLM: those that would change the prompt or the bytes are accepted where they do
    # not.
    fields.refuse("embed_dtype", "vectors are float32", "float32", "float")
    fields.refuse("endianness", "numbers are little-endian", "native", "little")
    fields.refuse("normalize", "vectors always have unit length", True)
    fields.refuse("use_activation", "vectors always have unit length", True)
    fields.refuse("add_special_tokens", "the model's profile decides the prompt", True)
    fields.refuse("add_generation_prompt", "the model's profile decides the prompt", False)
    fields.refuse("continue_final_message", "the model's profile decides the prompt", False)
    fields.refuse("chat_template", "the model's profile decides the prompt")
    fields.refuse("chat_template_kwargs", "the model's profile decides the prompt", {})
    fields.refuse("mm_processor_kwargs", "give options beside the medium, such as num_frames", {})
    fields.refuse("truncate_prompt_tokens", "texts are truncated at the model's maximum only", -1)
    fields.refuse("truncation_side", "texts lose their end", "right")
    fields.ignore("user", "store", "metadata", "cache_salt", "priority", "request_id")
    fields.finish()
    return request


def _write_openai(request: EmbedRequest, model: ModelInfo, result: Result) -> dict:
    encoding, dtype = request.output
    rows = result.vectors if dtype == "float" else quantize_embeddings(result.vectors, dtype)
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(row, encoding)}
        for index, row in enumerate(rows)
    ]
    total = sum(result.tokens)
    return {
        "object": "list",
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model.names[0],
        "data": data,
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }


def read_inputs_of(given: Any, messages: Any, model: ModelInfo, reader: InputReader) -> list:
    """The inputs of one of the fields `input` and `messages`.

    Raises:
      RequestError: both or none of them, or a malformed one.
    """
    if (given is None) == (messages is None):
        raise bad_request("give one of input and messages", "input")
    if messages is not None:
        return _read_messages(messages, reader, "messages")
    return _read_input(given, model, reader)


def _read_input(given: str | list | dict, model: ModelInfo, reader: InputReader) -> list:
    if not isinstance(given, list):
        given = [given]
    elif given and all(type(value) is int for value in given):
        given = [given]  # the ids of one text
    reader.check_count(given, "input")
    return [_read_one(value, index, model, reader) for index, value in enumerate(given)]


def _read_one(value: Any, index: int, model: ModelInfo, reader: InputReader):
    where = f"input {index}"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return reader.mapping(value, where)
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        if model.decode is None:
            raise bad_request(_TOKEN_IDS, "input", "token_ids_refused")
        try:
            return model.decode(value)
        except (OverflowError, TypeError, ValueError):
            raise bad_request(f"{where}: not token ids", "input") from None
    if isinstance(value, list):
        return reader.conversation(value, where)
    raise bad_request(f"{where} must be a text, token ids or messages, not {json_type(value)}")


def _read_messages(messages: list, reader: InputReader, name: str) -> list:
    """One conversation, or a list of them."""
    if messages and all(isinstance(entry, list) for entry in messages):
        reader.check_count(messages, name)
        return [reader.conversation(each, f"input {i}") for i, each in enumerate(messages)]
    return [reader.conversation(messages, name)]


def _with_frames(inputs: list, options: dict, reader: InputReader) -> list:
    """vLLM's `media_io_kwargs`: the number of frames, or their rate, of all videos."""
    video = options.get("video") or {}
    if not isinstance(video, dict) or options.keys() - {"video", "image"} or options.get("image"):
        raise bad_request("media_io_kwargs may have video only", "media_io_kwargs")
    if unknown := sorted(video.keys() - {"num_frames", "fps"}):
        raise bad_request(
            f"media_io_kwargs.video: unknown key {unknown[0][:80]!r}; known: num_frames, fps",
            "media_io_kwargs",
        )
    if video.get("num_frames") == -1:  # all frames: bounded by the model
        raise bad_request("media_io_kwargs.video.num_frames must be above 0", "media_io_kwargs")
    for value in inputs:
        messages = value if isinstance(value, list) else []
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "video":
                    checked = reader.options(video, "media_io_kwargs.video")
                    part |= {key: entry for key, entry in checked.items() if key not in part}
    return inputs


# Cohere


def _cohere_error(error: RequestError) -> dict:
    return {"id": uuid.uuid4().hex, "message": error.message}


def _read_cohere(body: dict, model: ModelInfo, reader: InputReader) -> EmbedRequest:
    fields = Fields(body)
    _check_model(fields, model)
    given = {name: fields.take(name, list) for name in ("texts", "images", "inputs")}
    present = [name for name, values in given.items() if values is not None]
    if len(present) != 1:
        raise bad_request("give exactly one of texts, images and inputs")
    (name,) = present
    reader.check_count(given[name], name)
    inputs: list = []
    for index, value in enumerate(given[name]):
        where = f"{name}[{index}]"
        if name == "texts":
            inputs.append(reader.text(value, where))
        elif name == "images":
            inputs.append({"image": reader.medium(value, "image", where)})
        else:
            inputs.append(_read_content(value, reader, where))
    kinds = fields.take("embedding_types", list, ["float"])
    for kind in kinds:
        if kind in ("int8", "uint8"):
            raise bad_request(_RANGES, "embedding_types")
        if kind not in ("float", "base64", "binary", "ubinary"):
            raise bad_request(
                "embedding_types must be among float, base64, binary, ubinary", "embedding_types"
            )
    truncate = fields.choice("truncate", ("NONE", "START", "END"), "END")
    if truncate == "START":
        raise bad_request("truncate START: texts lose their end; use END or NONE", "truncate")
    texts = given["texts"]
    request = EmbedRequest(
        inputs,
        prompt=_read_prompt(fields, model),
        dimensions=_read_dimensions(fields, model, "output_dimension"),
        refuse_truncated=truncate == "NONE",
        output=(list(dict.fromkeys(kinds)), texts),
    )
    fields.refuse("max_tokens", "texts are truncated at the model's maximum only")
    fields.ignore("priority")
    fields.finish()
    return request


def _write_cohere(request: EmbedRequest, model: ModelInfo, result: Result) -> dict:
    kinds, texts = request.output
    vectors = {}
    for kind in kinds:
        rows = result.vectors
        if kind in ("binary", "ubinary"):
            rows = quantize_embeddings(rows, kind)
        encoding = "base64" if kind == "base64" else "float"
        vectors[kind] = [_vector(row, encoding) for row in rows]
    return {
        "id": uuid.uuid4().hex,
        "response_type": "embeddings_by_type",
        "embeddings": vectors,
        **({} if texts is None else {"texts": texts}),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": sum(result.tokens)},
        },
    }


# Voyage


def _voyage_error(error: RequestError) -> dict:
    return {"detail": error.message}


def _read_voyage(body: dict, model: ModelInfo, reader: InputReader) -> EmbedRequest:
    fields = Fields(body)
    _check_model(fields, model)
    given = fields.take("inputs", list, [])
    reader.check_count(given, "inputs")
    inputs = [_read_content(value, reader, f"inputs[{n}]") for n, value in enumerate(given)]
    encoding = fields.choice("encoding_format", ("float", "base64"), "float")
    encoding = fields.choice("output_encoding", ("float", "base64"), encoding)
    dtype = fields.choice("output_dtype", ("float", "binary", "ubinary", "int8", "uint8"), "float")
    if dtype in ("int8", "uint8"):
        raise bad_request(_RANGES, "output_dtype")
    truncates = fields.take("truncation", bool, True)
    request = EmbedRequest(
        inputs,
        prompt=_read_prompt(fields, model),
        dimensions=_read_dimensions(fields, model, "output_dimension"),
        refuse_truncated=not truncates,
        output=(encoding, dtype),
    )
    fields.finish()
    return request


def _write_voyage(request: EmbedRequest, model: ModelInfo, result: Result) -> dict:
    response = _write_openai(request, model, result)
    total = sum(result.tokens)
    # Pixels are not counted apart: the tokens include those of images and videos.
    usage = {"text_tokens": total, "image_pixels": 0, "video_pixels": 0, "total_tokens": total}
    return response | {"usage": usage}


# text-embeddings-inference


def _tei_error(error: RequestError) -> dict:
    kinds = {413: "Validation", 422: "Tokenizer", 429: "Overloaded", 503: "Unhealthy"}
    kind = "Backend" if error.status >= 500 else "Validation"
    return {"error": error.message, "error_type": kinds.get(error.status, kind)}


def _read_tei(body: dict, model: ModelInfo, reader: InputReader) -> EmbedRequest:
    fields = Fields(body)
    given = fields.take("inputs", (str, list))
    if given is None:
        raise bad_request("inputs is missing", "inputs")
    if any(isinstance(value, dict) for value in given):
        raise bad_request("inputs must be texts; /v1/embeddings takes images and videos", "inputs")
    if fields.choice("truncation_direction", ("Left", "Right", "left", "right")) in (
        "Left",
        "left",
    ):
        raise bad_request("truncation_direction: texts lose their end", "truncation_direction")
    request = EmbedRequest(
        _read_input(given, model, reader),
        prompt=_read_prompt(fields, model),
        dimensions=_read_dimensions(fields, model, "dimensions"),
        normalize=fields.take("normalize", bool, True),
        refuse_truncated=not fields.take("truncate", bool, False),
    )
    fields.finish()
    return request


def _write_tei(request: EmbedRequest, model: ModelInfo, result: Result) -> list:
    return result.vectors.tolist()


PROTOCOLS = (
    Protocol("/v1/embeddings", _read_openai, _write_openai, openai_error),
    Protocol("/v2/embed", _read_cohere, _write_cohere, _cohere_error),
    Protocol("/v1/multimodalembeddings", _read_voyage, _write_voyage, _voyage_error),
    Protocol("/embed", _read_tei, _write_tei, _tei_error),
)


# What they have in common


def _check_model(fields: Fields, model: ModelInfo) -> None:
    name = fields.take("model", str)
    if name is not None and name not in model.names:
        raise RequestError(
            404,
            f"the model {name[:200]!r} is not served here; served: {', '.join(model.names)}",
            "model",
            "model_not_found",
        )


def _read_prompt(fields: Fields, model: ModelInfo) -> str | None:
    """The instruction of a request: its text, by its name, or that of queries or documents."""
    text = fields.take("instruction", str)
    prompt = fields.take("prompt", str)
    name = fields.take("prompt_name", str)
    kind = fields.choice("input_type", _QUERY + _DOCUMENT + _OTHER)
    kind = fields.choice("task", _QUERY + _DOCUMENT + _OTHER, kind)
    if text is not None and prompt is not None:
        raise bad_request("give instruction or prompt, not both: they mean the same", "prompt")
    text = prompt if text is None else text
    if name in ("query", "document") and name not in model.prompts:
        kind, name = kind or name, None  # defaults that are not set
    try:
        chosen = choose_instruction(text, name, model.prompts)
    except UserError as error:
        raise bad_request(str(error), "prompt_name" if name else "instruction") from None
    check_instruction(chosen, "instruction")
    if chosen and not model.takes_instructions:
        raise bad_request(f"{model.names[0]} takes no instructions", "instruction")
    if text is None and name is None and model.takes_instructions:
        role = "query" if kind in _QUERY else "document" if kind in _DOCUMENT else None
        chosen = model.prompts.get(role) if role else None
    return chosen


def _read_dimensions(fields: Fields, model: ModelInfo, *names: str) -> int | None:
    found = None
    for name in names:
        value = fields.take(name, int)
        if value is None:
            continue
        if not 1 <= value <= model.dim:
            raise bad_request(f"{name} must be in 1..{model.dim}", name)
        if value < model.dim and (model.shortest is None or value < model.shortest):
            least = "" if model.shortest is None else f" below {model.shortest}"
            raise bad_request(
                f"{name}: {model.names[0]} was not trained for shorter vectors{least}", name
            )
        found = value
    return found


def _read_content(value: Any, reader: InputReader, where: str) -> list:
    """An input `{"content": [part, ...]}` of Cohere and Voyage, as a conversation."""
    if not isinstance(value, dict) or "content" not in value or len(value) > 1:
        raise bad_request(f"{where} must be an object with content", where)
    return [{"role": "user", "content": reader.content(value["content"], where)}]


def _vector(row: np.ndarray, encoding: str) -> list | str:
    if encoding == "float":
        return row.tolist()
    little = row.astype(row.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
