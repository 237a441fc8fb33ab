"""Checkpoints restore bit for bit on any mesh, and survive damage, kills and full disks."""

import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gve_jax.checkpoints.orbax import load_params, save_params
from gve_jax.errors import UserError
from gve_jax.running import checkpoint
from gve_jax.running.checkpoint import Checkpoints
from gve_jax.storage.filesystem import as_path
from tests.situations import situation

FINGERPRINT = {"model": {"width": 64, "layers": [1, 2]}, "seed": 0}


def make_mesh(*shape: int) -> jax.sharding.Mesh:
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, ("data", "fsdp")[: len(shape)], axis_types=kinds)


def make_state(mesh: jax.sharding.Mesh) -> dict:
    """Parameters and AdamW's state after an update, sharded over all of the mesh."""

    def shardings(tree):
        specs = {2: PartitionSpec("data", "fsdp"), 1: PartitionSpec("fsdp"), 0: PartitionSpec()}
        return jax.tree.map(lambda x: NamedSharding(mesh, specs[x.ndim]), tree)

    def init():
        params = {
            "kernel": jax.random.normal(jax.random.key(0), (64, 32)),
            "scale": jnp.linspace(-1, 1, 32, dtype=jnp.bfloat16),
        }
        tx = optax.adamw(1e-3)
        grads = jax.tree.map(lambda x: x * 0.1, params)
        return {"params": params, "opt": tx.update(grads, tx.init(params), params)[1]}

    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init)))()


def abstract(state, mesh=None):
    def struct(x):
        sharding = NamedSharding(mesh, x.sharding.spec) if mesh else x.sharding
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(struct, state)


def assert_same(got, want) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def plus(state, number: int):
    return jax.tree.map(lambda x: x + jnp.asarray(number, x.dtype), state)


def save_steps(directory: Path, state, steps, keep: int = 3) -> None:
    with Checkpoints(directory, keep=keep, fingerprint=FINGERPRINT) as checkpoints:
        for step in steps:
            checkpoints.save(step, plus(state, step), {"batch": step})


def restore(directory: Path, target, fingerprint=FINGERPRINT):
    with Checkpoints(directory, keep=3, fingerprint=fingerprint) as checkpoints:
        return checkpoints.restore(target)


def spoil(state, value):
    """Sets one number of an optimizer moment to `value`."""
    flat, tree = jax.tree.flatten(state)
    index = min(n for n, leaf in enumerate(flat) if leaf.ndim == 2)
    flat[index] = flat[index].at[3, 5].set(value)
    return jax.tree.unflatten(tree, flat)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value):
    state = make_state(make_mesh(4, 2))
    with Checkpoints(tmp_path / "c", keep=3, fingerprint=FINGERPRINT) as checkpoints:
        checkpoints.save(1, state, {})
        with pytest.raises(UserError, match="the state of step 2 is not saved: NaN or infinite"):
            checkpoints.save(2, spoil(state, value), {})
        assert checkpoints.latest() == 1
    assert restore(tmp_path / "c", abstract(state)).step == 1


@situation(
    "Training",
    "the newest checkpoint of a run holds NaN (written before 0.2.0), an older one is healthy",
    "the older one is used; the other is named and set aside",
    since="0.2.0",
)
def test_a_checkpoint_that_is_not_finite_is_skipped(tmp_path, monkeypatch, caplog):
    state = make_state(make_mesh(4, 2))
    with monkeypatch.context() as patch:  # as written by a release without the check
        survey = checkpoint.survey
        patch.setattr(checkpoint, "survey", lambda tree: (survey(tree)[0], []))
        with Checkpoints(tmp_path / "c", keep=3, fingerprint=FINGERPRINT) as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints.save(2, spoil(state, float("nan")), {})
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path / "c", abstract(state)).step == 1
    assert "/c/2 is damaged (NaN or infinite numbers in opt/" in caplog.text
    assert "resuming from the previous checkpoint: step 1" in caplog.text
    assert (tmp_path / "c" / "damaged-2").is_dir()


@situation(
    "Training",
    "checkpoints/ of a run was deleted and the command repeated",
    "refused with a remedy; the run does not start again from step 0",
    since="0.2.0",
)
def test_deleted_checkpoints_are_distinguished_from_a_new_run(tmp_path, caplog):
    state = make_state(make_mesh(4, 2))
    assert restore(tmp_path / "c", abstract(state)) is None  # a new run
    save_steps(tmp_path / "c", state, (2, 4))
    shutil.rmtree(tmp_path / "c" / "4")
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path / "c", abstract(state)).step == 2
    assert "the checkpoint of step 4 is gone" in caplog.text
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(UserError, match="holds no checkpoint, but one of step 4 was saved there"):
        restore(tmp_path / "c", abstract(state))


@pytest.mark.parametrize("name", ["exp[1]", "a,b", "{x}", "lr=1e-4"])
def test_a_folder_may_have_any_name(tmp_path, name):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path / name / "checkpoints", state, (1,))
    assert_same(restore(tmp_path / name / "checkpoints", abstract(state)).state, plus(state, 1))
    save_params(tmp_path / name / "params", state["params"])
    assert_same(load_params(tmp_path / name / "params", abstract(state["params"])), state["params"])


def data_files(directory: Path) -> list[Path]:
    paths = [path for path in directory.rglob("d/*") if path.is_file()]
    assert paths
    return paths


def test_round_trip_is_bitwise_and_keeps_types_and_shardings(tmp_path):
    state = make_state(make_mesh(4, 2))
    meta = {"batch": 7, "curriculum": {"P": {"T2V_whole": 0.1}}}
    with Checkpoints(tmp_path / "c", keep=2, fingerprint=FINGERPRINT) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(abstract(state)) is None
        checkpoints.save(7, state, meta)
        checkpoints.wait()
        assert checkpoints.latest() == 7
    got = restore(tmp_path / "c", abstract(state))
    assert (got.step, got.meta) == (7, meta)
    assert_same(got.state, state)
    assert isinstance(got.state["opt"][0], optax.ScaleByAdamState)
    for a, b in zip(jax.tree.leaves(got.state), jax.tree.leaves(state), strict=True):
        assert a.sharding == b.sharding


def test_a_step_is_saved_once(tmp_path):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [10, 10])
    with Checkpoints(tmp_path, keep=2, fingerprint=FINGERPRINT) as checkpoints:
        checkpoints.restore(abstract(state))
        checkpoints.save(10, state, {"batch": -1})
        checkpoints.wait()
        assert checkpoints.restore(abstract(state)).meta == {"batch": 10}
    # A new run in the directory of an old one has not restored this step, so it must not skip it.
    with Checkpoints(tmp_path, keep=2, fingerprint=FINGERPRINT) as checkpoints:
        with pytest.raises(UserError, match=f"step 10 in {tmp_path}: Step 10 already exists"):
            checkpoints.save(10, state, {})


@situation(
    "Training",
    "a run resumed on another number of devices or another mesh",
    "resumes with a bitwise identical state",
    since="0.1.0",
)
def test_restores_on_another_mesh(tmp_path):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [0])
    other = make_mesh(2, 4)
    got = restore(tmp_path, abstract(state, other))
    assert_same(got.state, state)
    kernel = got.state["opt"][0].mu["kernel"]
    assert kernel.sharding == NamedSharding(other, PartitionSpec("data", "fsdp"))
    assert kernel.addressable_shards[0].data.shape == (32, 8)


def test_the_state_at_the_call_is_saved_even_if_donated_later(tmp_path):
    state = make_state(make_mesh(4, 2))
    want = jax.tree.map(np.asarray, state)
    target = abstract(state)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, keep=2, fingerprint=FINGERPRINT) as checkpoints:
        checkpoints.save(1, state, {})
        jax.block_until_ready(step(state))
    assert_same(restore(tmp_path, target).state, want)


def test_the_newest_checkpoints_are_retained(tmp_path):
    save_steps(tmp_path, make_state(make_mesh(4, 2)), [10, 20, 30, 40], keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["30", "40"]


def truncate(step: Path) -> None:
    for path in data_files(step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(step: Path) -> None:
    for path in data_files(step):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def delete_the_data(step: Path) -> None:
    for path in data_files(step):
        path.unlink()


def empty_every_file(step: Path) -> None:
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


@situation(
    "Training",
    "the newest checkpoint is damaged (a flipped bit, a missing file)",
    "named and set aside; the previous one is used",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        empty_every_file,
        delete_the_data,
        lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
        lambda step: (step / "state" / "_METADATA").write_text("{"),
        lambda step: shutil.rmtree(step / "state"),
    ],
    ids=["truncated", "bit", "emptied", "deleted", "no record", "torn metadata", "no state"],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_used(tmp_path, caplog, damage):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [10, 20])
    damage(tmp_path / "20")
    with Checkpoints(tmp_path, keep=1, fingerprint=FINGERPRINT) as checkpoints:
        with caplog.at_level(logging.WARNING):
            got = checkpoints.restore(abstract(state))
        assert got.step == 10 and got.meta == {"batch": 10}
        assert_same(got.state, plus(state, 10))
        assert any(f"{tmp_path / '20'} is damaged" in line for line in caplog.messages)
        assert (tmp_path / "damaged-20").is_dir()
        # The run reaches the damaged step again, and keep=1 retains the new checkpoint.
        checkpoints.save(20, state, {"batch": 20})
    assert restore(tmp_path, abstract(state)).step == 20
    assert not (tmp_path / "10").exists()


@situation(
    "Training",
    "all checkpoints of a run are damaged",
    "an error, not a fresh start",
    since="0.1.0",
)
def test_if_all_checkpoints_are_damaged_the_run_does_not_start_again(tmp_path):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [10, 20])
    empty_every_file(tmp_path / "10")
    empty_every_file(tmp_path / "20")
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path} can be read.*20.*10"):
        restore(tmp_path, abstract(state))
    assert (tmp_path / "20").is_dir()


def test_damage_is_reported_in_a_few_lines(tmp_path):
    save_steps(tmp_path, {"w": jnp.arange(1000.0)}, [10, 20])
    delete_the_data(tmp_path / "20")
    done = run_python(
        f"""
        import jax, jax.numpy as jnp
        from gve_jax.running.checkpoint import Checkpoints
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {{"w": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=sharding)}}
        with Checkpoints({str(tmp_path)!r}, keep=2, fingerprint={FINGERPRINT}) as checkpoints:
            print(checkpoints.restore(target).step)
        """
    )
    assert done.stdout == "10\n"
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 4 and "20 is damaged" in done.stderr, done.stderr


def test_another_fingerprint_names_the_field_and_both_values(tmp_path):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [10])
    other = {"model": {"width": 128, "layers": [1, 2]}, "seed": 0, "lora": True}
    with pytest.raises(UserError, match=r"model\.width was 64, is 128") as error:
        restore(tmp_path, abstract(state), fingerprint=other)
    assert "lora was null, is true" in str(error.value) and "seed" not in str(error.value)
    # Tuples and lists are equal in JSON.
    same = {"model": {"width": 64, "layers": (1, 2)}, "seed": 0}
    assert restore(tmp_path, abstract(state), fingerprint=same).step == 10


def test_another_tree_names_the_array(tmp_path):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [10])
    target = abstract(state)
    wider = jax.ShapeDtypeStruct(
        (64, 48), jnp.float32, sharding=target["params"]["kernel"].sharding
    )
    target["params"] = target["params"] | {"kernel": wider}
    with pytest.raises(
        UserError, match=r"params/kernel: checkpoint float32\[64, 32\], model float32\[64, 48\]"
    ):
        restore(tmp_path, target)
    with pytest.raises(UserError, match=r"opt/0/count: checkpoint int32\[\], model absent"):
        restore(tmp_path, {"params": abstract(state)["params"]})


def test_after_a_killed_save_the_last_complete_checkpoint_is_used(tmp_path):
    state = make_state(make_mesh(4, 2))
    save_steps(tmp_path, state, [10, 20])
    # A killed save leaves a directory with Orbax's temporary name.
    (tmp_path / "20").rename(tmp_path / "20.orbax-checkpoint-tmp")
    assert restore(tmp_path, abstract(state)).step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10"]


def test_random_keys_are_refused(tmp_path):
    with Checkpoints(tmp_path, keep=1, fingerprint={}) as checkpoints:
        with pytest.raises(TypeError, match="rng is a PRNG key"):
            checkpoints.save(1, {"rng": jax.random.key(0)}, {})


def run_python(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("then", ["pass", "checkpoints.wait()"], ids=["at the end", "before"])
def test_a_full_disk_names_the_directory_and_keeps_earlier_checkpoints(tmp_path, then):
    # A limit on file sizes simulates a full disk: the same write fails.
    done = run_python(
        f"""
        import jax, resource, signal
        from gve_jax.cli import run_cli
        from gve_jax.running.checkpoint import Checkpoints
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        def main():
            with Checkpoints({str(tmp_path)!r}, keep=1, fingerprint={FINGERPRINT}) as checkpoints:
                checkpoints.save(10, {{"w": jax.random.normal(jax.random.key(0), (100,))}}, {{}})
                checkpoints.wait()
                checkpoints.save(20, {{"w": jax.random.normal(jax.random.key(0), (10**6,))}}, {{}})
                {then}
        run_cli(main)
        """
    )
    assert done.returncode == 2, done.stderr
    want = f"error: cannot save the checkpoint of step 20 in {tmp_path}: File too large\n"
    assert done.stderr == want
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"w": jax.ShapeDtypeStruct((100,), jnp.float32, sharding=sharding)}
    got = restore(tmp_path, target)
    assert got.step == 10
    assert_same(got.state, {"w": jax.random.normal(jax.random.key(0), (100,))})


def test_a_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot store checkpoints in {tmp_path}/file/c"):
        Checkpoints(tmp_path / "file" / "c", keep=1, fingerprint={})
    with pytest.raises(UserError, match=f"cannot save parameters in {tmp_path}/file/c"):
        save_params(tmp_path / "file" / "c", {"w": jnp.zeros(3)})


def test_params_round_trip_replace_and_cast(tmp_path):
    params = make_state(make_mesh(4, 2))["params"]
    save_params(tmp_path / "params", jax.tree.map(jnp.zeros_like, params))
    save_params(tmp_path / "params", params)
    assert [path.name for path in tmp_path.iterdir()] == ["params"]
    got = load_params(tmp_path / "params", abstract(params, make_mesh(2, 4)))
    assert_same(got, params)
    cast = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), params
    )
    got = load_params(tmp_path / "params", cast)
    assert_same(got, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_bad_params_are_named(tmp_path):
    params = make_state(make_mesh(4, 2))["params"]
    path = tmp_path / "params"
    with pytest.raises(UserError, match=f"no parameters at {path}"):
        load_params(path, abstract(params))
    save_params(path, params)
    with pytest.raises(UserError, match=rf"{path}: mismatch for bias: checkpoint absent"):
        load_params(path, abstract(params) | {"bias": jax.ShapeDtypeStruct((3,), jnp.float32)})
    flip_a_bit(path)
    with pytest.raises(UserError, match=f"the parameters at {path} are damaged"):
        load_params(path, abstract(params))


def test_in_gcs_the_newest_complete_checkpoint_is_restored(gcs, caplog):
    """A damaged checkpoint is set aside, and one without its last object, which a kill has left,
    is ignored."""
    objects = gcs.make("checkpoints")
    root, state = as_path("gs://checkpoints/run"), make_state(make_mesh(4, 2))
    save_steps(root, state, [10, 20, 30])
    gcs.remove("checkpoints", "run/30/commit_success.txt")
    for name in [name for name in objects if name.startswith("run/20/") and "/d/" in name]:
        gcs.put("checkpoints", name, b"other")
    with caplog.at_level(logging.WARNING):
        got = restore(root, abstract(state))
    assert got.step == 10 and got.meta == {"batch": 10}
    assert_same(got.state, plus(state, 10))
    assert "gs://checkpoints/run/20 is damaged" in caplog.text
    inside = [name.removeprefix("run/") for name in objects if name.startswith("run/")]
    assert {name.split("/")[0] for name in inside} == {"10", "damaged-20"}
    save_steps(root, state, [20])
    assert restore(root, abstract(state)).step == 20


def test_in_gcs_params_are_replaced_and_incomplete_ones_are_refused(gcs):
    objects = gcs.make("params")
    path, params = as_path("gs://params/model/params"), make_state(make_mesh(4, 2))["params"]
    with pytest.raises(UserError, match=f"no parameters at {path}"):
        load_params(path, abstract(params))
    save_params(path, jax.tree.map(jnp.zeros_like, params))
    save_params(path, params)
    assert_same(load_params(path, abstract(params, make_mesh(2, 4))), params)
    assert all(name.startswith("model/params/") for name in objects)
    gcs.read_only.add("params")
    with pytest.raises(UserError, match=f"cannot save parameters in {path}: permission denied"):
        save_params(path, params)
    gcs.read_only.clear()
    for name in [name for name in objects if name.endswith(("commit_success.txt", "_METADATA"))]:
        gcs.remove("params", name)
    with pytest.raises(UserError, match=f"the parameters at {path} are damaged"):
        load_params(path, abstract(params))
