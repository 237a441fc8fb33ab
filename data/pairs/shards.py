"""Records -> the splits of a TFDS directory, without Apache Beam and without TensorFlow."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from gve_jax.errors import UserError

SHARD_BYTES = 512 * 2**20


def write_splits(
    directory: Path, info: tfds.core.DatasetInfo, splits: Mapping[str, Iterable[bytes]]
) -> None:
    """Writes serialized examples and the directory's description, record by record: memory does not
    grow with a split. (Above 1 GB, TFDS sorts a split in files that it opens with TensorFlow.)

    Args:
      directory: to make.
      info: of the dataset; gets the splits.
      splits: examples by split, serialized by the features of `info`.

    Raises:
      UserError: a split without an example.
    """
    directory.mkdir()
    written = []
    for name, examples in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name=info.name, split=name, filetype_suffix="array_record"
        )
        lengths, size, writer, room = [], 0, None, 0
        for data in examples:
            if room <= 0:
                if writer is not None:
                    writer.close()
                path = directory / f"{name}.{len(lengths)}"
                writer, room = ArrayRecordWriter(str(path), "group_size:1"), SHARD_BYTES
                lengths.append(0)
            writer.write(data)
            lengths[-1], size, room = lengths[-1] + 1, size + len(data), room - len(data)
        if writer is None:
            raise UserError(f"source {name!r}: its files changed, no pair is left in them")
        writer.close()
        for number in range(len(lengths)):  # their names tell how many there are
            named = template.sharded_filepath(shard_index=number, num_shards=len(lengths))
            os.rename(directory / f"{name}.{number}", named)
        written.append(
            tfds.core.SplitInfo(
                name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(written))
    info.write_to_directory(directory)
