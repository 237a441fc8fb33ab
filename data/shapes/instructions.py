"""Instructions of queries; documents have none.

Training sources use the instruction of the corresponding set of UVRB (arXiv 2510.27571, table 5),
or a short one of our own for tasks that UVRB does not have.
"""

from gve_jax.inputs.instructions import INSTRUCTIONS as EVALUATION

# One of the instructions is drawn for each pair.
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
