"""Embeds a folder or a list of texts, images and videos:

    python -m gve_jax.embed --model M --input clips/ --output vectors
    python -m gve_jax.embed --model M --input items.jsonl --output vectors --prompt-name MSRVTT

The items of a folder are its videos and images, with their paths as ids; hidden and system files
and links that lead out of the folder are passed over (docs/inputs.md, Folders). A line of a JSONL
file is an item with an `id` and any of `text`, `image`, `video`, `instruction`, `num_frames`, ...
(gve_jax/media/item.py), and `meta`, any JSON value to store with the vector; its paths are relative
to the folder of the file and must not leave it. OUTPUT receives

    vectors-00000.npy, ...  float32 [n, D], unit rows
    ids-00000.jsonl, ...    {"id", "stamp", "content", "meta"} of each row
    quarantine.jsonl        {"id", "path", "reason", ...} of unreadable items, which have no row
    settings.json           model and prompt of the vectors; compared when the command is repeated
    manifest.json           the same with the list of shards; written last

`gve_jax.load_vectors(OUTPUT)` reads it (docs/embedding.md). The same command brings the output up
to date: it embeds items that are new or whose content has changed, copies the vectors of those that
were renamed or touched, and drops those that are gone. After a kill it embeds what is missing. It
also retries items that may be readable now: those that exceeded a limit of time or memory, were
missing, or have changed; not damaged ones. A changed model or prompt is an error: choose another
output. So are an input that lacks most of the output's items (see --allow-removal) and an output
that another process writes.
Several hosts (docs/pods.md) that share input and output divide the shards; each loads the model on
its own devices.
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import jax

from gve_jax.cli import Parser, load_encoder, run_cli
from gve_jax.distributed import hosts
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs
from gve_jax.inputs.entries import read_entries
from gve_jax.inputs.instructions import choose_instruction
from gve_jax.media import limits
from gve_jax.media.quarantine import open_quarantine
from gve_jax.retrieval.embedding import CHUNK, LARGEST, SHARDS, Encoder, digest_rows, embed_all
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_folder


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` opens an encoder by its name (default: a `GVE`)."""
    args = _parse(argv)
    prompt = choose_instruction(args.prompt, args.prompt_name)
    load = load or functools.partial(load_encoder, **limits.decoding_options(args))
    report = (lambda line: None) if jax.process_index() else print
    entries = hosts.run_on_all_hosts(
        lambda: read_entries(
            args.input,
            follow_links=args.follow_links,
            report=report,
            remedy="--follow-links follows them",
        )
    )
    ids, stamps = [entry.id for entry in entries], [entry.stamp for entry in entries]
    hosts.check_same({"--input": {"items": len(entries), "digest": digest_rows(ids, stamps)}})
    with lock_folder(args.output):
        quarantine = open_quarantine(args.output, args.max_bad_share)
        model = hosts.run_on_all_hosts(lambda: _with_frames(load(args.model), args))
        count, shards = embed_all(
            args.output,
            ids,
            stamps,
            lambda start, stop: [e.item for e in entries[start:stop]],
            model,
            quarantine,
            prompt=prompt,
            shard_size=args.shard_size,
            contents=lambda n: entries[n].content(),
            metas=[entry.meta for entry in entries],
            batch_size=args.batch_size,
            allow_removal=args.allow_removal,
            report=print,
        )
        if jax.process_index():
            return
        print(f"{args.output}: {count:,} vectors of {model.embedding_dim} in {shards} shards")
        print(model.summary())
        print(quarantine.summary(len(entries)))


def _with_frames(model: Encoder, args: argparse.Namespace) -> Encoder:
    """The model with the frames of the command line."""
    names = ("num_frames", "fps", "max_frames")
    changes = {name: value for name in names if (value := getattr(args, name)) is not None}
    return model.with_inputs(**changes) if changes else model


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m gve_jax.embed", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="directory of the model, or its Hub id, ORG/NAME or ORG/NAME@REVISION",
    )
    parser.add_argument(
        "--input", required=True, type=local_path, help="JSONL file or folder of items"
    )
    parser.add_argument(
        "--output", required=True, type=local_path, help="folder to write the vectors to"
    )
    parser.add_argument("--prompt", help="instruction of items without an `instruction`")
    parser.add_argument("--prompt-name", help="the instruction by its name, such as MSRVTT")
    parser.add_argument("--batch-size", type=int, default=32, help="batch size (default: 32)")
    parser.add_argument(
        "--shard-size",
        type=int,
        help=f"vectors in a file (default: {CHUNK}, or up to {LARGEST} to have at most {SHARDS} "
        "files)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.05,
        help="stop if more than this share of the items is unreadable (default: 0.05)",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="follow links that lead out of the input folder; for folders whose links you trust",
    )
    parser.add_argument(
        "--allow-removal",
        action="store_true",
        help="drop the vectors of items that are not in the input, even if they are most of them",
    )
    parser.add_argument(
        "--num-frames",
        type=int,
        help="frames of a video, an even number (default: the model's; see docs/inputs.md)",
    )
    parser.add_argument(
        "--fps", type=float, help="frames per second, instead of a number of frames"
    )
    parser.add_argument(
        "--max-frames", type=int, help="most frames of a video with --fps (default: the model's)"
    )
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.fps is not None and args.num_frames is not None:
        parser.error("--num-frames and --fps exclude each other")
    for name in ("batch_size", "shard_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= args.max_bad_share <= 1:
        parser.error(f"--max-bad-share must be a share from 0 to 1, not {args.max_bad_share}")
    return args


if __name__ == "__main__":
    retain_freed_memory()
    keep_compiled_programs()
    run_cli(lambda: hosts.run(main), resumes=True)
