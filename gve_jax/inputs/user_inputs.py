"""Converts the inputs of `GVE.encode`, one or many in any accepted form, to items."""

import os
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, Set, Sized
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from gve_jax.errors import UserError, warn_user
from gve_jax.inputs.media_values import as_array, as_medium, is_array, video_fields
from gve_jax.inputs.messages import is_message, is_part, read_content, read_conversation
from gve_jax.media.item import Item, as_item
from gve_jax.media.suffixes import media_kind, possible_kinds

Input = str | os.PathLike | np.ndarray | Image.Image | Mapping | Item | Sequence[Mapping]
Inputs = Input | Sequence[Input]
# Keys of other libraries for a text; `as_item` names those of media.
_RENAMED = {"texts": "text", "prompt": "instruction"}


def split_inputs(inputs: Any) -> tuple[list, bool]:
    """Returns the inputs as a list, and whether they are a single input.

    A single input is a text, a mapping, an `Item`, a PIL image, a path, an array of numbers, or a
    conversation (a list of messages with role and content). Lists, tuples, arrays of texts, columns
    of tables and other ordered collections contain several inputs.

    Raises:
      UserError: a set (it has no order), an iterator (it can be read only once), a table, or
        anything else that is not a collection.
    """
    if isinstance(inputs, np.ndarray) and inputs.ndim == 0:
        inputs = inputs.item()
    if isinstance(
        inputs, str | bytes | bytearray | memoryview | Mapping | Item | Image.Image | os.PathLike
    ) or is_array(inputs):
        return [inputs], True
    if isinstance(inputs, list | tuple) and inputs and is_message(inputs[0]):
        return [inputs], True
    kind = type(inputs).__name__
    if isinstance(inputs, Set) and not isinstance(inputs, KeysView):
        raise UserError(f"inputs must be ordered, and a {kind} is not: give sorted(...) or a list")
    if isinstance(inputs, Iterator):
        raise UserError(
            f"inputs must be a list, not a {kind}, which can be read only once: give list(...)"
        )
    if hasattr(inputs, "columns"):
        raise UserError(f"inputs must be a list, not a {kind}: give one of its columns")
    if not isinstance(inputs, Iterable) or not isinstance(inputs, Sized):
        raise UserError(f"inputs must be an input or a list of them, not {kind}")
    return list(inputs), False


def read_inputs(values: list, single: bool = False, allow_empty: bool = False) -> list[Item]:
    """Converts inputs to items.

    Args:
      values: the user's values, one per input.
      single: whether it is a single input, which messages do not number.
      allow_empty: whether an input without text and media is the empty text.

    Raises:
      UserError: a value that is not an input, with its index.
    """
    items = []
    for index, value in enumerate(values):
        try:
            items.append(_read_input(value, allow_empty))
        except UserError as error:
            raise UserError(f"{input_label(index, single)}: {error}") from error
    return items


def input_label(index: int, single: bool = False) -> str:
    """The name of an input in messages."""
    return "the input" if single else f"input {index}"


def warn_of_paths(items: list[Item], single: bool) -> None:
    """Warns once if a text is the path of a media file or the URI of a medium: Sentence
    Transformers would embed the medium, but it is embedded as a text."""
    for index, item in enumerate(items):
        text = item.text
        if not text or item.image is not None or item.video is not None:
            continue
        if kind := _medium_named_by(text):
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            warn_user(
                f"{input_label(index, single)} is embedded as the text {shown!r}; if the "
                f"{kind} is meant, give it as {{{kind!r}: path or bytes}} or as a "
                "pathlib.Path"
            )
            return


def _medium_named_by(text: str) -> str | None:
    """Returns "image" or "video" if a text is the path of an existing file or a URI of one."""
    if text.startswith(("data:image/", "data:video/")):
        return text[5:10]
    if len(text) > 4096 or "\n" in text or "\0" in text:
        return None
    url = text.startswith(("http://", "https://", "file://"))
    try:
        path = urlsplit(text).path if url else text
        kinds = possible_kinds(path)
        return kinds[0] if kinds and (os.path.isfile(path) or url and " " not in text) else None
    except ValueError:  # half of a surrogate pair, a malformed address
        return None


def _read_input(value: Any, allow_empty: bool) -> Item:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        fields = {"text": value}
    elif isinstance(value, Item):
        fields = value
    elif is_message(value):
        fields = read_conversation([value])
    elif is_part(value):
        fields = read_content([value])
    elif isinstance(value, Mapping):
        fields = _read_mapping(value)
    elif isinstance(value, list | tuple):
        fields = _read_list(value)
    else:
        fields = _read_bare(value)
    return as_item(fields, allow_empty)


def _read_list(value: list | tuple) -> dict:
    if not value:
        raise UserError("an empty list is not an input")
    if all(map(is_message, value)):
        return read_conversation(value)
    if all(is_part(part) or isinstance(part, str) for part in value) and any(map(is_part, value)):
        return read_content(value)
    if all(isinstance(part, str) for part in value):
        raise UserError(
            f"a {type(value).__name__} of {len(value)} texts is not an input (pairs "
            "are for cross-encoders): pass each text separately"
        )
    raise UserError(
        f"a {type(value).__name__} is not an input unless it contains the messages "
        "or parts of a chat; pass frames under 'video'"
    )


def _read_mapping(value: Mapping) -> dict:
    """Reads a mapping with the keys of `Item`, also in the forms of Sentence Transformers."""
    if "audio" in value:
        raise UserError("audio cannot be embedded: remove the key 'audio'")
    for key in value:
        if key in _RENAMED:
            raise UserError(f"unknown key {key!r} in an input; use {_RENAMED[key]!r}")
    if value.keys() & {"array", "sampling_rate", "video_metadata"}:
        if "sampling_rate" in value or "array" not in value:
            raise UserError(
                "an input as a mapping with 'array' must be frames of a video: "
                "{'video': {'array': ..., 'video_metadata': ...}}"
            )
        value = {"video": value}
    fields = dict(value)
    for key in ("text", "image"):
        many = fields.get(key)
        if isinstance(many, list | tuple):
            if len(many) > 1:
                hint = (
                    "pass several images as a video, a list of frames"
                    if key == "image"
                    else "join them, or pass each as a separate input"
                )
                raise UserError(f"an input has {len(many)} values of {key!r}: {hint}")
            fields[key] = many[0] if many else None
    if fields.get("image") is not None:
        fields["image"] = as_medium(fields["image"], "image")
    if fields.get("video") is not None:
        found = video_fields(fields["video"], "video")
        if "fps" in found and fields.get("fps", found["fps"]) != found["fps"]:
            raise UserError(f"fps {fields['fps']} differs from {found['fps']} of video_metadata")
        fields |= found
    return fields


def _read_bare(value: Any) -> dict:
    if isinstance(value, Image.Image):
        return {"image": value}
    if isinstance(value, os.PathLike):
        kind = "video" if os.path.isdir(value) else media_kind(value)
        if kind is None:
            raise UserError(
                f"{os.fspath(value)}: neither a video nor an image by its name; give "
                "it as {'video': path} or {'image': path}"
            )
        return {kind: value}
    if isinstance(value, bytes | bytearray | memoryview):
        raise UserError("bytes may be an image or a video: give {'image': ...} or {'video': ...}")
    if is_array(value) and getattr(value, "ndim", 0) > 0:
        array = as_array(value, "an array")
        if array.ndim not in (3, 4):
            raise UserError(
                f"an array must be an image uint8 [H, W, 3] or frames uint8 [T, H, W, "
                f"3], not {array.dtype} {list(array.shape)}"
            )
        return {"image" if array.ndim == 3 else "video": array}
    kind = type(value).__name__
    nan = isinstance(value, float | np.floating) and value != value
    if value is None or nan or kind in ("NAType", "NaTType"):
        missing = "NaN" if nan else value
        raise UserError(f"a missing value ({missing}) is not an input: drop it, or give a text")
    hint = ": give its path under 'video'" if kind == "VideoDecoder" else ""
    raise UserError(
        f"an input must be a text, an image, a path, an array or a mapping, not {kind}{hint}"
    )
