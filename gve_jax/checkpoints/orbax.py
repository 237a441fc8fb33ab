"""Pytrees of arrays on disk by Orbax (v1), with a checksum of each array.

Orbax's own files have none: a flipped bit there would restore in silence. Its failures, pages of
traceback, become one line.
"""

import atexit
import contextlib
import functools
import hashlib
import json
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
from gve_jax.storage.filesystem import is_bucket


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was written; the text says why."""


def save_params(directory: epath.PathLike, params: Any) -> str:
    """Writes a pytree of arrays; what is at `directory` is replaced once the new one is whole. In a
    bucket, where no folder can be renamed at once, it is removed first.

    Returns a digest of their checksums, for `load_params` to tell them from others.

    Raises UserError naming the directory if it cannot be written (full disk, no permission).
    """
    silence_orbax()
    refuse_keys(params)
    target = absolute(directory)
    renamed = not is_bucket(target)
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
        if renamed and jax.process_index() == 0:  # Its part of a full disk is given back.
            with contextlib.suppress(OSError):
                for part in target.parent.glob(f"{target.name}.new*"):
                    part.rmtree()
        raise UserError(f"cannot save parameters in {target}: {last_reason(error)}") from error
    multihost_utils.sync_global_devices("gve_jax: parameters saved")
    return _digest(sums)


def load_params(directory: epath.PathLike, abstract_params: Any, digest: str | None = None) -> Any:
    """Reads what `save_params` wrote, as the dtypes and shardings of `abstract_params`.

    Raises UserError naming the directory if it is missing, damaged, has other arrays, or is not
    what `save_params` returned `digest` of. Checksums are compared where the dtype asked for is the
    dtype stored.
    """
    silence_orbax()
    path = absolute(directory)
    if not path.is_dir():
        raise UserError(f"no parameters at {path}")
    try:
        with damage_on_error():
            found = ocp.metadata(without_brackets(path))
        sums = (found.custom_metadata or {}).get("checksums")
        if found.metadata is None or sums is None:
            raise DamagedError("its metadata cannot be read")
        if digest is not None and _digest(sums) != digest:
            raise UserError(f"the parameters at {path} are of another model than its config.json")
        saved, wanted = check_arrays(path, found.metadata, abstract_params, dtypes=False)
        with damage_on_error():
            params = ocp.load(without_brackets(path), abstract_params)
        for name, value in _checksums(params).items():
            if saved[name].dtype == wanted[name].dtype and value != sums.get(name):
                raise DamagedError(f"{name} is not what was saved")
    except DamagedError as error:
        raise UserError(f"the parameters at {path} are damaged ({error})") from error
    return params


def make_context() -> ocp.Context:
    context = ocp.Context()
    # Made in the background, a directory that cannot be made hangs the process for minutes.
    context.asynchronous.create_directories_asynchronously = False
    return context


def absolute(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory).expanduser()
    return path if is_bucket(path) else path.absolute()


def without_brackets(path: epath.Path) -> epath.Path:
    """The same folder by a name that Orbax can read back: it looks for its files by patterns, to
    which `exp[1]` in a path is one. Such a path is reached by a link in a temporary folder."""
    parent = path.parent
    if is_bucket(path) or "[" not in str(parent):
        return path
    parent.mkdir(parents=True, exist_ok=True)
    return epath.Path(_link(str(parent))) / path.name


@functools.cache
def _link(folder: str) -> str:
    place = tempfile.mkdtemp(prefix="gve_jax-link-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    link = os.path.join(place, "folder")
    os.symlink(folder, link)
    return link


def replace_directory(source: epath.Path, target: epath.Path) -> None:
    """Renames a directory over another: in two calls, as no single one replaces a full one."""
    old = target.with_name(f"{target.name}.old")
    if old.exists():
        old.rmtree()
    if target.exists():
        target.rename(old)
    source.rename(target)
    if old.exists():
        old.rmtree()


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path. Field, key and index read alike: Orbax gives NamedTuples back as dicts."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def refuse_keys(state: Any) -> None:
    for name, leaf in _leaves(state).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} is a random key: store the seed and the step instead")


def _checksums(tree: Any) -> dict[str, int]:
    """The sum of each array's bits, modulo 2**32: exact, and the same on any mesh."""
    return survey(tree)[0]


def survey(tree: Any) -> tuple[dict[str, int], list[str]]:
    """(checksum of each array, names of the arrays that hold NaN or infinite numbers)."""
    leaves = _leaves(tree)
    sums, finite = jax.device_get(_sums_and_finite(list(leaves.values())))
    bad = [name for name, good in zip(leaves, finite, strict=True) if not good]
    return dict(zip(leaves, map(int, sums), strict=True)), bad


def describe_not_finite(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"NaN or infinite numbers in {', '.join(names[:3])}{more}"


def _digest(sums: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


@jax.jit
def _sums_and_finite(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # One program: were each array summed by its own, those under way at once could wait for each
    # other's collectives for ever where devices are many and threads few, as in tests on a CPU.
    sums = jnp.stack([_sum_of_bits(leaf) for leaf in leaves])
    return sums, jnp.stack([is_finite(leaf) for leaf in leaves])


def _sum_of_bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, f"uint{jnp.finfo(x.dtype).bits}")
    return jnp.sum(x.astype(jnp.uint32), dtype=jnp.uint32)


def check_arrays(path: epath.Path, saved: Any, wanted: Any, *, dtypes: bool) -> tuple[dict, dict]:
    """The leaves of both trees; UserError naming the first that is not in both and alike."""
    saved, wanted = _leaves(saved), _leaves(wanted)

    def described(leaf: Any) -> str:
        if leaf is None:
            return "absent"
        return f"{leaf.dtype if dtypes else ''}{list(leaf.shape)}"

    for name in sorted(saved.keys() | wanted.keys()):
        there, here = described(saved.get(name)), described(wanted.get(name))
        if there != here:
            raise UserError(f"{path} does not fit this model: {name} is {there} there, {here} here")
    return saved, wanted


@contextlib.contextmanager
def damage_on_error() -> Iterator[None]:
    """Whatever Orbax raises while reading means damage, except that memory ran out."""
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
    """The last clause of the innermost message: `No space left on device`, without its page."""
    root = _root(error)
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    if str(root).startswith("Forbidden: "):  # gcsfs: the address, and in the next line the cause
        return f"permission denied ({' '.join(str(root).split())})"
    lines = str(root).splitlines() or [type(root).__name__]
    return re.sub(r" \[[^\]]*\]$", "", lines[0]).rsplit(": ", 1)[-1]


def silence_orbax() -> None:
    """Silences Orbax's own reports, pages of traceback, of failures that we raise in one line."""
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
