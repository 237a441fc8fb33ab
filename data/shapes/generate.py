"""Builds the generated world in one folder, atomically."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

from data.shapes import benchmark_files, pairs, tokenizer
from data.shapes.builder import Shapes, ShapesConfig
from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.locks import lock_scratch

VERSION = "4"  # raised when the written bytes change


def is_ready(output: Path, seed: int, scale: float) -> bool:
    """Whether `output` holds this world.

    Raises:
        UserError: `output` holds another world or other files.
    """
    if not output.exists():
        return False
    manifest = output / "manifest.json"
    if not manifest.is_file():
        if output.is_dir() and not any(output.iterdir()):
            return False
        raise UserError(
            f"{output} exists and is not a generated world (no manifest.json); use another --output"
        )
    try:
        found = json.loads(manifest.read_text())
    except ValueError as error:
        raise UserError(f"{manifest} is not readable: {error}") from error
    wanted = {"seed": seed, "scale": scale, "version": VERSION}
    for field, value in wanted.items():
        if found.get(field) != value:
            raise UserError(
                f"{output} was made with {field} {found.get(field)}, not {value};"
                " remove it or use another --output"
            )
    return True


def generate(output: Path, seed: int, scale: float, processes: int | None = None) -> dict:
    """Writes pairs/, UVRB/, tokenizer.json and manifest.json to `output`; returns the manifest.

    The world is built beside `output` and renamed at the end.
    """
    output = output.resolve()  # "." has no name
    scratch = output.with_name(output.name + ".building")
    with lock_scratch(scratch):
        if is_ready(output, seed, scale):  # by a command that has just finished
            return json.loads((output / "manifest.json").read_text())
        building = scratch / "world"
        building.mkdir()
        manifest = _build(building, seed, scale, processes)
        if output.exists():
            output.rmdir()  # empty: `is_ready` has checked
        os.rename(building, output)
    return manifest


def _build(building: Path, seed: int, scale: float, processes: int | None) -> dict:
    started = time.perf_counter()
    counts = pairs.sizes(scale)
    families = dict.fromkeys(pairs.SOURCES.values())
    rendered = sum(max(pairs.family_sizes(f, scale).values()) for f in families)
    # spawn: a fork after JAX or grain threads have started can deadlock.
    pool = multiprocessing.get_context("spawn").Pool(processes or os.cpu_count())
    with pool, progress_bar(redirect_stdout=False) as progress:
        bar = progress.add_task("training pairs", total=rendered)
        config = ShapesConfig(name="generated", seed=seed, scale=scale)
        builder = Shapes(
            pool=pool,
            tick=lambda _: progress.advance(bar),
            data_dir=str(building / "tfds"),
            config=config,
        )
        # TFDS prints the temporary directory.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        os.rename(builder.data_dir, building / "pairs")
        shutil.rmtree(building / "tfds")
        bar = progress.add_task("miniature UVRB", total=None)
        sets = benchmark_files.write(
            building / "UVRB",
            seed,
            scale,
            pool,
            tick=lambda done, total: progress.update(bar, completed=done, total=total),
        )
        vocabulary = tokenizer.write(building / "tokenizer.json", seed)
    manifest = {
        "seed": seed,
        "scale": scale,
        "version": VERSION,
        "pairs": counts,
        "UVRB": sets,
        "vocabulary": vocabulary,
        "seconds": round(time.perf_counter() - started, 1),
    }
    (building / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest
