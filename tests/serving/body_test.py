"""Bodies: limits of JSON."""

import json
import time

import pytest

from gve_jax.serving.body import MAX_DEPTH, MAX_VALUES, parse_json
from gve_jax.serving.errors import RequestError


def refused(body: bytes) -> str:
    with pytest.raises(RequestError) as error:
        parse_json(body)
    assert error.value.status == 400
    return error.value.message


@pytest.mark.parametrize(
    "value", [{"input": 'a"\\[{', "n": [1, 2.5, None, True]}, {"": {"a": [[[]]]}}, {}]
)
def test_objects_are_parsed(value):
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        (b"null", "must be a JSON object, not null"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": "\n"}', "not JSON: Invalid control character"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":' * 10**5, "nested more than"),
        (b"[" * 10**5, "nested more than"),
        (b'{"a":[' + b"[]," * MAX_VALUES + b"0]}", "more than 500,000 values"),
    ],
)
def test_other_bodies_are_refused(body, message):
    assert message in refused(body)


def test_depth_is_exact():
    inner = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert parse_json(b'{"a":' + inner + b"}")
    assert "levels deep" in refused(b'{"a":[' + inner + b"]}")


@pytest.mark.parametrize("body", [b'{"a": "' + b'\\"' * 2_000_000, b'"' * 4_000_000, b"\\" * 10**6])
def test_strings_without_an_end_take_linear_time(body):
    began = time.process_time()
    refused(body)
    assert time.process_time() - began < 5
