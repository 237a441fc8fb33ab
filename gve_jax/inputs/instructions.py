"""Named instructions of UVRB's queries (arXiv 2510.27571, table 5); documents have none."""

from collections.abc import Mapping

from gve_jax.errors import UserError


def _by(slot: str) -> str:
    return f"Find the video according to the {slot}."


INSTRUCTIONS = {
    "MSRVTT": "Find the clip that corresponds to the described scene in the given video.",
    "DiDeMo": "Find a video that includes the following described scenes.",
    "CRB-G": _by("general text description"),
    "CRB-S": _by("spatial description"),
    "VDC-O": _by("object description"),
    "CRB-T": _by("temporal description"),
    "CMRB": _by("camera motion description"),
    "DREAM-E": _by("text description"),
    "LoVR-TH": "Find the video according to text description about video theme information.",
    "PEV-K": _by("text description of a series of keywords"),
    "LoVR-V": "Find the long video according to the long text description.",
    "VDC-D": _by("detailed text description"),
    "MS-TI": "Find the video clip that corresponds to the given text and the given image.",
    "MS-TV": "Find the video clip that corresponds to the given text and the given video.",
    "MSRVTT-I2V": _by("image"),
    "LoVR-C2V": "Find the original long video according to the short video clip.",
}


def choose_instruction(
    prompt: str | None, prompt_name: str | None, prompts: Mapping[str, str] = INSTRUCTIONS
) -> str | None:
    """Returns `prompt`, or the instruction named `prompt_name`, or None.

    Raises:
      UserError: both are given; an unknown name; a prompt that is not a text.
    """
    if prompt_name is not None:
        if prompt is not None:
            raise UserError("give prompt or prompt_name, not both")
        if not isinstance(prompt_name, str) or prompt_name not in prompts:
            raise UserError(f"unknown prompt_name {prompt_name!r}; known: {', '.join(prompts)}")
        prompt = prompts[prompt_name]
    if not isinstance(prompt, str | None):
        raise UserError(f"a prompt must be a text, not {type(prompt).__name__}")
    try:
        (prompt or "").encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, or bytes of a command line
        raise UserError(f"the prompt is not valid Unicode: {error}") from error
    return prompt
