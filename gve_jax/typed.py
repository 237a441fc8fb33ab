"""Dataclasses made of JSON, with the type of every field checked.

The files come from users' hands: a number in quotes or a null must end in one line that names the
field, not in a traceback out of the arithmetic.
"""

import dataclasses
import sys
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")
_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def from_json(kind: type[T], value: object, name: str) -> T:
    """The dataclass `kind` of a JSON object; nested dataclasses and tuples are made as well.

    Args:
      kind: annotated with plain types, tuples of them, other dataclasses, or a union with None.
      value: what the JSON file holds.
      name: of `value` in the file, `inputs`; errors begin with it.

    Raises:
      ValueError: not an object, an unknown or a missing field, a field of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, not an object")
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    known = {field.name for field in fields}
    if unknown := sorted(value.keys() - known):
        raise ValueError(f"{name}.{unknown[0]}: unknown field")
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [key for key in required if key not in value]:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    return kind(**{key: _made(hints[key], each, f"{name}.{key}") for key, each in value.items()})


def _made(hint: Any, value: object, name: str) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
        if value is None:
            return None
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, name)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value, name)
    good = type(value) is hint
    if hint is float:
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
    if not good:
        raise ValueError(f"{name} is {_shown(value)}, not {_NAMES[hint]}")
    return value


def _tuple(hints: tuple, value: object, name: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {_shown(value)}, not a list")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{name} has {len(value)} entries, not {len(hints)}")
    return tuple(
        _made(hint, each, f"{name}[{index}]")
        for index, (hint, each) in enumerate(zip(hints, value, strict=True))
    )


def _shown(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
