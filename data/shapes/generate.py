"""Builds the generated world in one folder."""

import contextlib
import io
import multiprocessing
import os
import shutil
import time
from pathlib import Path

from data.shapes import benchmark_files, pairs, tokenizer
from data.shapes.builder import Shapes, ShapesConfig
from gve_jax.distributed.cores import usable_cores
from gve_jax.progress import progress_bar
from gve_jax.storage.artifacts import build_folder, read_manifest
from gve_jax.storage.files import write_json

VERSION = "4"  # raised when the written bytes change
MANIFEST = "manifest.json"


def read_world(output: Path, seed: int, scale: float) -> dict | None:
    """Returns the manifest of a generated world; None where `output` is absent or empty.

    Raises:
        UserError: `output` holds another world or other files.
    """
    expected = {"seed": seed, "scale": scale, "version": VERSION}
    return read_manifest(output, MANIFEST, "a generated world", expected)


def generate(output: Path, seed: int, scale: float, processes: int | None = None) -> dict:
    """Writes pairs/, UVRB/, tokenizer.json and manifest.json to `output`, unless they exist.

    Returns the manifest.
    """
    return build_folder(
        output,
        lambda building: _build(building, seed, scale, processes),
        lambda: read_world(output, seed, scale),
    )


def _build(building: Path, seed: int, scale: float, processes: int | None) -> dict:
    building.mkdir()
    started = time.perf_counter()
    counts = pairs.sizes(scale)
    families = dict.fromkeys(pairs.SOURCES.values())
    rendered = sum(max(pairs.family_sizes(f, scale).values()) for f in families)
    # spawn: a fork after JAX or grain threads have started can deadlock.
    pool = multiprocessing.get_context("spawn").Pool(processes or usable_cores())
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
    write_json(building / MANIFEST, manifest)
    return manifest
