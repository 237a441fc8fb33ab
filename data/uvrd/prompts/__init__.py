"""Prompts: one .txt file each, with the version in the first line, then the system part, `---` and
the user part with `$slots`. A changed text needs a new version."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from string import Template

import jsonschema

_TEXT = {"type": "string", "minLength": 1, "maxLength": 4000}
_CAPTIONS = {
    "type": "object",
    "properties": {
        "summary": _TEXT,
        "spatio_temporal": _TEXT,
        "abstract": _TEXT,
        "keywords": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 100},
            "minItems": 1,
            "maxItems": 60,
        },
        "partial": _TEXT,
    },
    "required": ["summary", "spatio_temporal", "abstract", "keywords", "partial"],
    "additionalProperties": False,
}
_QUERY = {
    "type": "object",
    "properties": {"query": _TEXT},
    "required": ["query"],
    "additionalProperties": False,
}
SCHEMAS = {
    "video_captions": _CAPTIONS,
    "frame_captions": _CAPTIONS,
    "image_query": _QUERY,
    "clip_query": _QUERY,
}
EMPHASIS = {
    "spatial": "mostly things, their looks and places (about half), then what happens (a third).",
    "temporal": "mostly what happens and in which order (about half), then things and places (a "
    "third).",
    "other": "theme, style, camera and light as much as things, places and events.",
}
STRATEGIES = (
    "the same subject does something new",
    "the same subject in another scene",
    "what does not happen, or is no longer there, is said too",
    "the relation between two things changes",
)
RELATIONS = (
    "the video shows what comes after the clip",
    "the video shows the same from another viewpoint",
    "the video shows the same in another quality or at another speed",
    "a small change of what is done",
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    name: str
    version: str
    digest: str  # of the text and the schema
    system: str
    user: Template
    schema: dict = dataclasses.field(hash=False)
    validator: jsonschema.Draft202012Validator = dataclasses.field(hash=False)

    @property
    def record(self) -> dict:
        return {"name": self.name, "version": self.version, "digest": self.digest}


@functools.cache
def load(name: str) -> Prompt:
    text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    head, _, body = text.partition("\n\n")
    system, _, user = body.partition("\n---\n")
    digest = hashlib.sha256((text + repr(SCHEMAS[name])).encode()).hexdigest()[:12]
    version = head.removeprefix("version: ")
    schema = SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(schema)
    return Prompt(name, version, digest, system, Template(user.strip()), schema, validator)


def records() -> dict[str, dict]:
    return {name: load(name).record for name in SCHEMAS}
