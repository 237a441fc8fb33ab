"""The TFDS builder of the training pairs: one ArrayRecord split per source, without TensorFlow."""

import dataclasses
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool

import tensorflow_datasets as tfds

from data.shapes import pairs
from gve_jax.streams.pairs import pair_features


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """`seed` and `scale` (1.0: about 15,000 pairs) determine every byte."""

    seed: int = 0
    scale: float = 1.0


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Training pairs of the generated video world (see `data.shapes.pairs`).

    Args:
        pool: worker processes for rendering; None renders in this process.
        tick: called with the family of each rendered item, to show progress.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [ShapesConfig(name="default")]

    def __init__(
        self, *, pool: Pool | None = None, tick: Callable[[str], None] | None = None, **kwargs
    ):
        super().__init__(file_format="array_record", **kwargs)
        self._pool, self._tick = pool, tick
        self._ready: dict[str, list[pairs.Record]] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Pairs of a generated world of moving coloured shapes, one split a source.",
            features=pair_features(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {source: self._generate_examples(source) for source in pairs.SOURCES}

    def _generate_examples(self, source: str) -> Iterator[tuple[int, pairs.Record]]:
        if source not in self._ready:
            self._render(pairs.SOURCES[source])
        yield from enumerate(self._ready.pop(source))

    def _render(self, family: str) -> None:
        # TFDS requests one split at a time, but a family yields several: `_ready` stores the
        # others.
        config = self.builder_config
        for records in pairs.family_records(self._pool, config.seed, config.scale, family):
            for source, record in records.items():
                self._ready.setdefault(source, []).append(record)
            if self._tick:
                self._tick(family)
