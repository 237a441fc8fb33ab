"""Saves and loads pytrees of arrays with Orbax (v1), with a checksum of each array.

Orbax stores no checksums: without them a flipped bit would be restored silently. Its errors are
reported in one line.
"""

import atexit
import contextlib
import functools
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from gve_jax.checkpoints.digests import is_finite
from gve_jax.errors import UserError
from gve_jax.storage.digests import json_sha256
from gve_jax.storage.filesystem import is_gcs_path


class DamagedError(Exception):
    """A checkpoint that cannot be read or differs from what was saved."""


def save_params(directory: epath.PathLike, params: Any) -> str:
    """Saves a pytree of arrays, replacing `directory` atomically.

    On GCS, where folders cannot be renamed, the old arrays are removed first.

    Returns:
      A digest of the checksums, for `load_params`.

    Raises:
      UserError: the directory cannot be written (full disk, no permission).
    """
    silence_orbax()
    refuse_keys(params)
    target = absolute(directory)
    renamed = not is_gcs_path(target)
    fresh = target.with_name(f"{target.name}.new") if renamed else target
    try:
        with make_context():
            sums = _checksums(params)
            ocp.save(
                without_brackets(fresh),
                params,
                overwrite=True,
                custom_metadata={"checksums": sums},
            )
        if renamed and jax.process_index() == 0:
            replace_directory(fresh, target)
    except Exception as error:
        if renamed and jax.process_index() == 0:  # frees a full disk
            with contextlib.suppress(OSError):
                for part in target.parent.glob(f"{target.name}.new*"):
                    part.rmtree()
        raise UserError(f"cannot save parameters in {target}: {last_reason(error)}") from error
    multihost_utils.sync_global_devices("gve_jax: parameters saved")
    return json_sha256(sums, sort_keys=True)[:16]


def load_params(directory: epath.PathLike, abstract_params: Any, digest: str | None = None) -> Any:
    """Loads the arrays of `save_params` with the dtypes and shardings of `abstract_params`.

    Checksums are compared for arrays that are loaded in their stored dtype.

    Raises:
      UserError: the directory is missing or damaged, has other arrays, or another digest.
    """
    silence_orbax()
    path = absolute(directory)
    if not path.is_dir():
        raise UserError(f"no parameters at {path}")
    try:
        with damage_on_error():
            metadata = ocp.metadata(without_brackets(path))
        sums = (metadata.custom_metadata or {}).get("checksums")
        if metadata.metadata is None or sums is None:
            raise DamagedError("unreadable metadata")
        if digest is not None and json_sha256(sums, sort_keys=True)[:16] != digest:
            raise UserError(f"the parameters at {path} are of another model than its config.json")
        saved, wanted = check_arrays(path, metadata.metadata, abstract_params, dtypes=False)
        with damage_on_error():
            params = ocp.load(without_brackets(path), abstract_params)
        for name, value in _checksums(params).items():
            if saved[name].dtype == wanted[name].dtype and value != sums.get(name):
                raise DamagedError(f"{name} differs from what was saved")
    except DamagedError as error:
        raise UserError(f"the parameters at {path} are damaged ({error})") from error
    return params


def make_context() -> ocp.Context:
    context = ocp.Context()
    # In the background, a directory that cannot be created hangs the process for minutes.
    context.asynchronous.create_directories_asynchronously = False
    return context


def absolute(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory).expanduser()
    return path if is_gcs_path(path) else path.absolute()


def without_brackets(path: epath.Path) -> epath.Path:
    """The same folder by a path without brackets: Orbax treats `exp[1]` in a path as a glob
    pattern.

    Uses a symbolic link in a temporary folder."""
    parent = path.parent
    if is_gcs_path(path) or "[" not in str(parent):
        return path
    parent.mkdir(parents=True, exist_ok=True)
    return epath.Path(_link(str(parent))) / path.name


@functools.cache
def _link(folder: str) -> str:
    parent = tempfile.mkdtemp(prefix="gve_jax-link-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    link = os.path.join(parent, "folder")
    os.symlink(folder, link)
    return link


def replace_directory(source: epath.Path, target: epath.Path) -> None:
    """Renames a directory over another, in two calls: rename does not replace a full one."""
    old = target.with_name(f"{target.name}.old")
    if old.exists():
        old.rmtree()
    if target.exists():
        target.rename(old)
    source.rename(target)
    if old.exists():
        old.rmtree()


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, in one notation for fields, keys and indices: Orbax restores NamedTuples as
    dicts."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def refuse_keys(state: Any) -> None:
    for name, leaf in _leaves(state).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} is a PRNG key: store the seed and the step instead")


def _checksums(tree: Any) -> dict[str, int]:
    """The sum of each array's bits modulo 2**32, which is the same on any mesh."""
    return survey(tree)[0]


def survey(tree: Any) -> tuple[dict[str, int], list[str]]:
    """(checksum of each array, names of the arrays with NaN or infinite numbers)."""
    leaves = _leaves(tree)
    sums, finite = jax.device_get(_sums_and_finite(list(leaves.values())))
    bad = [name for name, good in zip(leaves, finite, strict=True) if not good]
    return dict(zip(leaves, map(int, sums), strict=True)), bad


def describe_not_finite(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"NaN or infinite numbers in {', '.join(names[:3])}{more}"


@jax.jit
def _sums_and_finite(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # One program: concurrent programs with collectives can deadlock if there are more devices than
    # threads, as in tests on a CPU.
    sums = jnp.stack([_sum_of_bits(leaf) for leaf in leaves])
    return sums, jnp.stack([is_finite(leaf) for leaf in leaves])


def _sum_of_bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, f"uint{jnp.finfo(x.dtype).bits}")
    return jnp.sum(x.astype(jnp.uint32), dtype=jnp.uint32)


def check_arrays(path: epath.Path, saved: Any, wanted: Any, *, dtypes: bool) -> tuple[dict, dict]:
    """Returns the leaves of both trees.

    Raises:
      UserError: naming the first array that is absent or differs in shape (or dtype).
    """
    saved, wanted = _leaves(saved), _leaves(wanted)

    def described(leaf: Any) -> str:
        if leaf is None:
            return "absent"
        return f"{leaf.dtype if dtypes else ''}{list(leaf.shape)}"

    for name in sorted(saved.keys() | wanted.keys()):
        stored, expected = described(saved.get(name)), described(wanted.get(name))
        if stored != expected:
            raise UserError(f"{path}: mismatch for {name}: checkpoint {stored}, model {expected}")
    return saved, wanted


@contextlib.contextmanager
def damage_on_error() -> Iterator[None]:
    """Converts errors of reading to DamagedError, except if memory is exhausted."""
    try:
        yield
    except Exception as error:
        if isinstance(_root(error), MemoryError | jax.errors.JaxRuntimeError):
            raise
        raise DamagedError(last_reason(error)) from None


def _root(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def last_reason(error: BaseException) -> str:
    """The last clause of the innermost message, such as `No space left on device`."""
    root = _root(error)
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    if str(root).startswith("Forbidden: "):  # gcsfs: the address, then the cause in the next line
        return f"permission denied ({' '.join(str(root).split())})"
    lines = str(root).splitlines() or [type(root).__name__]
    return re.sub(r" \[[^\]]*\]$", "", lines[0]).rsplit(": ", 1)[-1]


def silence_orbax() -> None:
    """Silences the tracebacks that Orbax logs for failures that are raised as errors."""
    absl, asyncio = logging.getLogger("absl"), logging.getLogger("asyncio")
    if _not_orbax in absl.filters:
        return
    absl.addFilter(_not_orbax)
    asyncio.addFilter(_not_orbax)
    before = sys.unraisablehook

    def hook(args) -> None:
        code = getattr(args.object, "cr_code", None)
        reader = code is not None and "orbax" in code.co_filename
        # tensorstore's threads call back into an event loop that the first failed read has closed.
        if not reader and str(args.exc_value) != "Event loop is closed":
            before(args)

    sys.unraisablehook = hook


def _not_orbax(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        return "orbax" not in record.getMessage()
    return record.levelno < logging.WARNING or "orbax" not in record.pathname
