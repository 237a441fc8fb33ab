"""Progress where there is no terminal: a line now and then, and one at the end."""

import time

import pytest

from gve_jax import progress


def test_lines_are_printed_regularly_and_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    with progress.progress_bar() as bars:
        task = bars.add_task("embedding", total=2000)
        bars.advance(task, 500)
        deadline = time.monotonic() + 30
        seen = ""
        while "(25%)" not in seen and time.monotonic() < deadline:
            time.sleep(0.05)
            seen += capsys.readouterr().err
        bars.advance(task, 1500)
    assert seen.startswith("embedding: 500 of 2,000 (25%), 00:00:")
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith("embedding: 2,000 of 2,000 (100%), 00:00:")


def test_nothing_is_printed_where_progress_is_disabled(capsys):
    with progress.progress_bar(disable=True) as bars:
        bars.advance(bars.add_task("embedding", total=2))
    assert capsys.readouterr() == ("", "")


def test_the_last_line_says_where_an_error_stopped_it(capsys):
    with pytest.raises(ValueError), progress.progress_bar() as bars:
        bars.advance(bars.add_task("embedding", total=4), 3)
        raise ValueError
    assert "embedding: 3 of 4 (75%)" in capsys.readouterr().err
