"""Files of scores as prober: their values are used, their errors named in one line."""

import json

import pytest

from gve_jax.errors import UserError
from gve_jax.running.prober import is_score_file, read_scores

TASKS = {"T2T": ["T2T_a"], "T2V": ["T2V_b", "T2V_c"]}


def test_sources_have_the_scores_of_their_tasks(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"T2V": -0.25, "T2T": 1}))
    assert is_score_file(str(path)) and not is_score_file("Alibaba-NLP/GVE-3B")
    assert read_scores(str(path), TASKS) == {"T2T_a": 1.0, "T2V_b": -0.25, "T2V_c": -0.25}


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"T2T": 0.5}', "no score of task 'T2V'"),
        ('{"T2T": 0.5, "T2V": 0.5, "I2I": 0.1}', "unknown task 'I2I'"),
        ('{"T2T": NaN, "T2V": 0.5}', "'T2T' is nan, must be a mean cosine"),
        ('{"T2T": true, "T2V": 0.5}', "'T2T' is True, must be a mean cosine"),
        ('{"T2T": 1.5, "T2V": "x"}', "'T2T' is 1.5, must be .*; 'T2V' is 'x', must be a mean cos"),
        ("[1]", "must be a JSON object"),
        ("{", "Expecting property name"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line(tmp_path, text, named):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(UserError, match=named) as error:
        read_scores(str(path), TASKS)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
