"""A file of scores as prober: what it says is used, what is wrong with it is named in a line."""

import json

import pytest

from gve_jax.errors import UserError
from gve_jax.running.prober import is_scores, read_scores

TASKS = {"T2T": ["T2T_a"], "T2V": ["T2V_b", "T2V_c"]}


def test_scores_of_tasks_are_those_of_their_sources(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"T2V": -0.25, "T2T": 1}))
    assert is_scores(str(path)) and not is_scores("Alibaba-NLP/GVE-3B")
    assert read_scores(str(path), TASKS) == {"T2T_a": 1.0, "T2V_b": -0.25, "T2V_c": -0.25}


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"T2T": 0.5}', "no score of 'T2V'"),
        ('{"T2T": 0.5, "T2V": 0.5, "I2I": 0.1}', "'I2I' is no task"),
        ('{"T2T": NaN, "T2V": 0.5}', "'T2T' is nan, no mean cosine"),
        ('{"T2T": true, "T2V": 0.5}', "'T2T' is True, no mean cosine"),
        ('{"T2T": 1.5, "T2V": "x"}', "'T2T' is 1.5, no mean cosine; 'T2V' is 'x', no mean cosine"),
        ("[1]", "not an object"),
        ("{", "Expecting property name"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, named):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(UserError, match=named) as error:
        read_scores(str(path), TASKS)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
