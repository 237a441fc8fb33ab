"""The public encoder: texts, images, videos and their mixtures in, unit vectors out."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from rich.progress import track

from gve_jax import __version__
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Bucket, Buckets, collate
from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.item import Item, as_item, source_name
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, Row
from gve_jax.inputs.prompt import Prompt
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.learning.checkpoint import load_params, save_params
from gve_jax.learning.metrics import write_json
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import Batch, init_params, make_embed
from gve_jax.sharding import make_mesh, param_shardings, place_batch

Inputs = Sequence[str | Mapping | Item]
FORMAT = "gve_jax 1"
CHUNK = 16  # batches decoded ahead and sorted into buckets together: bounds the memory


class GVE:
    """A trained encoder. Make one with `from_pretrained`."""

    def __init__(
        self,
        config: ModelConfig,
        params,
        preprocess: Preprocessor,
        buckets: Buckets,
        mesh: jax.sharding.Mesh,
    ):
        self.config, self.params, self.preprocess = config, params, preprocess
        self.buckets, self.mesh = buckets, mesh
        self._embed = jax.jit(make_embed(config))
        self.fingerprint = {
            "code": __version__,
            "weights": _digest(params),
            "tokenizer": _file_digest(preprocess.prompt.path),
            "dtype": config.dtype,
            **{f"inputs.{k}": v for k, v in dataclasses.asdict(preprocess.spec).items()},
        }

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, mesh=None) -> "GVE":
        """Loads a model directory that `gve_jax.train` or `save_pretrained` wrote.

        Args:
          directory: holds `config.json`, `tokenizer.json`, `params/`.
          mesh: where it runs; all devices as data parallel when absent.

        Raises:
          UserError: no such directory, another format, damaged parameters.
        """
        directory = Path(directory)
        config, spec, buckets = _read_config(directory)
        mesh = mesh or make_mesh({"data": -1})
        shapes = jax.eval_shape(lambda: init_params(config, 0)[1])
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            param_shardings(shapes, mesh),
        )
        params = load_params(directory / "params", target)
        bad = [leaf for leaf in jax.tree.leaves(params) if not np.isfinite(leaf.sum())]
        if bad:
            raise UserError(f"{directory}: the parameters hold NaN or infinite numbers")
        prompt = Prompt(directory / "tokenizer.json", spec.max_length)
        return cls(config, params, Preprocessor(prompt, spec), buckets, mesh)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes the directory that `from_pretrained` reads; `config.json` last, as its seal."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_params(directory / "params", self.params)
        shutil.copyfile(self.preprocess.prompt.path, directory / "tokenizer.json")
        text = {
            "format": FORMAT,
            "model": self.config.to_dict(),
            "inputs": dataclasses.asdict(self.preprocess.spec),
            "buckets": dataclasses.asdict(self.buckets),
            "fingerprint": self.fingerprint,
        }
        write_json(directory / "config.json", text)

    @property
    def embedding_dim(self) -> int:
        return self.config.embedding_dim

    def encode(
        self,
        inputs: Inputs,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Embeds texts, images, videos and mixtures.

        Args:
          inputs: texts, or mappings with the keys of `gve_jax.inputs.item.Item`.
          prompt: the instruction of inputs that bring none of their own.
          batch_size: items of a batch; has no influence on the vectors.
          show_progress_bar: draws one on the terminal.

        Returns:
          float32 [N, D], unit rows, in the order of `inputs`.

        Raises:
          UserError: an input that is malformed or cannot be read.
        """

        def refuse(index: int, item: Item, error: MediaError, seconds: float):
            raise UserError(f"input {index}: {error}") from error

        vectors, _ = self._run(inputs, prompt, batch_size, show_progress_bar, refuse)
        return vectors

    def encode_valid(
        self,
        inputs: Inputs,
        ids: Sequence[str],
        quarantine: Quarantine,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`encode`, but what cannot be read is put into the quarantine under its id.

        Returns the vectors of the readable inputs, float32 [n, D], and which those are, bool [N].
        """

        def record(index: int, item: Item, error: MediaError, seconds: float):
            medium = item.video if item.video is not None else item.image
            quarantine.record(ids[index], source_name(medium), str(error), seconds)

        return self._run(inputs, prompt, batch_size, show_progress_bar, record)

    def _run(self, inputs, prompt, batch_size, show, on_error: Callable):
        if isinstance(inputs, str | Mapping | Item):
            raise UserError("inputs must be a list of texts or mappings, not a single one")
        items = [as_item(value) for value in inputs]
        if prompt:
            items = [
                item if item.instruction else dataclasses.replace(item, instruction=prompt)
                for item in items
            ]
        rows_per_device = np.prod([self.mesh.shape[axis] for axis in ("data", "fsdp")])
        batch_size = int(-(-batch_size // rows_per_device) * rows_per_device)
        vectors = np.empty((len(items), self.embedding_dim), np.float32)
        valid = np.zeros(len(items), bool)
        starts = range(0, len(items), batch_size * CHUNK)
        for start in track(starts, "embedding", disable=not show):
            chunk = items[start : start + batch_size * CHUNK]
            rows = self._rows(chunk, start, on_error)
            for places, vector in self._batches(rows, batch_size):
                vectors[places] = vector
                valid[places] = True
        if not np.isfinite(vectors[valid]).all():
            raise UserError("the model gives vectors that are not finite")
        return vectors[valid], valid

    def _rows(
        self, items: list[Item], start: int, on_error: Callable
    ) -> dict[int, tuple[Row, Bucket]]:
        def read(item: Item):
            began = time.perf_counter()
            try:
                row = self.preprocess(item)
                return row, self.buckets.fit([row])
            except MediaError as error:
                failure = error
            except ValueError as error:  # larger than every declared shape
                failure = MediaError(str(error))
            return failure, time.perf_counter() - began

        rows = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, (item, result) in enumerate(
                zip(items, pool.map(read, items), strict=True), start
            ):
                if isinstance(result[0], Row):
                    rows[index] = result
                else:
                    on_error(index, item, *result)
        return rows

    def _batches(
        self, rows: dict[int, tuple[Row, Bucket]], size: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(places, vectors) of batches of one bucket each; a last one is filled up with copies."""
        grouped: dict[Bucket, list[int]] = {}
        for index, (_, bucket) in rows.items():
            grouped.setdefault(bucket, []).append(index)
        for bucket, places in sorted(grouped.items()):
            for at in range(0, len(places), size):
                part = places[at : at + size]
                full = part + [part[-1]] * (size - len(part))
                arrays = collate([rows[i][0] for i in full], bucket, self.preprocess.spec)
                batch = place_batch(Batch(**arrays), self.mesh)
                yield part, np.asarray(self._embed(self.params, batch))[: len(part)]


def _read_config(directory: Path) -> tuple[ModelConfig, InputSpec, Buckets]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: not a model directory (no config.json)")
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        if text.get("format") != FORMAT:
            raise UserError(f"{path}: format {text.get('format')!r} is not {FORMAT!r}")
        return (
            ModelConfig.from_dict(text["model"]),
            InputSpec(**text["inputs"]),
            Buckets(**text["buckets"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def _digest(params) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
