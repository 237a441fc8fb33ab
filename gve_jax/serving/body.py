"""Bodies of requests: read within limits, and parsed without trusting them."""

import asyncio
import json
import re
from collections.abc import Callable

import numpy as np

from gve_jax.serving.errors import RequestError, bad_request

MAX_DEPTH = 32  # nested arrays and objects
MAX_VALUES = 500_000  # values of a body; the largest legal one has 300,000 token ids
# Also one without an end, to the end: trying again from each of its quotes takes quadratic time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)


async def read_body(
    headers: dict[bytes, bytes],
    receive: Callable,
    most: int,
    seconds: float,
    hold: Callable[[int], None],
) -> bytearray:
    """The body of a request.

    Args:
      headers: of the request, with names in lower case.
      receive: of ASGI.
      most: bytes of a body.
      seconds: in which it must arrive.
      hold: is called with the number of bytes of each part that is kept; it raises `RequestError`
        if the server holds too much.

    Raises:
      RequestError: another type or encoding, too large, too slow, or the client went away.
    """
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        shown = kind.decode("latin-1") or "absent"
        raise RequestError(415, f"Content-Type must be application/json; it is {shown}")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        raise RequestError(415, "compressed bodies are not accepted: omit Content-Encoding")
    too_large = RequestError(
        413, f"the body is larger than {most:,} bytes: send fewer inputs, or smaller media"
    )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(400, "the client closed the connection")
                part = message.get("body", b"")
                if len(body) + len(part) > most:
                    raise too_large
                hold(len(part))
                body += part
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        raise RequestError(
            408, f"the body did not arrive in {seconds:g} seconds", code="timeout"
        ) from None


def parse_json(body: bytes | bytearray) -> dict:
    """The JSON object of a body.

    Raises:
      RequestError: not a JSON object in UTF-8; numbers that JSON does not have; nested too deeply;
        too many values (each takes far more memory than its bytes).
    """
    structure = np.frombuffer(_STRING.sub(b"", body), np.uint8)
    structure = structure[np.isin(structure, list(b"[]{},"))]
    if len(structure) > MAX_VALUES:
        raise bad_request(f"the body has more than {MAX_VALUES:,} values")
    steps = np.isin(structure, list(b"[{")).astype(np.int32) - np.isin(structure, list(b"]}"))
    if np.cumsum(steps).max(initial=0) > MAX_DEPTH:
        raise bad_request(f"the body is nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 ({error.reason} at {error.start})") from None
    except json.JSONDecodeError as error:
        raise bad_request(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_request(f"the body must be a JSON object, not {json_type(value)}")
    return value


def json_type(value: object) -> str:
    """The name of a value's type as JSON calls it."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")
