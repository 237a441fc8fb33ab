"""The loading benchmark runs, at a size too small for meaningful numbers."""

import dataclasses
import json

from evals.speed import harness, loading
from tests.checkpoint_files import CFG


def test_loads_a_generated_checkpoint(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(CFG, dtype="bfloat16", param_dtype="bfloat16")
    monkeypatch.setitem(loading.SIZES, "3b", config)
    harness.run("loading", ["--devices", "2", "--output", str(tmp_path / "out.json")])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out.json").read_text())
    result = json.loads((tmp_path / "out.json").read_text())["result"]
    found = result["2 devices"]
    assert found["parameters held / checkpoint"] >= 1 and found["bytes read / checkpoint"] >= 1
    assert found["peak memory / checkpoint"] > 0 and found["seconds"] > 0
