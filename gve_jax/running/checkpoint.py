"""Checkpoints of a training run, and the parameters of an exported model.

The only file that touches Orbax (v1). A checkpoint is one directory, named by its step, that
appears whole or not at all; all of its numbers are finite. Beside the arrays it carries the run's
fingerprint, the caller's `meta` (data position, curriculum) and a checksum of each array: Orbax's
own files have none, and a flipped bit there restores in silence. Random keys are never stored: keep
the seed in the configuration and derive keys from the step.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from gve_jax.checkpoints.digests import is_finite
from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import is_bucket

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint read back: the step it was saved at, its arrays, and the caller's `meta`."""

    step: int
    state: Any
    meta: dict


class _DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was written; the text says why."""


class Checkpoints:
    """The checkpoints of one run, in one directory (local, or a bucket: `gs://...`).

    Call every method from the main thread, and on every process. `fingerprint` (JSON-able) names
    what must not change between saving and restoring, such as the model's configuration. The newest
    `keep` are kept. Beside the directory, `NAME.json` says which step was saved last, so that
    checkpoints that were deleted are distinguished from a run that has none yet.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, fingerprint: dict):
        self.directory = _absolute(directory)
        self._keep = keep
        self._fingerprint = _as_json(fingerprint)
        self._saving: tuple[int, Any] | None = None
        self._failed = False
        self._at: int | None = None  # the step restored or saved last
        _hush_orbax()
        self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except UserError as late:
            if error is None:
                raise
            _log.warning("%s", late)  # The error that ended the run is the one to show.

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts saving a pytree of arrays; returns once they are copied: `state` may be donated.

        Waits first for the save before it. Does nothing if `step` is the one saved or restored
        last: a finished run that is repeated has nothing new. Raises UserError if the state holds
        NaN or infinite numbers, if the save before or the start of this one could not be written
        (full disk, no permission), or if another run has left this step; the checkpoints already
        there stay usable.
        """
        self.wait()
        if step == self._at:
            return
        _refuse_keys(state)
        checksums, bad = _survey(state)
        if bad:
            raise UserError(f"the state of step {step} is not saved: {_not_finite(bad)}")
        record = {
            "fingerprint": self._fingerprint,
            "meta": _as_json(meta),
            "checksums": checksums,
        }
        try:
            response = self._orbax.save_async(step, state, force=True, custom_metadata=record)
        except OSError as error:
            raise self._not_saved(step, error) from error
        self._saving, self._at = (step, response), step
        response.on_complete(lambda _: self._note_saved(step))

    def wait(self) -> None:
        """Blocks until the save under way is on disk; UserError if it could not be written."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        try:
            response.result()
        except Exception as error:  # Orbax and tensorstore wrap a full disk in errors of any type.
            raise self._not_saved(step, error) from error

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            # Orbax raises the failure that `wait` has raised once more.
            with contextlib.suppress(Exception if self._failed else ()):
                self._orbax.close()

    def latest(self) -> int | None:
        """The newest step saved, damaged or not; None if there is none."""
        self.wait()
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest checkpoint that is whole; None if the directory has none.

        `abstract_state` has the state's types, with a `jax.ShapeDtypeStruct` (shape, dtype,
        sharding) for each array; any mesh will do. A checkpoint that is damaged, or holds NaN or
        infinite numbers, is named in a warning, set aside as `damaged-STEP`, and the one before it
        used. UserError if the fingerprint or an array differs, naming it, if all are damaged, or if
        checkpoints were saved here and are gone.
        """
        self.wait()
        damaged, newest = {}, self._last_saved()
        for step in sorted((found.step for found in self._orbax.checkpoints), reverse=True):
            try:
                restored = self._load(step, abstract_state)
            except _DamagedError as error:
                damaged[step] = str(error)
                _log.warning("checkpoint %s is damaged (%s)", self.directory / str(step), error)
                continue
            if damaged:
                _log.warning("going on from the checkpoint before: step %d", step)
                self._set_aside(damaged)
            elif newest is not None and step < newest:
                _log.warning(
                    "the checkpoint of step %d is gone from %s; going on from the one "
                    "before: step %d",
                    newest,
                    self.directory,
                    step,
                )
            self._at = step
            return restored
        if damaged:
            why = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise UserError(f"no checkpoint in {self.directory} can be read ({why})")
        if newest is not None:
            raise UserError(
                f"{self.directory} holds no checkpoint, but one of step {newest} was saved there: "
                "put the folder back, or train in another folder"
            )
        return None

    @property
    def _record(self) -> epath.Path:
        return self.directory.with_name(f"{self.directory.name}.json")

    def _note_saved(self, step: int) -> None:
        """Called from Orbax's thread when a checkpoint is whole. A record that cannot be
        written does not stop the run."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                write_json(self._record, {"newest": step})

    def _last_saved(self) -> int | None:
        """The step that was saved last, still there or not; None: none, or unknown."""
        try:
            newest = json.loads(self._record.read_text())["newest"]
        except (OSError, ValueError, KeyError, TypeError):
            newest = None
        return hosts.gather(newest)[0]

    def _open(self) -> None:
        newest = ocp.training.preservation_policies.LatestN(self._keep)
        try:
            # What a killed save left behind is removed here; it was never visible as a checkpoint.
            self._orbax = ocp.training.Checkpointer(
                _without_brackets(self.directory),
                context=_context(),
                preservation_policy=newest,
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(
                f"cannot keep checkpoints in {self.directory}: {_reason(error)}"
            ) from error

    def _load(self, step: int, abstract_state: Any) -> Restored:
        with _damage():
            found = self._orbax.metadata(step)
        record = found.custom_metadata or {}
        if found.metadata is None or not {"fingerprint", "meta", "checksums"} <= record.keys():
            raise _DamagedError("its metadata cannot be read")
        path = self.directory / str(step)
        changed = _differences(record["fingerprint"], self._fingerprint)
        if changed:
            raise UserError(f"checkpoint {path} is of another run: {'; '.join(changed)}")
        _check_arrays(path, found.metadata, abstract_state, dtypes=True)
        with _damage():
            state = self._orbax.load(step, abstract_state)
        checksums, bad = _survey(state)
        if checksums != record["checksums"]:
            raise _DamagedError("its contents are not what was saved")
        if bad:
            raise _DamagedError(_not_finite(bad))
        return Restored(step, state, record["meta"])

    def _set_aside(self, steps: dict[int, str]) -> None:
        # In place, it would collide with its own step later and push good checkpoints out.
        self._orbax.close()
        if jax.process_index() == 0:
            for step in steps:
                _rename(self.directory / str(step), self.directory / f"damaged-{step}")
        multihost_utils.sync_global_devices("gve_jax: damaged checkpoints set aside")
        self._open()

    def _not_saved(self, step: int, error: BaseException) -> UserError:
        self._failed, self._at = True, None
        return UserError(
            f"cannot save the checkpoint of step {step} in {self.directory}: {_reason(error)}"
        )


def save_params(directory: epath.PathLike, params: Any) -> str:
    """Writes a pytree of arrays; what is at `directory` is replaced once the new one is whole. In a
    bucket, where no folder can be renamed at once, it is removed first.

    Returns a digest of their checksums, for `load_params` to tell them from others.

    Raises UserError naming the directory if it cannot be written (full disk, no permission).
    """
    _hush_orbax()
    _refuse_keys(params)
    target = _absolute(directory)
    renamed = not is_bucket(target)
    fresh = target.with_name(f"{target.name}.new") if renamed else target
    try:
        with _context():
            sums = _checksums(params)
            ocp.save(
                _without_brackets(fresh),
                params,
                overwrite=True,
                custom_metadata={"checksums": sums},
            )
        if renamed and jax.process_index() == 0:
            _rename(fresh, target)
    except Exception as error:
        if renamed and jax.process_index() == 0:  # Its part of a full disk is given back.
            with contextlib.suppress(OSError):
                for part in target.parent.glob(f"{target.name}.new*"):
                    part.rmtree()
        raise UserError(f"cannot save parameters in {target}: {_reason(error)}") from error
    multihost_utils.sync_global_devices("gve_jax: parameters saved")
    return _digest(sums)


def load_params(directory: epath.PathLike, abstract_params: Any, digest: str | None = None) -> Any:
    """Reads what `save_params` wrote, as the dtypes and shardings of `abstract_params`.

    Raises UserError naming the directory if it is missing, damaged, has other arrays, or is not
    what `save_params` returned `digest` of. Checksums are compared where the dtype asked for is the
    dtype stored.
    """
    _hush_orbax()
    path = _absolute(directory)
    if not path.is_dir():
        raise UserError(f"no parameters at {path}")
    try:
        with _damage():
            found = ocp.metadata(_without_brackets(path))
        sums = (found.custom_metadata or {}).get("checksums")
        if found.metadata is None or sums is None:
            raise _DamagedError("its metadata cannot be read")
        if digest is not None and _digest(sums) != digest:
            raise UserError(f"the parameters at {path} are of another model than its config.json")
        saved, wanted = _check_arrays(path, found.metadata, abstract_params, dtypes=False)
        with _damage():
            params = ocp.load(_without_brackets(path), abstract_params)
        for name, value in _checksums(params).items():
            if saved[name].dtype == wanted[name].dtype and value != sums.get(name):
                raise _DamagedError(f"{name} is not what was saved")
    except _DamagedError as error:
        raise UserError(f"the parameters at {path} are damaged ({error})") from error
    return params


def _context() -> ocp.Context:
    context = ocp.Context()
    # Made in the background, a directory that cannot be made hangs the process for minutes.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _absolute(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory).expanduser()
    return path if is_bucket(path) else path.absolute()


def _without_brackets(path: epath.Path) -> epath.Path:
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


def _rename(source: epath.Path, target: epath.Path) -> None:
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


def _as_json(value: dict) -> dict:
    """What JSON makes of it (tuples become lists), so that a comparison after reading is fair."""
    return json.loads(json.dumps(value))


def _refuse_keys(state: Any) -> None:
    for name, leaf in _leaves(state).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} is a random key: store the seed and the step instead")


def _checksums(tree: Any) -> dict[str, int]:
    """The sum of each array's bits, modulo 2**32: exact, and the same on any mesh."""
    return _survey(tree)[0]


def _survey(tree: Any) -> tuple[dict[str, int], list[str]]:
    """(checksum of each array, names of the arrays that hold NaN or infinite numbers)."""
    leaves = _leaves(tree)
    sums, finite = jax.device_get(_sums_and_finite(list(leaves.values())))
    bad = [name for name, good in zip(leaves, finite, strict=True) if not good]
    return dict(zip(leaves, map(int, sums), strict=True)), bad


def _not_finite(names: list[str]) -> str:
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


def _check_arrays(path: epath.Path, saved: Any, wanted: Any, *, dtypes: bool) -> tuple[dict, dict]:
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


def _differences(saved: Any, here: Any, name: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(here, dict):
        prefix = f"{name}." if name else ""
        return [
            line
            for key in sorted(saved.keys() | here.keys())
            for line in _differences(saved.get(key), here.get(key), prefix + key)
        ]
    return [] if saved == here else [f"{name} was {json.dumps(saved)}, is {json.dumps(here)}"]


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Whatever Orbax raises while reading means damage, except that memory ran out."""
    try:
        yield
    except Exception as error:
        if isinstance(_root(error), MemoryError | jax.errors.JaxRuntimeError):
            raise
        raise _DamagedError(_reason(error)) from None


def _root(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    """The last clause of the innermost message: `No space left on device`, without its page."""
    root = _root(error)
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    if str(root).startswith("Forbidden: "):  # gcsfs: the address, and in the next line the cause
        return f"permission denied ({' '.join(str(root).split())})"
    lines = str(root).splitlines() or [type(root).__name__]
    return re.sub(r" \[[^\]]*\]$", "", lines[0]).rsplit(": ", 1)[-1]


def _hush_orbax() -> None:
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
