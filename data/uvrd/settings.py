"""The fields of configs/uvrd.py as checked, plain values that travel to workers."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from gve_jax.errors import UserError
from gve_jax.fields import build
from gve_jax.media.limits import Limits

TYPES = ("T2T", "T2I", "T2V", "TI2V", "TV2V", "I2V", "V2V")
PROFILES = ("spatial", "temporal", "other")
KINDS = ("summary", "spatio_temporal", "abstract", "keywords", "partial")  # of captions
MOST_A_VIDEO = 5  # pairs of one type: as many captions as there are
# What makes no other pairs: how fast they are made, and where it gives up.
FREE = ("calls", "run", "limits")


@dataclasses.dataclass(frozen=True)
class Text:
    require: bool
    least_words: int
    most_words: int
    most_characters: int
    most_repeated: float
    least_letters: float
    language: str


@dataclasses.dataclass(frozen=True)
class Video:
    num_frames: int
    max_pixels: int
    most_bytes: int
    least_seconds: float
    most_seconds: float
    least_motion: float


@dataclasses.dataclass(frozen=True)
class Frame:
    format: str
    quality: int
    latest: float


@dataclasses.dataclass(frozen=True)
class Clip:
    least_seconds: float
    most_seconds: float
    share: float
    fps: float
    max_pixels: int
    crf: int


@dataclasses.dataclass(frozen=True)
class Server:
    images: int
    temperature: float
    top_p: float
    max_tokens: int
    schema: str
    tries: int


@dataclasses.dataclass(frozen=True)
class Calls:
    concurrency: int
    seconds: float
    attempts: int
    backoff: float
    most_backoff: float
    most_failures: float
    price_in: float
    price_out: float


@dataclasses.dataclass(frozen=True)
class Run:
    part: int
    ahead: int
    decoders: int
    max_bad_share: float


_SECTIONS = ("text", "video", "frame", "clip", "server", "calls", "run", "limits")
_SHARES = (
    "text.most_repeated",
    "text.least_letters",
    "video.least_motion",
    "frame.latest",
    "clip.share",
    "calls.most_failures",
    "run.max_bad_share",
)
_NOT_NEGATIVE = (
    "server.temperature",
    "calls.backoff",
    "calls.price_in",
    "calls.price_out",
    "text.least_words",
    "video.least_seconds",
)
_CHOICES = {
    "frame.format": ("jpeg", "png"),
    "text.language": ("en", "any"),
    "server.schema": ("json_schema", "json_object", "prompt"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of a configuration; `get_config` of configs/uvrd.py says what each field is."""

    seed: int
    similarity: float
    pairs: Mapping[str, float]
    profiles: Mapping[str, float]
    readability: tuple[str, ...]
    education: tuple[str, ...]
    lengths: Mapping[str, tuple[int, int]]
    slack: float
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
        """Raises UserError, naming the field, for one that is missing, unknown or cannot be."""
        fields = config.to_dict()
        lengths = fields.get("lengths")
        if not isinstance(lengths, Mapping) or "slack" not in lengths:
            raise UserError("config.lengths.slack is missing")
        fields["lengths"] = {name: one for name, one in lengths.items() if name != "slack"}
        made = build(cls, fields | {"slack": lengths["slack"]}, "config")
        made._check_ranges()
        return made

    def _check_ranges(self) -> None:
        for name in _SECTIONS:
            for field, value in dataclasses.asdict(getattr(self, name)).items():
                _check(f"{name}.{field}", value)
        _fit("lengths.slack", 0 <= self.slack < 1, self.slack, "in [0, 1)")
        _keys("lengths", self.lengths, (*KINDS, "frame", "image_query", "clip_query"))
        for name, (least, most) in self.lengths.items():
            _fit(f"lengths.{name}", 1 <= least <= most, (least, most), "(least, most)")
        _keys("pairs", self.pairs, TYPES)
        for name, rate in self.pairs.items():
            _fit(f"pairs.{name}", 0 <= rate <= MOST_A_VIDEO, rate, f"from 0 to {MOST_A_VIDEO}")
        _fit("pairs", any(self.pairs.values()), "all 0", "above 0 for a type")
        _keys("profiles", self.profiles, PROFILES)
        shares = tuple(self.profiles.values())
        _fit("profiles", min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6, shares, "1 in sum")
        for name in ("readability", "education"):
            _fit(name, len(getattr(self, name)) > 0, getattr(self, name), "a tuple of levels")
        _fit("similarity", -1 <= self.similarity <= 1, self.similarity, "in -1..1")
        clip, frames = self.clip, self.video.num_frames
        _fit(
            "clip.least_seconds",
            clip.least_seconds <= clip.most_seconds,
            clip.least_seconds,
            "at most clip.most_seconds",
        )
        _fit("video.num_frames", frames % 2 == 0, frames, "an even number")

    def kept(self) -> dict:
        """What another value of makes other pairs, as JSON has it."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in FREE}
        return fields | {"part": self.run.part}


def _check(name: str, value) -> None:
    if name in _CHOICES:
        _fit(name, value in _CHOICES[name], value, f"one of {', '.join(_CHOICES[name])}")
    elif isinstance(value, bool | str):
        pass
    elif name in _SHARES:
        _fit(name, 0 <= value <= 1, value, "in 0..1")
    elif name in _NOT_NEGATIVE:
        _fit(name, value >= 0, value, "at least 0")
    else:
        _fit(name, value > 0, value, "above 0")


def _keys(section: str, given: Mapping, known: tuple[str, ...]) -> None:
    for name in sorted(set(given) ^ set(known)):
        raise UserError(
            f"config.{section}.{name} {'is unknown' if name in given else 'is missing'}"
        )


def _fit(name: str, good: bool, value, rule: str) -> None:
    if not good:
        raise UserError(f"config.{name} {value!r} must be {rule}")
