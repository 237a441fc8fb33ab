"""Output folders that are complete or absent: built aside, renamed, recognized when repeated."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from gve_jax.errors import UserError
from gve_jax.storage.files import check_record, read_json
from gve_jax.storage.locks import lock_scratch

T = TypeVar("T")
REMEDY = "remove it or choose another --output"


def build_folder(
    output: Path, build: Callable[[Path], T], read: Callable[[], T] | None = None
) -> T:
    """Returns the result that `read` finds in `output`, or builds `output`.

    The process may end at any time: `output` is complete, or as it was before. What was written of
    it stays in the scratch folder `OUTPUT.building`, which the next call empties.

    Args:
      output: absent, or an empty folder, unless `read` returns a result.
      build: creates the folder that it is passed, and returns the result. The parent of the folder
        is the scratch folder, where it may write other files. The folder is renamed to `output`.
      read: returns the result of an earlier call, or None or False where there is none. It is
        called again once the scratch folder is locked: another process may have built `output` in
        the meantime. Without `read`, `output` is built in any case, and replaced.

    Raises:
      UserError: another process is building; it names the process.
    """
    if read and (result := read()):
        return result
    output = output.resolve()  # "." has no name
    with lock_scratch(output.with_name(output.name + ".building")) as scratch:
        if read and (result := read()):
            return result
        result = build(scratch / "complete")
        if read is None and output.exists():
            os.rename(output, scratch / "replaced")
        os.rename(scratch / "complete", output)
    return result


def read_manifest(
    output: Path, name: str, kind: str, expected: Mapping, section: str | None = None
) -> dict | None:
    """Returns the manifest `OUTPUT/name`, or None where `output` is absent or empty.

    Args:
      kind: what `output` should be, for messages: "an import".
      expected: fields of the manifest, or of its field `section`, that must be equal.

    Raises:
      UserError: `output` has no such manifest; a field differs, which the message names.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / name).is_file():
        raise UserError(f"{output} exists and is not {kind} (no {name}); choose another --output")
    manifest = read_json(output / name)
    fields = manifest.get(section, {}) if section else manifest
    check_record(output, {key: fields.get(key) for key in expected}, expected, REMEDY)
    return manifest
