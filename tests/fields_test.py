"""Values of a configuration's section against the types and ranges of its dataclass."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.fields import as_json, build, check_rules, setting


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = setting(least=1)


@dataclasses.dataclass(frozen=True)
class Section:
    count: int = setting(least=0, most=9)
    rate: float = setting(0.5, above=0, below=1, resume=True)
    flag: bool = False
    kind: str = setting("a", choices=("a", "b"), per_host=True)
    limit: float | None = setting(None, least=0)
    table: tuple[tuple[str, int | tuple[int, ...]], ...] = setting((), least=1)
    names: Mapping[str, int] = setting(None, least=1)
    inner: Inner | None = None


def test_values_become_the_types_of_their_fields():
    table = [["x", 1], ("y", [2, 3])]
    made = build(
        Section,
        {
            "count": np.int64(3),
            "rate": np.float32(0.25),
            "limit": 2,
            "table": table,
            "inner": {"size": 4},
        },
        "c",
    )
    assert made == Section(3, 0.25, limit=2.0, table=(("x", 1), ("y", (2, 3))), inner=Inner(4))
    assert type(made.count) is int and type(made.rate) is type(made.limit) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "c.count is missing"),
        ({"count": 1, "nope": 2}, "c.nope: unknown field; known: count, rate, .*"),
        ({"count": True}, "c.count True must be an integer"),
        ({"count": 1.0}, "c.count 1.0 must be an integer"),
        ({"count": "1"}, "c.count '1' must be an integer"),
        ({"count": None}, "c.count None must be an integer"),
        ({"count": 10}, r"c.count 10 must be in \[0, 9\]"),
        ({"count": 10**30}, "c.count 10+ must be an integer of at most 64 bits"),
        ({"count": 1, "rate": float("nan")}, "c.rate nan must be finite"),
        ({"count": 1, "rate": float("inf")}, "c.rate inf must be finite"),
        ({"count": 1, "rate": 10**400}, "c.rate 10.* must be finite"),
        ({"count": 1, "rate": True}, "c.rate True must be a number"),
        ({"count": 1, "rate": 1}, r"c.rate 1.0 must be in \(0, 1\)"),
        ({"count": 1, "flag": 1}, "c.flag 1 must be True or False"),
        ({"count": 1, "kind": "z"}, "c.kind 'z' must be one of a, b"),
        ({"count": 1, "limit": -1}, "c.limit -1.0 must be at least 0"),
        ({"count": 1, "table": "xy"}, "c.table 'xy' must be a tuple"),
        ({"count": 1, "table": (("x",),)}, r"c.table\[0\] \('x',\) must be a tuple of 2"),
        ({"count": 1, "table": (("x", (1, 0)),)}, r"c.table\[0\]\[1\]\[1\] 0 must be at least 1"),
        ({"count": 1, "names": {"x": 0}}, "c.names.x 0 must be at least 1"),
        ({"count": 1, "names": 3}, "c.names 3 must be a mapping"),
        ({"count": 1, "inner": 3}, "c.inner 3 must be a section of fields"),
        ({"count": 1, "inner": {}}, "c.inner.size is missing"),
        (None, "c None must be a section of fields"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(values, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        build(Section, values, "c")


def test_a_field_that_follows_from_others_cannot_be_set():
    assert build(Section, {}, "c", count=2).count == 2
    with pytest.raises(UserError, match="c.count cannot be set: it follows from other fields"):
        build(Section, {"count": 1}, "c", count=2)


def test_marked_fields_are_left_out_of_a_record():
    made = Section(1, inner=Inner(2))
    whole = as_json(made)
    assert whole["inner"] == {"size": 2} and whole["table"] == []
    assert whole.keys() - as_json(made, leave_out="resume").keys() == {"rate"}
    assert whole.keys() - as_json(made, leave_out="per_host").keys() == {"kind"}


def test_ranges_of_unbuilt_sections_can_be_checked():
    with pytest.raises(ValueError, match="rate 2.0 must be in"):
        check_rules(Section(1, rate=2.0))
