"""Limits for one medium. A medium that exceeds one is refused, never truncated."""

import argparse
import dataclasses

from gve_jax.errors import UserError
from gve_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits for one item; an item that exceeds one raises a `MediaError` that names the limit.

    They do not change the result for media within them, so they are not part of a fingerprint.

    Raises:
      UserError: a limit that is not above 0 or is too large; it names the field.
    """

    frame_pixels: int = setting(8192 * 8192, "pixels of a decoded frame or image")
    frames: int = setting(2_000_000, "frames of a video")
    streams: int = setting(64, "streams of a container")
    duration: float = setting(24 * 3600.0, "seconds of a video")
    seconds: float = setting(60.0, "seconds to read and decode an item; then killed", most=1e6)
    memory: int = setting(4 << 30, "bytes that reading an item may add to its process", most=2**62)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not value > 0:
                raise UserError(f"limits.{field.name} must be above 0, not {value!r}")
            most = getattr(field.metadata.get("rule"), "most", None)
            if most is not None and value > most:
                raise UserError(f"limits.{field.name} must be at most {most:g}, not {value!r}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--workers`, and an option per field: `--limits.seconds 20`, ..."""
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="decoding processes at most (default: the CPU cores that this process may use)",
    )
    group = parser.add_argument_group("limits of one file (gve_jax/media/limits.py)")
    for field in dataclasses.fields(Limits):
        group.add_argument(
            f"--limits.{field.name}",
            type=field.type if isinstance(field.type, type) else float,
            default=field.default,
            metavar="N",
            help=f"{field.metadata['help']} (default: {field.default:,})",
        )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def decoding_options(args: argparse.Namespace) -> dict[str, Limits | int | None]:
    """`limits` and `workers` of a command line, for `GVE.from_pretrained`."""
    return {"limits": from_arguments(args), "workers": args.workers}


def from_arguments(args: argparse.Namespace) -> Limits:
    """The limits of a command line; raises UserError as `Limits` does."""
    names = [field.name for field in dataclasses.fields(Limits)]
    return Limits(**{name: getattr(args, f"limits.{name}") for name in names})
