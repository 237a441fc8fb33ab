"""Configuration sections as dataclasses: a field's line holds its type, default, range and resume
rule, and `build` checks a mapping against them.

    @dataclasses.dataclass(frozen=True)
    class CheckpointConfig:
        every: int = setting(least=1, resume=True)  # steps
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from gve_jax.errors import UserError

_NO_DEFAULT = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Rule:
    """What numbers and texts must satisfy, beyond their types.

    Attributes:
      least, most: bounds of a number that are allowed themselves.
      above, below: bounds that are not.
      choices: the texts that are allowed; (): any.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        if isinstance(value, str):
            return not self.choices or value in self.choices
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self == Rule():
            return ""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        low = (self.least, "[") if self.above is None else (self.above, "(")
        high = (self.most, "]") if self.below is None else (self.below, ")")
        if low[0] is None:
            return f"at most {self.most}" if self.below is None else f"below {self.below}"
        if high[0] is None:
            return f"at least {self.least}" if self.above is None else f"above {self.above}"
        return f"in {low[1]}{low[0]}, {high[0]}{high[1]}"


def setting(
    default: Any = _NO_DEFAULT,
    help: str = "",
    *,
    resume: bool = False,
    per_host: bool = False,
    later: bool = False,
    **rule,
) -> Any:
    """A field of a section.

    Args:
      default: left out where a config must state the field.
      help: what the field means.
      resume: whether it may change when a run is resumed: it affects where and how the run
        executes, not its result.
      per_host: whether the hosts of a job may have different values.
      later: whether runs of 0.2.0 lack the field: records of a run leave it out while it has its
        default, so that those runs can be resumed.
      rule: as of `Rule`; holds for the value, or for each number or text within it.
    """
    metadata = {"help": help, "rule": Rule(**rule), "resume": resume, "per_host": per_host}
    metadata["later"] = later
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(kind: type, values: object, path: str, **derived) -> Any:
    """The dataclass `kind` of the section of a configuration at `path`, every field checked.

    Nested dataclasses are built from nested mappings, lists become tuples, numpy's numbers
    Python's. Numbers are finite; a boolean is no number and a number no boolean.

    Args:
      derived: fields that the section must not state, as they follow from other sections.

    Raises:
      UserError: naming the field, for one that is missing, unknown, of another type or out of its
        range, and for anything that the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path} {shown(values)} must be a section of fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = _hints(kind)
    prefix = f"{path}."
    for name in values:
        if name in derived:
            raise UserError(f"{prefix}{name} cannot be set: it follows from other fields")
        if name not in fields:
            known = ", ".join(name for name in fields if name not in derived)
            raise UserError(f"{prefix}{name}: unknown field; known: {known}")
    made = {}
    for name, field in fields.items():
        if name in derived:
            made[name] = derived[name]
        elif name in values:
            rule = field.metadata.get("rule", Rule())
            made[name] = _convert(values[name], hints[name], rule, prefix + name)
        elif field.default is _NO_DEFAULT and field.default_factory is _NO_DEFAULT:
            raise UserError(f"{prefix}{name} is missing")
    try:
        return kind(**made)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def check_rules(section: Any) -> None:
    """Raises ValueError, naming the field, for a number or text of a dataclass outside its range:
    for those that are also made without `build`."""
    for field in dataclasses.fields(section):
        rule, value = field.metadata.get("rule"), getattr(section, field.name)
        if rule and isinstance(value, int | float | str) and not rule.allows(value):
            raise ValueError(f"{field.name} {value!r} must be {rule}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(value: Any, hint: Any, rule: Rule, path: str) -> Any:
    """`value` as the type `hint`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _one_of(value, inner, rule, path)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if hint is tuple or origin is tuple:
        return _tuple(value, inner or (Any, ...), rule, path)
    if origin is Mapping or origin is dict:
        if not isinstance(value, Mapping):
            raise _mistake(path, value, "a mapping")
        keys = [_convert(key, inner[0], Rule(), f"{path}: a name") for key in value]
        ones = [_convert(one, inner[1], rule, f"{path}.{key}") for key, one in value.items()]
        return dict(zip(keys, ones, strict=True))
    return _scalar(value, hint, rule, path)


def _one_of(value: Any, hints: tuple, rule: Rule, path: str) -> Any:
    """`value` as the first of the types that takes it."""
    if type(None) in hints and (value is None or (str in hints and value == "none")):
        return None  # a command line cannot spell None
    hints = tuple(hint for hint in hints if hint is not type(None))
    for hint in hints[:-1]:
        try:
            return _convert(value, hint, rule, path)
        except UserError:
            continue
    return _convert(value, hints[-1], rule, path)


def _tuple(value: Any, inner: tuple, rule: Rule, path: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise _mistake(path, value, "a tuple")
    if inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    elif len(value) != len(inner):
        raise _mistake(path, value, f"a tuple of {len(inner)}")
    return tuple(
        _convert(one, hint, rule, f"{path}[{number}]")
        for number, (one, hint) in enumerate(zip(value, inner, strict=True))
    )


def _scalar(value: Any, hint: type, rule: Rule, path: str) -> Any:
    fits = {
        bool: lambda: isinstance(value, bool),
        int: lambda: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: lambda: isinstance(value, numbers.Real) and not isinstance(value, bool),
        str: lambda: isinstance(value, str),
    }
    if hint not in fits:
        raise TypeError(f"{path}: a field of type {hint} cannot be checked")
    if not fits[hint]():
        raise _mistake(path, value, _NAMES[hint])
    try:
        value = hint(value)
    except OverflowError:  # an integer beyond the largest float
        raise _mistake(path, value, "finite") from None
    if hint is float and not math.isfinite(value):
        raise _mistake(path, value, "finite")
    if hint is int and abs(value) >= 2**63:
        raise _mistake(path, value, "an integer of at most 64 bits")
    if not rule.allows(value):
        raise _mistake(path, value, str(rule))
    return value


_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}


def _mistake(path: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{path} {shown(value)} must be {wanted}")


def shown(value: Any) -> str:
    """The value as a message shows it: in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_json(value: Any, leave_out: str | None = None) -> Any:
    """A built section as plain JSON values.

    Args:
      leave_out: "resume" or "per_host": fields with that mark are left out, at every level, and
        `later` ones that have their default.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name: as_json(getattr(value, field.name), leave_out)
            for field in dataclasses.fields(value)
            if not (leave_out and _is_left_out(field, getattr(value, field.name), leave_out))
        }
    if isinstance(value, Mapping):
        return {key: as_json(one, leave_out) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(one, leave_out) for one in value]
    return value


def _is_left_out(field: dataclasses.Field, value: Any, leave_out: str) -> bool:
    is_default = field.metadata.get("later", False) and value == field.default
    return field.metadata.get(leave_out, False) or is_default


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """Documentation of one field: `path` within the config, such as `loss.temperature`."""

    path: str
    type: str
    default: Any  # dataclasses.MISSING: required
    range: str
    resume: bool
    help: str


def field_infos(kind: type, prefix: str = "", resume: bool = False) -> list[FieldInfo]:
    """The fields of a dataclass and of those nested in it, in order."""
    found = []
    for field in dataclasses.fields(kind):
        hint, metadata = _hints(kind)[field.name], field.metadata
        path, may_change = prefix + field.name, resume or bool(metadata.get("resume"))
        inner = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        if inner:
            found += field_infos(inner[0], f"{path}.", may_change)
            continue
        name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
        name = name.replace("collections.abc.", "").replace("typing.", "")
        default = field.default
        if default is _NO_DEFAULT and field.default_factory is not _NO_DEFAULT:
            default = field.default_factory()
        rule, text = str(metadata.get("rule", "")), metadata.get("help", "")
        found.append(FieldInfo(path, name, default, rule, may_change, text))
    return found


def describe(kind: type, values: Mapping) -> list[str]:
    """Two lines for each field of a config: its value, then its comment, default and range."""
    lines = []
    for field in field_infos(kind):
        value: Any = values
        for name in field.path.split("."):
            value = value.get(name, _NO_DEFAULT) if isinstance(value, Mapping) else _NO_DEFAULT
        default = "required" if field.default is _NO_DEFAULT else f"default: {field.default!r}"
        text = "not set" if value is _NO_DEFAULT else shown(value)
        notes = [default, *filter(None, [field.range]), *(["may change on resume"] * field.resume)]
        lines += [f"{field.path} = {text}", f"    {field.help} ({'; '.join(notes)})"]
    return lines


def default_config(kind: type) -> ConfigDict:
    """The defaults of a dataclass and of those nested in it, without its required fields.

    Optional fields hold a typed placeholder, so that a command line can override a None.
    """
    config = ConfigDict()
    for field in dataclasses.fields(kind):
        hint, default = _hints(kind)[field.name], field.default
        if dataclasses.is_dataclass(hint):
            config[field.name] = default_config(hint)
            continue
        if field.default_factory is not _NO_DEFAULT:
            default = field.default_factory()
        inner = [one for one in typing.get_args(hint) if one is not type(None)]
        optional = type(None) in typing.get_args(hint)
        if default is _NO_DEFAULT or (optional and dataclasses.is_dataclass(inner[0])):
            continue
        if optional:
            config[field.name] = placeholder(inner[0])
        if default is not None:
            config[field.name] = ConfigDict(default) if isinstance(default, dict) else default
    return config
