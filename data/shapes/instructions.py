"""Instructions of queries; documents carry none.

Evaluation strings are those of UVRB (arXiv 2510.27571, table 5); training sources use the string
of the set they prepare for, and short ones of ours where UVRB has no such task.
"""


def _by(slot: str) -> str:
    return f"Find the video according to the {slot}."


EVALUATION = {
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

# Several strings: one is drawn a pair.
TRAINING = {
    "T2T": ("Find the text that describes the same scene.",),
    "T2I": ("Find the image according to the text description.",),
    "I2I": ("Find another image of the same scene.",),
    "TI2I": ("Find the image that results from the given change of the given image.",),
    "TI2T": ("Find the text that describes the given image after the given change.",),
    "T2V_whole": tuple(EVALUATION[n] for n in ("MSRVTT", "DiDeMo", "CRB-G", "VDC-D")),
    "T2V_spatial": (EVALUATION["CRB-S"],),
    "T2V_temporal": (EVALUATION["CRB-T"],),
    "T2V_crossing": (EVALUATION["CRB-T"],),
    "T2V_motion": (EVALUATION["DREAM-E"],),
    "T2V_camera": (EVALUATION["CMRB"],),
    "T2V_keywords": (EVALUATION["PEV-K"],),
    "T2V_event": (EVALUATION["DREAM-E"],),
    "T2V_object": (EVALUATION["VDC-O"],),
    "T2V_theme": (EVALUATION["LoVR-TH"],),
    "T2V_long": (EVALUATION["LoVR-V"],),
    "I2V": (EVALUATION["MSRVTT-I2V"],),
    "V2V": (EVALUATION["LoVR-C2V"],),
    "TI2V": (EVALUATION["MS-TI"],),
    "TV2V": (EVALUATION["MS-TV"],),
}
