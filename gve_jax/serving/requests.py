"""The one request that all APIs are read into, and how their parts are read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gve_jax.media.item import Item
from gve_jax.serving.body import json_type
from gve_jax.serving.errors import bad_request

MAX_PARTS = 64  # parts of an input
MAX_INSTRUCTION = 16_384  # characters
_MEDIA = ("image", "video")
# Options of an item that a client may set.
_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(Item)
    if field.name not in ("text", "image", "video", "instruction", "frame_order")
)


@dataclasses.dataclass(eq=False)
class Reference:
    """A medium that a request refers to; `media.Resolver` replaces it by bytes or a path.

    Attributes:
      uri: data:, file:, http: or https:.
      kind: "image" or "video".
      where: the input, for messages: `input 3`.
    """

    uri: str
    kind: str
    where: str


@dataclasses.dataclass
class EmbedRequest:
    """What a client asks for.

    Attributes:
      inputs: each a text, a mapping with the keys of `Item`, or a conversation, as `GVE.encode`
        takes them, with a `Reference` for each medium.
      references: all of them.
      prompt: instruction of inputs without one of their own.
      dimensions: of the vectors; None for all.
      normalize: to unit length.
      refuse_truncated: whether an input that reaches the model's maximum length is an error.
      output: how the protocol writes vectors.
    """

    inputs: list
    references: list[Reference] = dataclasses.field(default_factory=list)
    prompt: str | None = None
    dimensions: int | None = None
    normalize: bool = True
    refuse_truncated: bool = False
    output: Any = None


class Fields:
    """The fields of a body, taken one by one; what is left over is an error.

    A field that is null counts as absent. An unknown field is refused: a misspelled option that is
    ignored gives another vector than the client asked for.
    """

    def __init__(self, body: Mapping[str, Any]):
        self._left = {key: value for key, value in body.items() if value is not None}
        self._known: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type | tuple[type, ...], default=None):
        """The value of a field, or `default`; RequestError for another type."""
        self._known.append(name)
        value = self._left.pop(name, None)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = {str: "a string", bool: "a boolean", int: "an integer"}
            names |= {list: "an array", dict: "an object"}
            wanted = " or ".join(names[each] for each in kinds)
            raise bad_request(f"{name} must be {wanted}, not {json_type(value)}", name)
        return value

    def choice(self, name: str, values: tuple[str, ...], default: str | None = None) -> str | None:
        """A field with one of a few values."""
        value = self.take(name, str, default)
        if value is not None and value not in values:
            raise bad_request(f"{name} must be one of {', '.join(values)}", name)
        return value

    def ignore(self, *names: str) -> None:
        """Drops fields that have no effect on a vector."""
        self._known += names
        for name in names:
            self._left.pop(name, None)

    def refuse(self, name: str, reason: str, *accepted) -> None:
        """Refuses a field unless its value is one of those that change nothing."""
        value = self._left.pop(name, None)
        if value is not None and value not in accepted:
            raise bad_request(f"{name}: {reason}", name)

    def finish(self) -> None:
        if self._left:
            name = min(self._left)
            known = ", ".join(dict.fromkeys(self._known))
            raise bad_request(f"unknown field {name[:80]!r}; known: {known}", name[:80])


class InputReader:
    """Reads inputs of requests; collects the media that they refer to in `references`.

    Args:
      most_inputs: inputs of a request.
      most_media: media of a request.
      most_frames: frames of a video that a client may ask for.
    """

    def __init__(self, most_inputs: int, most_media: int, most_frames: int):
        self._most_inputs, self._most_media = most_inputs, most_media
        self._most_frames = most_frames
        self.references: list[Reference] = []

    def check_count(self, values: list, name: str) -> None:
        if not values:
            raise bad_request(f"{name} is empty: there is nothing to embed", name)
        if len(values) > self._most_inputs:
            raise bad_request(
                f"{name} has {len(values):,} entries, and a request at most "
                f"{self._most_inputs:,}: send several requests",
                name,
            )

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise bad_request(f"{where} must be a string, not {json_type(value)}", where)
        return value

    def medium(self, uri: Any, kind: str, where: str) -> Reference:
        """A reference to a medium: a URI, or `{"url": URI}`."""
        if isinstance(uri, dict):
            uri = uri.get("url")
        if not isinstance(uri, str) or not uri:
            raise bad_request(f"{where}: {kind} must be a URI, not {json_type(uri)}", where)
        if len(self.references) >= self._most_media:
            raise bad_request(
                f"a request may have at most {self._most_media} media: send several requests"
            )
        reference = Reference(uri, kind, where)
        self.references.append(reference)
        return reference

    def conversation(self, messages: Any, where: str) -> list[dict]:
        """A list of chat messages: at most one system message, then one user message."""
        if not isinstance(messages, list) or not messages:
            raise bad_request(f"{where} must be an array of messages", where)
        return [self._message(message, where) for message in messages[: MAX_PARTS + 1]]

    def content(self, content: Any, where: str) -> str | list[dict]:
        """The content of a message: a text, or a list of parts."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list) or not content:
            raise bad_request(f"{where}: content must be a string or an array of parts", where)
        if len(content) > MAX_PARTS:
            raise bad_request(f"{where} has more than {MAX_PARTS} parts", where)
        return [self._part(part, where) for part in content]

    def mapping(self, value: dict, where: str) -> dict:
        """An object with the keys text, image, video and options, as `GVE.encode` takes it."""
        fields = self.options(value, where, {"text", "image", "video", "instruction"})
        for key in ("text", "instruction"):
            if value.get(key) is not None:
                fields[key] = self.text(value[key], f"{where}: {key}")
        for kind in _MEDIA:
            if value.get(kind) is not None:
                fields[kind] = self.medium(value[kind], kind, where)
        return fields

    def _message(self, message: Any, where: str) -> dict:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise bad_request(f"{where}: a message must have role and content", where)
        if extra := sorted(message.keys() - {"role", "content", "name"}):
            raise bad_request(f"{where}: unknown key {extra[0][:80]!r} in a message", where)
        role = self.text(message["role"], f"{where}: role")
        return {"role": role, "content": self.content(message["content"], where)}

    def _part(self, part: Any, where: str) -> dict:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise bad_request(f"{where}: a part must be an object with a type", where)
        name = part["type"]
        if name == "text":
            if extra := sorted(part.keys() - {"type", "text", "uuid", "cache_control"}):
                raise bad_request(f"{where}: unknown key {extra[0][:80]!r} in a text", where)
            return {"type": "text", "text": self.text(part.get("text"), f"{where}: text")}
        kind = name.removesuffix("_url").removesuffix("_base64")
        if kind not in _MEDIA:
            hint = "; audio cannot be embedded" if "audio" in name else ""
            raise bad_request(
                f"{where}: parts of type {name[:80]!r} are not supported; known: text, image_url, "
                f"video_url, image_base64, video_base64{hint}",
                where,
            )
        fields = self.options(part, where, {"type", name, "uuid"})
        return {"type": kind, kind: self.medium(part.get(name), kind, where), **fields}

    def options(self, value: dict, where: str, others: set[str] = frozenset()) -> dict:
        """The options of an item, such as `num_frames`; `others` are keys of the same object."""
        fields = {}
        for key, entry in value.items():
            if key in others or entry is None:
                continue
            if key not in _OPTIONS:
                known = ", ".join(sorted(others - {"type", "uuid"}) + list(_OPTIONS))
                raise bad_request(f"{where}: unknown key {key[:80]!r}; known: {known}", where)
            if not isinstance(entry, int | float):
                raise bad_request(f"{where}: {key} must be a number or a boolean", where)
            if key in ("num_frames", "min_frames", "max_frames") and entry > self._most_frames:
                raise bad_request(f"{where}: {key} must be at most {self._most_frames}", where)
            fields[key] = entry
        return fields


def check_instruction(text: str | None, name: str) -> str | None:
    """An instruction of a client, within a length that cannot displace its input."""
    if text is not None and len(text) > MAX_INSTRUCTION:
        raise bad_request(f"{name} has more than {MAX_INSTRUCTION:,} characters", name)
    return text
