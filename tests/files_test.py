"""Lines of JSON that are no text, and ids that would be changed on their way."""

import pytest

from gve_jax.errors import UserError
from gve_jax.files import read_records, text_id


@pytest.mark.parametrize("line", [r'{"id": "a\ud800"}', r'{"a": [{"b\uDFFF": 1}]}'])
def test_half_a_surrogate_pair_is_refused_by_its_line(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "\\ud83d\\ude42"}\n' + line + "\n")
    records = read_records(path)
    assert next(records)[1] == {"id": "\U0001f642"}
    with pytest.raises(UserError, match=r"x\.jsonl:2: half a surrogate pair"):
        next(records)


def test_an_id_with_a_nul_is_refused():
    """numpy's strings lose it at their end: "a" and "a\\0" would be one query."""
    with pytest.raises(UserError, match="is not an id"):
        text_id("x:1", "a\0")
    assert text_id("x:1", "a\nb c\t") == "a\nb c\t"
