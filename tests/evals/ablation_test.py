"""Finished runs are reused, failures name their log; nothing is trained here."""

import json

import pytest

from evals.ablation import check_comparable, run_python, train_and_score
from gve_jax.errors import UserError


def test_reuses_a_finished_run_and_refuses_other_fields(tmp_path):
    workdir = tmp_path / "arm-1"
    (workdir / "uvrb").mkdir(parents=True)
    (workdir / "uvrb/results.json").write_text("{}")
    (workdir / "fields.json").write_text(json.dumps({"seed": 1, "steps": 10}))
    same = {"seed": 1, "steps": 10}
    assert train_and_score("none.py", workdir, same, tmp_path, tmp_path) == workdir
    with pytest.raises(UserError, match="arm-1 was trained with steps 10, not 20"):
        train_and_score("none.py", workdir, same | {"steps": 20}, tmp_path, tmp_path)


def test_reports_the_last_line_of_a_failed_process(tmp_path):
    log = tmp_path / "logs" / "one.log"
    with pytest.raises(UserError, match=r"failed: the reason \(see .*one\.log\)"):
        run_python(["-c", "print('before'); raise SystemExit('the reason')"], log, tmp_path)
    assert log.read_text().splitlines() == ["before", "the reason"]
    run_python(["-c", "print('well')"], log, tmp_path)
    assert log.read_text() == "well\n"


def test_refuses_runs_scored_on_other_data(tmp_path):
    workdirs = [tmp_path / name for name in "abc"]
    old = {"datasets": {"MSRVTT": {"corpus": 5}}}
    for workdir, digest in zip(workdirs, ("0", None, "0"), strict=True):
        (workdir / "uvrb").mkdir(parents=True)
        known = {"digests": {"MSRVTT": {"positives": digest}}} if digest else {}
        (workdir / "uvrb/results.json").write_text(json.dumps(old | known))
    check_comparable(workdirs)
    other = old | {"digests": {"MSRVTT": {"positives": "1"}}}
    (workdirs[2] / "uvrb/results.json").write_text(json.dumps(other))
    with pytest.raises(
        UserError,
        match="c/uvrb/results.json and .*a/uvrb/results.json: MSRVTT: "
        "the positives of the queries differ; delete one of them",
    ):
        check_comparable(workdirs)
