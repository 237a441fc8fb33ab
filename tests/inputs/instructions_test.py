"""Instructions by name are those that the benchmark uses."""

import pytest

from evals.uvrb.tasks import TASKS
from gve_jax.errors import UserError
from gve_jax.inputs.instructions import INSTRUCTIONS, choose_instruction


def test_names_and_texts_are_those_of_the_benchmark():
    assert INSTRUCTIONS == {task.name: task.instruction for task in TASKS}


def test_one_of_two_is_chosen():
    assert choose_instruction(None, None) is None
    assert choose_instruction("Find it.", None) == "Find it."
    assert (
        choose_instruction(None, "CRB-S") == "Find the video according to the spatial description."
    )
    with pytest.raises(UserError, match="not both"):
        choose_instruction("Find it.", "CRB-S")
    with pytest.raises(UserError, match="'crb-s'"):
        choose_instruction(None, "crb-s")
