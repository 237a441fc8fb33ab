"""Configuration of data.uvrd: dataclasses with the ranges of the fields of configs/uvrd.py."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from gve_jax.errors import UserError
from gve_jax.fields import build, setting
from gve_jax.media.limits import Limits

TYPES = ("T2T", "T2I", "T2V", "TI2V", "TV2V", "I2V", "V2V")
PROFILES = ("spatial", "temporal", "other")
KINDS = ("summary", "spatio_temporal", "abstract", "keywords", "partial")  # of captions
MAX_PER_VIDEO = 5  # pairs of one type: a video has five captions
# Sections that may change on resume: how fast pairs are made, and when the run stops.
RESUMABLE = ("calls", "run", "limits")
_SHARE = dict(least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Text:
    require: bool
    least_words: int = setting(least=0)
    most_words: int = setting(above=0)
    most_characters: int = setting(above=0)
    most_repeated: float = setting(**_SHARE)
    least_letters: float = setting(**_SHARE)
    language: str = setting(choices=("en", "any"))


@dataclasses.dataclass(frozen=True)
class Video:
    num_frames: int = setting(above=0)
    max_pixels: int = setting(above=0)
    most_bytes: int = setting(above=0)
    least_seconds: float = setting(least=0)
    most_seconds: float = setting(above=0)
    least_motion: float = setting(**_SHARE)


@dataclasses.dataclass(frozen=True)
class Frame:
    format: str = setting(choices=("jpeg", "png"))
    quality: int = setting(above=0)
    latest: float = setting(**_SHARE)


@dataclasses.dataclass(frozen=True)
class Clip:
    least_seconds: float = setting(above=0)
    most_seconds: float = setting(above=0)
    share: float = setting(**_SHARE)
    fps: float = setting(above=0)
    max_pixels: int = setting(above=0)
    crf: int = setting(above=0)


@dataclasses.dataclass(frozen=True)
class Server:
    images: int = setting(above=0)
    temperature: float = setting(least=0)
    top_p: float = setting(above=0)
    max_tokens: int = setting(above=0)
    schema: str = setting(choices=("json_schema", "json_object", "prompt"))
    tries: int = setting(above=0)


@dataclasses.dataclass(frozen=True)
class Calls:
    concurrency: int = setting(above=0)
    seconds: float = setting(above=0)
    attempts: int = setting(above=0)
    backoff: float = setting(least=0)
    most_backoff: float = setting(above=0)
    most_failures: float = setting(**_SHARE)
    price_in: float = setting(least=0)
    price_out: float = setting(least=0)


@dataclasses.dataclass(frozen=True)
class Run:
    part: int = setting(above=0)
    ahead: int = setting(above=0)
    decoders: int = setting(above=0)
    max_bad_share: float = setting(**_SHARE)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked configuration; `get_config` of configs/uvrd.py describes each field."""

    seed: int
    similarity: float = setting(least=-1, most=1)
    pairs: Mapping[str, float] = setting(least=0, most=MAX_PER_VIDEO)
    profiles: Mapping[str, float]
    readability: tuple[str, ...]
    education: tuple[str, ...]
    lengths: Mapping[str, tuple[int, int]]
    slack: float  # config.lengths.slack
    text: Text
    video: Video
    frame: Frame
    clip: Clip
    server: Server
    calls: Calls
    run: Run
    limits: Limits

    @classmethod
    def of(cls, config: ConfigDict) -> "Settings":
        """Raises UserError, naming the field, if one is missing, unknown or out of its range."""
        fields = config.to_dict()
        lengths = fields.get("lengths")
        if not isinstance(lengths, Mapping) or "slack" not in lengths:
            raise UserError("config.lengths.slack is missing")
        fields["lengths"] = {name: one for name, one in lengths.items() if name != "slack"}
        settings = build(cls, fields | {"slack": lengths["slack"]}, "config")
        settings._check()
        return settings

    def _check(self) -> None:
        """Checks `slack` and the rules that involve several fields."""
        _require("lengths.slack", 0 <= self.slack < 1, self.slack, "in [0, 1)")
        _check_keys("lengths", self.lengths, (*KINDS, "frame", "image_query", "clip_query"))
        for name, (least, most) in self.lengths.items():
            _require(f"lengths.{name}", 1 <= least <= most, (least, most), "(least, most)")
        _check_keys("pairs", self.pairs, TYPES)
        _require("pairs", any(self.pairs.values()), "all 0", "above 0 for a type")
        _check_keys("profiles", self.profiles, PROFILES)
        shares = tuple(self.profiles.values())
        good = min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
        _require("profiles", good, shares, "shares that sum to 1")
        for name in ("readability", "education"):
            _require(name, len(getattr(self, name)) > 0, (), "a tuple of levels")
        least, frames = self.clip.least_seconds, self.video.num_frames
        good = least <= self.clip.most_seconds
        _require("clip.least_seconds", good, least, "at most clip.most_seconds")
        _require("video.num_frames", frames % 2 == 0, frames, "an even number")

    def identity(self) -> dict:
        """The fields that decide which pairs are made, as JSON values."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in RESUMABLE}
        return fields | {"part": self.run.part}


def _check_keys(section: str, values: Mapping, known: tuple[str, ...]) -> None:
    for name in sorted(set(values) ^ set(known)):
        problem = "is unknown" if name in values else "is missing"
        raise UserError(f"config.{section}.{name} {problem}")


def _require(name: str, good: bool, value, rule: str) -> None:
    if not good:
        raise UserError(f"config.{name} {value!r} must be {rule}")
