"""docs/compatibility.md is what the tests say."""

import pytest

from tests import compatibility


def test_page_is_current():
    page = compatibility.PAGE.read_text(encoding="utf-8")
    assert page == compatibility.write_page(), "run: python -m tests.compatibility"


def test_a_mark_outside_of_a_test_is_refused(tmp_path):
    path = tmp_path / "a_test.py"
    path.write_text("CASES = [situation('Media', 'a', 'b', since='0.2.0')]\n")
    with pytest.raises(ValueError, match="must mark a test function"):
        list(compatibility.find_situations(path))
