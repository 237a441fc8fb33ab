"""Checkpoints of a training run.

A checkpoint is one directory, named by its step, that appears complete or not at all; all of its
numbers are finite. Beside the arrays it carries the run's fingerprint, the caller's `meta` (data
position, curriculum) and a checksum of each array. Random keys are never stored: keep the seed in
the configuration and derive keys from the step.
"""

import contextlib
import json
import logging
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from gve_jax.checkpoints.orbax import (
    DamagedError,
    absolute,
    check_arrays,
    damage_on_error,
    describe_not_finite,
    last_reason,
    make_context,
    refuse_keys,
    replace_directory,
    silence_orbax,
    survey,
    without_brackets,
)
from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.storage.files import differences, write_json

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint read back: the step it was saved at, its arrays, and the caller's `meta`."""

    step: int
    state: Any
    meta: dict


class Checkpoints:
    """The checkpoints of one run, in one directory (local, or a bucket: `gs://...`).

    Call every method from the main thread, and on every process. `fingerprint` (JSON-able) names
    what must not change between saving and restoring, such as the model's configuration. The newest
    `keep` are kept. Beside the directory, `NAME.json` says which step was saved last, so that
    checkpoints that were deleted are distinguished from a run that has none yet.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, fingerprint: dict):
        self.directory = absolute(directory)
        self._keep = keep
        self._fingerprint = _as_json(fingerprint)
        self._saving: tuple[int, Any] | None = None
        self._failed = False
        self._at: int | None = None  # the step restored or saved last
        silence_orbax()
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
        refuse_keys(state)
        checksums, bad = survey(state)
        if bad:
            raise UserError(f"the state of step {step} is not saved: {describe_not_finite(bad)}")
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
            except DamagedError as error:
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
                without_brackets(self.directory),
                context=make_context(),
                preservation_policy=newest,
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(
                f"cannot keep checkpoints in {self.directory}: {last_reason(error)}"
            ) from error

    def _load(self, step: int, abstract_state: Any) -> Restored:
        with damage_on_error():
            found = self._orbax.metadata(step)
        record = found.custom_metadata or {}
        if found.metadata is None or not {"fingerprint", "meta", "checksums"} <= record.keys():
            raise DamagedError("its metadata cannot be read")
        path = self.directory / str(step)
        changed = differences(record["fingerprint"], self._fingerprint)
        if changed:
            fields = "; ".join(
                f"{name} was {json.dumps(was)}, is {json.dumps(now)}"
                for name, (was, now) in changed.items()
            )
            raise UserError(f"checkpoint {path} is of another run: {fields}")
        check_arrays(path, found.metadata, abstract_state, dtypes=True)
        with damage_on_error():
            state = self._orbax.load(step, abstract_state)
        checksums, bad = survey(state)
        if checksums != record["checksums"]:
            raise DamagedError("its contents are not what was saved")
        if bad:
            raise DamagedError(describe_not_finite(bad))
        return Restored(step, state, record["meta"])

    def _set_aside(self, steps: dict[int, str]) -> None:
        # In place, it would collide with its own step later and push good checkpoints out.
        self._orbax.close()
        if jax.process_index() == 0:
            for step in steps:
                replace_directory(self.directory / str(step), self.directory / f"damaged-{step}")
        multihost_utils.sync_global_devices("gve_jax: damaged checkpoints set aside")
        self._open()

    def _not_saved(self, step: int, error: BaseException) -> UserError:
        self._failed, self._at = True, None
        return UserError(
            f"cannot save the checkpoint of step {step} in {self.directory}: {last_reason(error)}"
        )


def _as_json(value: dict) -> dict:
    """What JSON makes of it (tuples become lists), so that a comparison after reading is fair."""
    return json.loads(json.dumps(value))
