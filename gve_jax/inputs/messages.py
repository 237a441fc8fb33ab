"""Converts chat messages of transformers and qwen-vl-utils to items.

An item has a system turn and one user turn with a video, an image and a text, in this order. Other
content of a chat is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from gve_jax.errors import UserError, warn_user
from gve_jax.inputs.media_values import as_medium, video_fields
from gve_jax.media.item import Item

# Keys of the content of a part, by its type: those of transformers, qwen-vl-utils and OpenAI.
_SOURCES = {
    "text": ("text",),
    "image": ("image", "path", "url", "base64", "image_url"),
    "image_url": ("image_url",),
    "video": ("video", "path", "url", "base64", "video_url"),
    "video_url": ("video_url",),
}
_RENAMED = {"nframes": "num_frames"}
# Options of a part with a medium.
_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(Item)
    if field.name not in ("text", "image", "video", "instruction")
)
_ORDER = ("video", "image", "text")  # in the user turn


def is_message(value) -> bool:
    """Whether a value is a chat message: a mapping with a role and a content."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def is_part(value) -> bool:
    """Whether a value is a part of the content of a chat message: a mapping with a type."""
    return isinstance(value, Mapping) and "type" in value


def read_conversation(messages: Sequence[Mapping]) -> dict:
    """Returns the fields of an item for an optional system message and one user message.

    Raises:
      UserError: other roles, further turns, or content that an item cannot have.
    """
    fields: dict = {}
    for message in messages:
        if unknown := sorted(map(str, message.keys() - {"role", "content"})):
            raise UserError(f"unknown key {unknown[0]!r} in a chat message; known: role, content")
        role, content = message["role"], message["content"]
        if role == "system" and not fields:
            fields = {"instruction": _text_of(content, "a system message")}
        elif role == "user" and "user" not in fields:
            fields["user"] = content
        elif role in ("system", "user"):
            raise UserError(
                f"a chat has another {role} message: an input is at most one system "
                "message, then one user message"
            )
        else:
            raise UserError(
                f"a chat has a message of role {role!r}: an input is at most one "
                "system message, then one user message"
            )
    if "user" not in fields:
        raise UserError("a chat has no user message: there is nothing to embed")
    return fields | read_content(fields.pop("user"))


def read_content(content) -> dict:
    """Returns the fields of an item for the content of a user message, a text or list of parts.

    A part is `{"type": "text" | "image" | "video", ...}` with the medium under its type, or under
    `path`, `url`, `base64`, `image_url` or `video_url`, and options of sampling.

    Raises:
      UserError: a part of another type, with an unknown key or without content; two images or
        videos; texts that are not adjacent.
    """
    if isinstance(content, str):
        return {"text": content}
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise UserError(
            f"the content of a message must be a text or a list of parts, not "
            f"{type(content).__name__}"
        )
    fields: dict = {}
    kinds: list[str] = []
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind, found = _read_part(part)
        if kind == "text" and kinds and kinds[-1] == "text":
            fields["text"] += found["text"]  # as the chat template writes them
            continue
        if kind in kinds:
            hint = {
                "text": "texts must be adjacent, after the media",
                "image": "pass several images as a video, a list of frames",
                "video": "embed each video as a separate input",
            }[kind]
            raise UserError(f"an input has two {kind}s: {hint}")
        if clash := sorted(
            key for key in found.keys() & fields.keys() if found[key] != fields[key]
        ):
            raise UserError(
                f"two parts of an input have different {clash[0]}: an item has only one"
            )
        kinds.append(kind)
        fields |= found
    if kinds != sorted(kinds, key=_ORDER.index):
        warn_user(
            "the content of a chat message is embedded in the order video, image, text, in "
            f"which GVE was trained, not as given: {', '.join(kinds)}"
        )
    return fields


def _read_part(part) -> tuple[str, dict]:
    if not is_part(part):
        kind = f"one of {sorted(map(str, part))}" if isinstance(part, Mapping) else type(part)
        raise UserError(
            f"a part of a chat message must be a text or a mapping with a 'type', not {kind}"
        )
    kind = part["type"]
    if not isinstance(kind, str) or kind not in _SOURCES:
        hint = "; audio cannot be embedded" if "audio" in str(kind) else ""
        raise UserError(
            f"a part of a chat message is of type {kind!r}; known: text, image, video, "
            f"image_url, video_url{hint}"
        )
    given = {
        _RENAMED.get(key, key): value
        for key, value in part.items()
        if key != "type" and value is not None
    }
    sources = [key for key in _SOURCES[kind] if key in given]
    if len(sources) != 1:
        raise UserError(f"a part of type {kind!r} must have one of: {', '.join(_SOURCES[kind])}")
    value = given.pop(sources[0])
    options = () if kind == "text" else _OPTIONS
    if unknown := sorted(map(str, given.keys() - set(options))):
        known = ", ".join((*_SOURCES[kind], *options))
        raise UserError(f"unknown key {unknown[0]!r} in a part of type {kind!r}; known: {known}")
    if kind == "text":
        return "text", {"text": _text_of(value, "a part of type 'text'")}
    if sources[0].endswith("_url") and isinstance(value, Mapping):
        value = value.get("url")
    if value is None or (isinstance(value, str) and not value):
        raise UserError(f"a part of type {kind!r} is empty")
    if sources[0] == "base64":
        value = f"data:;base64,{value}"
    kind = kind.removesuffix("_url")
    found = video_fields(value, kind) if kind == "video" else {kind: as_medium(value, kind)}
    return kind, given | found


def _text_of(content, what: str) -> str:
    if isinstance(content, list | tuple):
        if not all(isinstance(p, str) or (is_part(p) and p["type"] == "text") for p in content):
            raise UserError(f"{what} must contain texts only")
        return "".join(p if isinstance(p, str) else _text_of(p.get("text"), what) for p in content)
    if not isinstance(content, str):
        raise UserError(f"{what} must be a text, not {type(content).__name__}")
    return content
