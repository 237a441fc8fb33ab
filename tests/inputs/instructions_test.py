"""Instructions by name are those of the paper's table 5, and every set has one."""

import pytest

from data.uvrb.tasks import TASKS
from gve_jax.errors import UserError
from gve_jax.inputs.instructions import INSTRUCTIONS, choose_instruction

SENTENCES = {
    "MSRVTT": "Find the clip that corresponds to the described scene in the given video.",
    "DiDeMo": "Find a video that includes the following described scenes.",
    "CRB-G": "Find the video according to the general text description.",
    "CRB-S": "Find the video according to the spatial description.",
    "VDC-O": "Find the video according to the object description.",
    "CRB-T": "Find the video according to the temporal description.",
    "CMRB": "Find the video according to the camera motion description.",
    "DREAM-E": "Find the video according to the text description.",
    "LoVR-TH": "Find the video according to text description about video theme information.",
    "PEV-K": "Find the video according to the text description of a series of keywords.",
    "LoVR-V": "Find the long video according to the long text description.",
    "VDC-D": "Find the video according to the detailed text description.",
    "MS-TI": "Find the video clip that corresponds to the given text and the given image.",
    "MS-TV": "Find the video clip that corresponds to the given text and the given video.",
    "MSRVTT-I2V": "Find the video according to the image.",
    "LoVR-C2V": "Find the original long video according to the short video clip.",
}


def test_names_and_texts_are_those_of_the_benchmark():
    assert INSTRUCTIONS == SENTENCES == {task.name: task.instruction for task in TASKS}


def test_one_of_two_is_chosen():
    assert choose_instruction(None, None) is None
    assert choose_instruction("Find it.", None) == "Find it."
    assert (
        choose_instruction(None, "CRB-S") == "Find the video according to the spatial description."
    )
    with pytest.raises(UserError, match="not both"):
        choose_instruction("Find it.", "CRB-S")
    with pytest.raises(UserError, match="not valid Unicode"):
        choose_instruction("\ud800", None)
    with pytest.raises(UserError, match="'crb-s'"):
        choose_instruction(None, "crb-s")
