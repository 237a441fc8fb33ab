"""Checkpoints of a training run.

A checkpoint is a directory, named by its step, that is written atomically and holds finite numbers
only. In addition to the arrays it stores the run's fingerprint, the caller's `meta` (data position,
curriculum) and a checksum of each array. Random keys are never stored: keep the seed in the
configuration and derive keys from the step.
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
    """A restored checkpoint: its step, its arrays, and the caller's `meta`."""

    step: int
    state: Any
    meta: dict


class Checkpoints:
    """The newest `keep` checkpoints of one run, in one directory (local or gs://).

    Call every method from the main thread, and on every process. `fingerprint`, plain JSON, holds
    what must not change between saving and restoring, such as the model's configuration. The file
    `NAME.json` next to the directory records the step saved last, which distinguishes deleted
    checkpoints from a run that has none yet.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, fingerprint: dict):
        self.directory = absolute(directory)
        self._keep = keep
        self._fingerprint = _as_json(fingerprint)
        self._saving: tuple[int, Any] | None = None
        self._failed = False
        self._current: int | None = None  # the step restored or saved last
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
            _log.warning("%s", late)  # the error that ended the run is raised

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts saving a pytree of arrays; returns once they are copied: `state` may be donated.

        Waits first for the previous save. Does nothing if `step` is the step saved or restored
        last, as when a finished run is repeated. Earlier checkpoints stay usable after an error.

        Raises:
          UserError: the state holds NaN or infinite numbers; the previous save or the start of this
            one failed (full disk, no permission); the directory has this step of another run.
        """
        self.wait()
        if step == self._current:
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
        self._saving, self._current = (step, response), step
        response.on_complete(lambda _: self._note_saved(step))

    def wait(self) -> None:
        """Blocks until the current save is on disk; raises UserError if it could not be written."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        try:
            response.result()
        except Exception as error:  # Orbax and tensorstore wrap a full disk in errors of any type
            raise self._not_saved(step, error) from error

    def close(self) -> None:
        """Waits for the current save and ends Orbax's threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            # Orbax raises the error again that `wait` has raised.
            with contextlib.suppress(Exception if self._failed else ()):
                self._orbax.close()

    def latest(self) -> int | None:
        """The newest saved step, damaged or not; None if there is none."""
        self.wait()
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest undamaged checkpoint; None if the directory has no checkpoint.

        `abstract_state` is the state with a `jax.ShapeDtypeStruct` (shape, dtype, sharding) in
        place of each array, on any mesh. A checkpoint that is damaged, or holds NaN or infinite
        numbers, is named in a warning and renamed to `damaged-STEP`; the previous one is used.

        Raises:
          UserError: the fingerprint or an array differs; all checkpoints are damaged or deleted.
        """
        self.wait()
        damaged, newest = {}, self._last_saved()
        for step in sorted((saved.step for saved in self._orbax.checkpoints), reverse=True):
            try:
                restored = self._load(step, abstract_state)
            except DamagedError as error:
                damaged[step] = str(error)
                _log.warning("checkpoint %s is damaged (%s)", self.directory / str(step), error)
                continue
            if damaged:
                _log.warning("resuming from the previous checkpoint: step %d", step)
                self._set_aside(damaged)
            elif newest is not None and step < newest:
                _log.warning(
                    "the checkpoint of step %d is gone from %s; resuming from the previous one: "
                    "step %d",
                    newest,
                    self.directory,
                    step,
                )
            self._current = step
            return restored
        if damaged:
            why = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise UserError(f"no checkpoint in {self.directory} can be read ({why})")
        if newest is not None:
            raise UserError(
                f"{self.directory} holds no checkpoint, but one of step {newest} was saved there: "
                "restore the folder, or choose another --workdir"
            )
        return None

    @property
    def _record(self) -> epath.Path:
        return self.directory.with_name(f"{self.directory.name}.json")

    def _note_saved(self, step: int) -> None:
        """Called from Orbax's thread when a checkpoint is complete. A record that cannot be
        written does not stop the run."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                write_json(self._record, {"newest": step})

    def _last_saved(self) -> int | None:
        """The step that was saved last, even if it was deleted; None if none, or unknown."""
        try:
            newest = json.loads(self._record.read_text())["newest"]
        except (OSError, ValueError, KeyError, TypeError):
            newest = None
        return hosts.gather(newest)[0]

    def _open(self) -> None:
        newest = ocp.training.preservation_policies.LatestN(self._keep)
        try:
            # Also removes the remains of a killed save, which were never visible as a checkpoint.
            self._orbax = ocp.training.Checkpointer(
                without_brackets(self.directory),
                context=make_context(),
                preservation_policy=newest,
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise UserError(
                f"cannot store checkpoints in {self.directory}: {last_reason(error)}"
            ) from error

    def _load(self, step: int, abstract_state: Any) -> Restored:
        with damage_on_error():
            info = self._orbax.metadata(step)
        record = info.custom_metadata or {}
        if info.metadata is None or not {"fingerprint", "meta", "checksums"} <= record.keys():
            raise DamagedError("its metadata cannot be read")
        path = self.directory / str(step)
        changed = differences(record["fingerprint"], self._fingerprint)
        if changed:
            fields = "; ".join(
                f"{name} was {json.dumps(was)}, is {json.dumps(now)}"
                for name, (was, now) in changed.items()
            )
            raise UserError(f"checkpoint {path} belongs to another run: {fields}")
        check_arrays(path, info.metadata, abstract_state, dtypes=True)
        with damage_on_error():
            state = self._orbax.load(step, abstract_state)
        checksums, bad = survey(state)
        if checksums != record["checksums"]:
            raise DamagedError("the checksums of its arrays differ")
        if bad:
            raise DamagedError(describe_not_finite(bad))
        return Restored(step, state, record["meta"])

    def _set_aside(self, steps: dict[int, str]) -> None:
        # Under its name, it would collide with the same step later and displace good checkpoints.
        self._orbax.close()
        if jax.process_index() == 0:
            for step in steps:
                replace_directory(self.directory / str(step), self.directory / f"damaged-{step}")
        multihost_utils.sync_global_devices("gve_jax: damaged checkpoints set aside")
        self._open()

    def _not_saved(self, step: int, error: BaseException) -> UserError:
        self._failed, self._current = True, None
        return UserError(
            f"cannot save the checkpoint of step {step} in {self.directory}: {last_reason(error)}"
        )


def _as_json(value: dict) -> dict:
    """Converts as JSON does (tuples become lists), for comparison with a value that was read."""
    return json.loads(json.dumps(value))
