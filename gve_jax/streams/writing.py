"""Writes pairs in the files of a TFDS builder, record by record; `PairSources` reads them."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from gve_jax.streams.pairs import pair_features

SHARD_BYTES = 512 * 2**20


def pair_info(name: str, description: str, directory: Path) -> tfds.core.DatasetInfo:
    """Returns the TFDS metadata of a directory of pairs with media in the records."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity, description=description, features=pair_features(), disable_shuffling=True
    )
    info.set_file_format("array_record")
    return info


def encoder(features: tfds.features.FeaturesDict) -> Callable[[dict], bytes]:
    """Returns a function that serializes records; equal records give equal bytes."""
    serializer = ExampleSerializer(features.get_serialized_info())

    def encode(record: dict) -> bytes:
        example = serializer.get_tf_example(features.encode_example(record))
        # Without `deterministic` the order of fields differs between processes.
        return example.SerializeToString(deterministic=True)

    return encode


def write_sources(
    directory: Path, info: tfds.core.DatasetInfo, sources: Mapping[str, Iterable[dict]]
) -> dict[str, int]:
    """As `write_encoded`, for records that are not encoded yet."""
    encode = encoder(info.features)
    return write_encoded(directory, info, {name: map(encode, r) for name, r in sources.items()})


def write_encoded(
    directory: Path, info: tfds.core.DatasetInfo, sources: Mapping[str, Iterable[bytes]]
) -> dict[str, int]:
    """Writes encoded records source by source and returns the number of records of each.

    Memory use does not depend on the size of a source. A source without records has no file.

    Args:
      directory: is created, and is incomplete if the process ends early: rename a complete one.
    """
    directory.mkdir()
    splits, counts = [], {}
    for source, records in sources.items():
        lengths, size, writer, room = [], 0, None, 0
        for data in records:
            if room <= 0:
                if writer is not None:
                    writer.close()
                path = directory / f"{source}.{len(lengths)}"
                writer, room = ArrayRecordWriter(str(path), "group_size:1"), SHARD_BYTES
                lengths.append(0)
            writer.write(data)
            lengths[-1], size, room = lengths[-1] + 1, size + len(data), room - len(data)
        counts[source] = sum(lengths)
        if writer is None:
            continue
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name=info.name, split=source, filetype_suffix="array_record"
        )
        for number in range(len(lengths)):  # file names contain the number of shards
            named = template.sharded_filepath(shard_index=number, num_shards=len(lengths))
            os.rename(directory / f"{source}.{number}", named)
        splits.append(
            tfds.core.SplitInfo(
                name=source, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(directory)
    return counts
