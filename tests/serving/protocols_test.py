"""Requests and responses of each API, without a server."""

import base64
import re

import numpy as np
import pytest

from gve_jax.inputs.user_inputs import read_inputs
from gve_jax.media.item import Item
from gve_jax.serving.errors import RequestError
from gve_jax.serving.media import Resolver
from gve_jax.serving.protocols import PROTOCOLS, ModelInfo, Result
from gve_jax.serving.requests import InputReader
from gve_jax.serving.service import _replace

BY_PATH = {each.path: each for each in PROTOCOLS}
OPENAI, COHERE, VOYAGE, TEI = BY_PATH
MODEL = ModelInfo(("tiny", "other"), 16, None, True, {"query": "Find it.", "A": "Do a."})
SHORT = ModelInfo(("tiny",), 16, 8, True, {})
PNG = "data:image/png;base64," + base64.b64encode(b"png").decode()
MP4 = "data:video/mp4;base64," + base64.b64encode(b"mp4").decode()


def read(path: str, body: dict, model: ModelInfo = MODEL):
    reader = InputReader(2048, 64, 64)
    request = BY_PATH[path].read(body, model, reader)
    resolver = Resolver(None, None, 64)
    found = {each: resolver.resolve(each) for each in reader.references}
    return request, read_inputs([_replace(value, found) for value in request.inputs])


def refused(path: str, body: dict, model: ModelInfo = MODEL) -> RequestError:
    with pytest.raises(RequestError) as error:
        read(path, body, model)
    assert BY_PATH[path].error(error.value)
    return error.value


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


TEXT = {"type": "text", "text": "a cat"}
IMAGE = {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}
VIDEO = {"type": "video_url", "video_url": {"url": MP4}, "uuid": "7"}
SYSTEM = {"role": "system", "content": "Find the clip."}


@pytest.mark.parametrize(
    ("path", "body", "items"),
    [
        (OPENAI, {"input": "a"}, [Item("a")]),
        (OPENAI, {"input": ["a", "b"], "user": "u", "model": "other"}, [Item("a"), Item("b")]),
        (OPENAI, {"messages": [user(TEXT)]}, [Item("a cat")]),
        (OPENAI, {"messages": [{"role": "user", "content": "a"}]}, [Item("a")]),
        (
            OPENAI,
            {"messages": [SYSTEM, user(VIDEO, IMAGE, TEXT)]},
            [Item("a cat", b"png", b"mp4", "Find the clip.")],
        ),
        (OPENAI, {"messages": [[user(TEXT)], [user(IMAGE)]]}, [Item("a cat"), Item(None, b"png")]),
        (OPENAI, {"input": [[user(TEXT)], "b"]}, [Item("a cat"), Item("b")]),
        (
            OPENAI,
            {"messages": [user(VIDEO)], "media_io_kwargs": {"video": {"num_frames": 4}}},
            [Item(None, None, b"mp4", num_frames=4)],
        ),
        (
            OPENAI,
            {"input": [{"text": "t", "video": MP4, "fps": 2, "instruction": "i"}, {"image": PNG}]},
            [Item("t", None, b"mp4", "i", fps=2), Item(None, b"png")],
        ),
        (
            OPENAI,
            {"input": [{"video": "data:video/jpeg;base64,AAAA,BBBB"}]},
            [Item(None, None, [b"\0\0\0", b"\x04\x10A"])],
        ),
        (COHERE, {"texts": ["a"], "input_type": "search_document"}, [Item("a")]),
        (COHERE, {"images": [PNG], "input_type": "image"}, [Item(None, b"png")]),
        (COHERE, {"inputs": [{"content": [TEXT, IMAGE]}]}, [Item("a cat", b"png")]),
        (
            VOYAGE,
            {
                "inputs": [
                    {"content": [{"type": "video_base64", "video_base64": MP4}]},
                    {"content": [TEXT, {"type": "image_base64", "image_base64": PNG}]},
                    {"content": [{"type": "video_url", "video_url": MP4}]},
                ],
                "input_type": None,
                "truncation": True,
            },
            [Item(None, None, b"mp4"), Item("a cat", b"png"), Item(None, None, b"mp4")],
        ),
        (TEI, {"inputs": "a", "truncate": True}, [Item("a")]),
        (TEI, {"inputs": ["a", "b"], "normalize": True}, [Item("a"), Item("b")]),
    ],
)
@pytest.mark.filterwarnings("ignore:the content of a chat message")
def test_requests_are_read(path, body, items):
    assert read(path, body)[1] == items


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (OPENAI, {}, "one of input and messages"),
        (OPENAI, {"input": "a", "messages": [user(TEXT)]}, "one of input and messages"),
        (OPENAI, {"input": []}, "input is empty"),
        (OPENAI, {"input": 3}, "input must be a string or an array or an object, not a number"),
        (OPENAI, {"input": True}, "not a boolean"),
        (OPENAI, {"input": ["a", None]}, "input 1 must be a text"),
        (OPENAI, {"input": ["a", 3.5]}, "input 1 must be a text"),
        (OPENAI, {"input": [1, 2]}, "token ids are refused"),
        (OPENAI, {"input": [[1, 2], [3]]}, "token ids are refused"),
        (OPENAI, {"input": "a", "dimension": 3}, "unknown field 'dimension'; known: .*dimensions"),
        (OPENAI, {"input": "a", "dimensions": 8}, "was not trained for shorter vectors"),
        (OPENAI, {"input": "a", "dimensions": 17}, "must be in 1..16"),
        (OPENAI, {"input": "a", "dimensions": "8"}, "must be an integer, not a string"),
        (OPENAI, {"input": "a", "dimensions": True}, "must be an integer, not a boolean"),
        (OPENAI, {"input": "a", "encoding_format": "hex"}, "must be one of float, base64"),
        (OPENAI, {"input": "a", "embed_dtype": "float16"}, "vectors are float32"),
        (OPENAI, {"input": "a", "normalize": False}, "always have unit length"),
        (OPENAI, {"input": "a", "chat_template": "x"}, "profile decides the prompt"),
        (OPENAI, {"input": "a", "output_dtype": "int8"}, "ranges"),
        (OPENAI, {"input": "a", "prompt_name": "B"}, "unknown prompt_name 'B'; known: query, A"),
        (OPENAI, {"input": "a", "instruction": "x", "prompt": "y"}, "not both"),
        (OPENAI, {"input": "a", "instruction": "x" * 20_000}, "more than 16,384 characters"),
        (OPENAI, {"input": "a", "input_type": "question"}, "must be one of query"),
        (OPENAI, {"input": [{"text": "a", "frame_order": "shuffled"}]}, "unknown key"),
        (OPENAI, {"input": [{"video": MP4, "num_frames": 10**6}]}, "num_frames must be at most 64"),
        (OPENAI, {"input": [{"video": MP4, "fps": "2"}]}, "fps must be a number"),
        (OPENAI, {"input": [{"video": "data:video/jpeg;base64," + "AAAA," * 64}]}, "65 frames"),
        (OPENAI, {"input": [{"video": "/etc/passwd"}]}, "accepts URIs of data:"),
        (OPENAI, {"input": [{"image": "file:///etc/passwd"}]}, "accepts URIs of data:"),
        (OPENAI, {"input": [{"image": "https://8.8.8.8/a.png"}]}, "accepts URIs of data:"),
        (OPENAI, {"input": [{"image": "data:image/png;base64,@@@"}]}, "must be base64"),
        (OPENAI, {"input": [{"image": "data:image/png,abc"}]}, "must be base64"),
        (OPENAI, {"input": [{"image": "data:image/png;base64,"}]}, "not empty"),
        (OPENAI, {"input": [{"image": 3}]}, "image must be a URI, not a number"),
        (OPENAI, {"messages": []}, "array of messages"),
        (OPENAI, {"messages": ["a"]}, "must have role and content"),
        (OPENAI, {"messages": [{"role": "user", "content": 3}]}, "string or an array"),
        (OPENAI, {"messages": [{"role": "user", "content": "a", "x": 1}]}, "unknown key 'x'"),
        (OPENAI, {"messages": [{"role": 1, "content": "a"}]}, "role must be a string"),
        (OPENAI, {"messages": [user({"type": "input_audio"})]}, "audio cannot be embedded"),
        (OPENAI, {"messages": [user({"type": "text"})]}, "text must be a string, not null"),
        (OPENAI, {"messages": [user(*[TEXT] * 65)]}, "more than 64 parts"),
        (OPENAI, {"messages": [user(IMAGE | {"nframes": 3})]}, "unknown key 'nframes'"),
        (COHERE, {"texts": ["a"], "images": [PNG]}, "exactly one of"),
        (COHERE, {"texts": [3]}, r"texts\[0\] must be a string"),
        (COHERE, {"texts": ["a"], "embedding_types": ["int8"]}, "ranges"),
        (COHERE, {"texts": ["a"], "embedding_types": [3]}, "must be among"),
        (COHERE, {"texts": ["a"], "truncate": "START"}, "lose their end"),
        (COHERE, {"inputs": [{"content": []}]}, "string or an array of parts"),
        (VOYAGE, {"inputs": []}, "inputs is empty"),
        (VOYAGE, {"inputs": [{"content": [TEXT], "x": 1}]}, "must be an object with content"),
        (TEI, {}, "inputs is missing"),
        (TEI, {"inputs": [{"text": "a"}]}, "must be texts"),
        (TEI, {"inputs": "a", "truncation_direction": "Left"}, "lose their end"),
    ],
)
def test_mistakes_are_400(path, body, message):

    error = refused(path, body)
    assert error.status == 400 and re.search(message, error.message), error.message


def test_another_model_is_404():
    error = refused(OPENAI, {"input": "a", "model": "ada"})
    assert error.status == 404 and "served: tiny, other" in error.message


@pytest.mark.parametrize(
    ("path", "fields", "prompt"),
    [
        (OPENAI, {"input": "a"}, None),
        (OPENAI, {"input": "a", "input_type": "query"}, "Find it."),
        (OPENAI, {"input": "a", "task": "retrieval.query"}, "Find it."),
        (OPENAI, {"input": "a", "input_type": "document"}, None),
        (OPENAI, {"input": "a", "prompt_name": "A", "input_type": "query"}, "Do a."),
        (OPENAI, {"input": "a", "prompt_name": "document"}, None),
        (OPENAI, {"input": "a", "instruction": "Mine.", "input_type": "query"}, "Mine."),
        (COHERE, {"texts": ["a"], "input_type": "search_query"}, "Find it."),
        (COHERE, {"texts": ["a"], "input_type": "search_document"}, None),
        (VOYAGE, {"inputs": [{"content": [TEXT]}], "input_type": "query"}, "Find it."),
        (TEI, {"inputs": "a", "prompt_name": "query"}, "Find it."),
    ],
)
def test_queries_have_the_default_instruction(path, fields, prompt):
    assert read(path, fields)[0].prompt == prompt


def test_a_profile_without_instructions():
    model = ModelInfo(("tiny",), 16, None, False, {"query": "Find it."})
    assert read(OPENAI, {"input": "a", "input_type": "query"}, model)[0].prompt is None
    error = refused(OPENAI, {"input": "a", "instruction": "Find it."}, model)
    assert "takes no instructions" in error.message


def test_matryoshka_dimensions():
    assert read(OPENAI, {"input": "a", "dimensions": 8}, SHORT)[0].dimensions == 8
    assert "below 8" in refused(OPENAI, {"input": "a", "dimensions": 7}, SHORT).message


def test_token_ids_are_decoded_where_that_is_allowed():
    def decode(ids):
        if max(ids) > 100:
            raise ValueError
        return " ".join(map(str, ids))

    model = ModelInfo(("tiny",), 16, None, True, {}, decode)
    assert read(OPENAI, {"input": [1, 2]}, model)[1] == [Item("1 2")]
    assert read(OPENAI, {"input": [[1, 2], [3]]}, model)[1] == [Item("1 2"), Item("3")]
    assert read(TEI, {"inputs": [[1]]}, model)[1] == [Item("1")]
    assert "not token ids" in refused(OPENAI, {"input": [101]}, model).message


def write(path: str, body: dict):
    vectors = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)
    request, _ = read(path, body)
    return vectors, BY_PATH[path].write(request, MODEL, Result(vectors, [5]))


def test_formats_of_vectors():
    vectors, answer = write(OPENAI, {"input": "a", "encoding_format": "float"})
    np.testing.assert_array_equal(np.float32(answer["data"][0]["embedding"]), vectors[0])
    vectors, answer = write(OPENAI, {"input": "a", "encoding_format": "base64"})
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(found, vectors[0])
    kinds = ["float", "base64", "binary", "ubinary"]
    vectors, answer = write(COHERE, {"texts": ["a"], "embedding_types": kinds})
    assert answer["texts"] == ["a"]
    bits = np.packbits(vectors > 0, axis=1)
    np.testing.assert_array_equal(answer["embeddings"]["ubinary"], bits)
    np.testing.assert_array_equal(answer["embeddings"]["binary"], bits.astype(int) - 128)
    vectors, answer = write(VOYAGE, {"inputs": [{"content": [TEXT]}], "output_dtype": "ubinary"})
    assert answer["data"][0]["embedding"] == bits[0].tolist()
    assert answer["usage"]["total_tokens"] == 5
    assert write(TEI, {"inputs": "a"})[1] == vectors.tolist()
