"""Profiles: everything about an embedder that is not architecture, as data.

A profile is what its authors trained with and their scripts do: the prompt, the pooled token, the
positions, the frames and their sizes. The pooled token is the last one: tokens that a script puts
after it cannot change its vector in a causal model, and are left out. Sources are in
docs/models.md.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gve_jax.errors import UserError
from gve_jax.inputs.positions import SEQUENTIAL

_DEFAULT = "You are a helpful assistant."  # inserted by Qwen2-VL's chat template
FROM_TOKENIZER = "post-processor"  # the end tokens that the tokenizer.json itself appends


@dataclasses.dataclass(frozen=True)
class Profile:
    """How an embedder's inputs become tokens and frames.

    Attributes:
      name: `InputSpec.profile`, which is a part of every fingerprint.
      architectures: those that it was released for, as `ModelConfig.architecture`.
      repositories: regular expression of the names of its releases.
      system: content of the system turn, in which `{instruction}` is the instruction or
        `default_instruction`; None, or an empty content, for no system turn.
      default_instruction: of queries and documents alike.
      user: the parts of the user turn in order, "video", "image", "instruction" and "text", and
        strings between them, which are written after a part if another one follows.
      suffix: end of the user turn, in which `{kinds}` names the item's parts ("image and text").
      chat: whether the turns have the tokens of the chat template, and an empty assistant turn
        follows.
      vision_tokens: whether `<|vision_start|>` and `<|vision_end|>` surround a visual.
      end: the last token, which is pooled; "" for none; `FROM_TOKENIZER`.
      full_stop: whether an instruction is stripped, and gets a full stop if it does not end in
        punctuation.
      frames_as_images: whether each frame of a video is an image of its own.
      resized_twice: whether images, and frames as images, are first resized within 4 to 16,384
        merged tokens, then within their limits.
      video_limits: whether frames of videos also have the limits of qwen-vl-utils' `fetch_video`:
        768 merged tokens each and 115,200 together. Scripts that leave videos to transformers'
        processor have only their own.
      bare_video: instruction of a video with neither text nor instruction.
      inputs: fields of `gve_jax.inputs.preprocess.InputSpec` that differ from GVE's.
      shortest: fewest leading dimensions that are a vector of their own (Matryoshka training); None
        if it was not trained for shorter vectors.
    """

    name: str
    architectures: tuple[str, ...]
    repositories: str
    system: str | None = "{instruction}"
    default_instruction: str = _DEFAULT
    user: tuple[str, ...] = ("video", "image", "text")
    suffix: str = ""
    chat: bool = True
    vision_tokens: bool = True
    end: str = "<|endoftext|>"
    full_stop: bool = False
    frames_as_images: bool = False
    resized_twice: bool = False
    video_limits: bool = True
    bare_video: str = ""
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shortest: int | None = None

    @property
    def media(self) -> tuple[str, ...]:
        """The order of an item's media."""
        return tuple(part for part in self.user if part in ("video", "image"))

    @property
    def takes_instructions(self) -> bool:
        return "instruction" in self.user or "{instruction}" in (self.system or "")


_QWEN2, _QWEN3 = ("qwen2_vl",), ("qwen3_vl",)
_TOKEN2, _TOKEN3 = 28**2, 32**2  # pixels of a merged token

_GVE = Profile(
    name="gve",
    architectures=("qwen2_5_vl", "qwen2_vl", "qwen3_vl"),
    repositories=r"\bgve-\d+b",
)
_GME = Profile(
    name="gme",
    architectures=_QWEN2,
    repositories=r"\bgme-qwen2",
    frames_as_images=True,  # as the paper gives it videos; its script reads images only
    resized_twice=True,
    video_limits=False,
    inputs=dict(mrope=SEQUENTIAL, image_min_pixels=256 * _TOKEN2, image_max_pixels=1280 * _TOKEN2),
)
_VLM2VEC = Profile(
    name="vlm2vec-v2",
    architectures=_QWEN2,
    repositories=r"vlm2vec",
    system=None,
    user=("image", " ", "video", " ", "instruction", " ", "text"),
    chat=False,
    vision_tokens=False,
    end="",
    bare_video="Understand the content of the provided video.",
    video_limits=False,
    inputs=dict(mrope=SEQUENTIAL, max_pixels=1280 * _TOKEN2, resize="uint8"),
)
_PROFILES = (
    _GVE,
    _GME,
    Profile(
        name="unite",
        architectures=_QWEN2,
        repositories=r"\bunite[-_]",
        system=_DEFAULT,
        suffix="\nSummary above {kinds} in one word:",
        inputs=dict(
            mrope=SEQUENTIAL,
            num_frames=32,
            min_pixels=128 * _TOKEN2,
            max_pixels=360 * 420,
            image_min_pixels=256 * _TOKEN2,
            image_max_pixels=1280 * _TOKEN2,
        ),
    ),
    _VLM2VEC,
    dataclasses.replace(_VLM2VEC, name="b3", repositories=r"\bb3[-_]", bare_video=""),
    dataclasses.replace(
        _GME,
        name="rzenembed",
        repositories=r"rzenembed",
        system=_DEFAULT,
        user=("image", "video", "instruction", "text"),  # instructions end in a space
        inputs=dict(
            mrope=SEQUENTIAL,
            max_length=2000,
            min_pixels=160 * _TOKEN2,
            max_pixels=180 * _TOKEN2,
            image_min_pixels=256 * _TOKEN2,
            image_max_pixels=1280 * _TOKEN2,
        ),
    ),
    Profile(
        name="ops-mm",
        architectures=_QWEN2,
        repositories=r"\bops-mm",
        user=("image", "video", "text"),
        frames_as_images=True,
        video_limits=False,
        inputs=dict(max_length=12_288, min_pixels=256 * _TOKEN2, max_pixels=1280 * _TOKEN2),
    ),
    Profile(  # an untrained baseline has no convention: GME's prompt
        name="qwen2-vl", architectures=_QWEN2, repositories=r"^qwen2-vl-\d+b(-instruct)?$"
    ),
    Profile(
        name="qwen3-vl-embedding",
        architectures=_QWEN3,
        repositories=r"qwen3-vl-embedding",
        default_instruction="Represent the user's input.",
        end=FROM_TOKENIZER,
        full_stop=True,
        inputs=dict(
            fps=1.0,
            max_frames=64,
            min_pixels=128 * _TOKEN3,
            max_pixels=768 * _TOKEN3,
            total_pixels=10 * 768 * _TOKEN3,
            image_min_pixels=4 * _TOKEN3,
            image_max_pixels=1800 * _TOKEN3,
        ),
        shortest=1,
    ),
    Profile(
        name="embed-rl",
        architectures=_QWEN3,
        repositories=r"embed-?rl|emb_token_ids",
        system=None,
        user=("image", "instruction", " ", "text", "video"),
        suffix="Summarize the above content in one word:",
        end="<emb>",
        inputs=dict(
            min_pixels=128 * _TOKEN3, max_pixels=768 * _TOKEN3, total_pixels=8 * 768 * _TOKEN3
        ),
    ),
    Profile(  # an untrained baseline: GME's prompt, without a default instruction
        name="qwen3-vl",
        architectures=_QWEN3,
        repositories=r"^qwen3-vl-\d+b(-instruct|-thinking)?$",
        default_instruction="",
    ),
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in _PROFILES}


def find_profile(name: str) -> Profile:
    """Returns the profile with this name; raises UserError if it is unknown."""
    if name not in PROFILES:
        raise UserError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]


def choose_profile(name: str | None, architecture: str, called: Iterable[str]) -> Profile:
    """The profile of a released checkpoint.

    Args:
      name: of the profile, if the user states it.
      architecture: of the checkpoint.
      called: names of repository, folder and adapter, and what config.json calls it. A config.json
        alone does not tell a fine-tuned embedder from its base.

    Raises:
      UserError: an unknown profile, or one of another architecture; names that do not decide.
    """
    if name is not None:
        profile = find_profile(name)
        if architecture not in profile.architectures:
            raise UserError(
                f"profile {name} is for {', '.join(profile.architectures)}; the checkpoint is "
                f"{architecture}"
            )
        return profile
    candidates = [profile for profile in _PROFILES if architecture in profile.architectures]
    for each in called:
        for profile in candidates:
            if re.search(profile.repositories, each, re.IGNORECASE):
                return profile
    if architecture == "qwen2_5_vl":
        return PROFILES["gve"]
    known = ", ".join(profile.name for profile in candidates)
    raise UserError(
        f"its name does not say which embedder of {architecture} it is; give profile=, one of: "
        f"{known}"
    )
