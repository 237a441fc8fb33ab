"""Whether the media of training pairs exist, and whether a few of them can be decoded."""

import os
from collections.abc import Callable, Iterator

import numpy as np

from gve_jax.distributed.cores import usable_cores
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.item import Item
from gve_jax.media.sandbox import Failure, Sandbox, attempt
from gve_jax.streams.sources import Sources

BLOCK = 64  # records read at a time


def paths(item: Item) -> Iterator[str]:
    """The paths of an item's media; none for media that the record holds."""
    for medium in (item.image, item.video):
        for part in medium if isinstance(medium, list | tuple) else [medium]:
            if isinstance(part, str | os.PathLike):
                yield os.fspath(part)


def check_media(
    sources: Sources, samples: int, max_bad_share: float, advance: Callable[[int], None]
) -> list[str]:
    """Looks for the files of every pair and decodes `samples` pairs of each source.

    Returns:
      Warnings: a line for each source with missing or unreadable media, with an example.

    Args:
      max_bad_share: the share of missing pairs above which the check fails, as
        `config.data.max_bad_share` fails the run.
      advance: called with the number of pairs that were looked at.

    Raises:
      UserError: more pairs of a source are missing than that share, or more than half of its
        decoded pairs cannot be read.
    """
    warnings = []
    with Sandbox(processes=usable_cores()) as sandbox:
        for name, size in sources.sizes.items():
            missing, first = _missing(sources, name, advance)
            chosen = np.unique(np.linspace(0, size - 1, samples).astype(np.int64))
            failures = [] if missing == size else list(_failures(sources, name, chosen, sandbox))
            lines = []
            if missing:
                lines.append(f"files of {missing:,} of {size:,} pairs {first}")
            if failures:
                lines.append(
                    f"{len(failures)} of {len(chosen)} decoded pairs cannot be read, such as "
                    f"{failures[0]}"
                )
            if lines:
                warnings.append(f"source {name}: {'; '.join(lines)}")
            if missing > max_bad_share * size or len(failures) > len(chosen) / 2:
                raise UserError(
                    f"{warnings[-1]}; training stops above config.data.max_bad_share "
                    f"{max_bad_share:g}"
                )
    return warnings


def _missing(sources: Sources, name: str, advance: Callable[[int], None]) -> tuple[int, str]:
    """The number of pairs without one of their files, and an example."""
    size, missing, first = sources.sizes[name], 0, ""
    for start in range(0, size, BLOCK):
        indices = np.arange(start, min(start + BLOCK, size))
        for pair in sources.read(name, indices):
            items = [pair["query"], pair["positive"], *pair["negatives"]]
            files = [path for item in items for path in paths(item)]
            if start == 0 and not files and _has_media(items):
                advance(size)
                return 0, ""  # the records hold their media
            if absent := [path for path in files if not os.path.exists(path)]:
                first = first or f"do not exist, such as {absent[0]} of {pair['id']}"
                missing += 1
        advance(len(indices))
    return missing, first


def _has_media(items: list[Item]) -> bool:
    return any(item.image is not None or item.video is not None for item in items)


def _failures(sources: Sources, name: str, indices: np.ndarray, sandbox: Sandbox) -> Iterator[str]:
    """A line for each pair, one of whose items cannot be decoded; missing files are known."""
    spec = InputSpec()
    for pair in sources.read(name, indices):
        for item in (pair["query"], pair["positive"], *pair["negatives"]):
            if not _has_media([item]) or not all(map(os.path.exists, paths(item))):
                continue
            read = attempt(sandbox.visuals, item, spec)
            if isinstance(read, Failure):
                yield f"{pair['id']}: {read.reason}"
                break
