"""Mines hard negatives for training pairs:

    python -m gve_jax.mine --pairs pairs --model M --output mined
    python -m gve_jax.mine --pairs pairs --model M --corpus clips/ --ranks 10-100 --negatives 3 \\
        --choose random --output mined

PAIRS is what `config.data.pairs` takes: directories or JSONL files, several separated by commas,
and `*`. Every query is compared with every document of the corpus: the positives of the pairs, or
with --corpus the positives of another directory of pairs, a folder of media, or a JSONL file (as
`gve_jax.embed` reads them). The nearest documents are ranked, and those that the rule allows become
the pair's negatives. A document is excluded if it has the content or the id of the query or of a
positive of the query, or if its cosine with such a positive is above 1 - DUPLICATE_COSINE.

OUTPUT is a directory of pairs that training reads, with README.md (the card), mining.json (options
and scores) and negatives.jsonl (the ids). Earlier negatives of the pairs are replaced. A pair with
fewer than --negatives is left out and counted. WORK stores vectors and ranks: after a kill, the
same command resumes from them, and another window of ranks uses the same vectors. Several hosts
(docs/pods.md) that share a file system divide the embedding and the comparison; the output is
byte-identical to that of one host. See docs/mining.md.
"""

import argparse
import contextlib
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from gve_jax.cli import Parser, load_encoder, run_cli
from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.hardware.malloc import retain_freed_memory
from gve_jax.hardware.programs import keep_compiled_programs
from gve_jax.inputs.entries import size_and_time
from gve_jax.media import limits
from gve_jax.media.walk import walk
from gve_jax.mining.corpus import WITHIN, MiningCorpus, read_mining_corpus
from gve_jax.mining.search import ItemVectors, Neighbours, check_same, vectors_of
from gve_jax.mining.write import LOST, MANIFEST, check_few, format_mean, write_mined
from gve_jax.progress import progress_bar
from gve_jax.retrieval.embedding import Encoder
from gve_jax.retrieval.negatives import Rule
from gve_jax.storage.artifacts import read_manifest
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_folder
from gve_jax.streams.rows import MAX_NEGATIVES
from gve_jax.streams.sources import Sources, parse

FORMAT = "gve_jax mined pairs 1"


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` opens an encoder by its name (default: a `GVE`)."""
    args = _parse(argv)
    output = args.output.resolve()
    default_work = output.with_name(output.name + ".mining")
    work = (args.work or default_work).resolve()
    options = hosts.run_on_all_hosts(lambda: _options(args))
    hosts.check_same(options)
    if hosts.run_on_host0(lambda: _is_mined(output, options, args)):
        _print(f"{output} is already mined")
        return
    load = load or functools.partial(load_encoder, **limits.decoding_options(args))
    with contextlib.ExitStack() as locks:
        # Not OUTPUT itself, which is created by a rename.
        for folder in dict.fromkeys((default_work, work)):
            locks.enter_context(lock_folder(folder))
        # Another process may have mined it while it held the locks.
        if hosts.run_on_host0(lambda: _is_mined(output, options, args)):
            _print(f"{output} is already mined")
        else:
            _mine(args, output, work, options, load)


def _mine(args, output: Path, work: Path, options: dict, load: Callable[[str], Encoder]) -> None:
    rule = Rule(args.ranks, args.share, args.margin, args.negatives, args.choose, args.seed)
    with progress_bar("percent") as progress:
        bar = progress.add_task("reading pairs", total=None)
        mining = hosts.run_on_all_hosts(
            lambda: read_mining_corpus(
                args.pairs, args.corpus, lambda count: progress.advance(bar, count)
            )
        )
    vectors = _vectors(args, mining, work, functools.cache(lambda: _model(args, load)))
    queries, positives = vectors["queries"], vectors["positives"]
    neighbours = Neighbours(
        work / f"ranks-{args.within}-{args.ranks[1]}",
        mining,
        *vectors.values(),
        args.ranks[1],
        args.duplicate_cosine,
    )
    with progress_bar("percent") as progress:
        groups = mining.groups(args.within)
        products = sum(len(group.queries) * len(group.documents) for group in groups)
        bar = progress.add_task("comparing", total=products)
        by_group = neighbours.find(groups, lambda n: progress.advance(bar, n))
        progress.update(bar, completed=products)
        bar = progress.add_task("writing pairs", total=sum(map(len, mining.query.values())))

        def find(source: str, index: int):
            group = mining.group_of(source, index, args.within)
            return by_group[group](mining.query[source][index])

        documents = mining.documents
        settings = {
            "format": FORMAT,
            "asked": options,
            "corpus": {"documents": len(documents), "digest": documents.digest()},
            "fingerprint": queries.manifest.get("fingerprint"),
            "sandbox": {name: one.manifest.get("sandbox") for name, one in vectors.items()},
        }
        tallies = hosts.run_on_host0(
            lambda: write_mined(
                output,
                mining,
                queries,
                positives,
                find,
                rule,
                settings,
                lambda count: progress.advance(bar, count),
                args.max_lost_share,
            )
        )
    for name, tally in tallies.items():
        lost = "".join(f"; {tally['lost'][why]:,} {why}" for why in LOST if tally["lost"][why])
        means = {key: format_mean(mean) for key, mean in tally["means"].items()}
        _print(
            f"{name}: {tally['mined']:,} of {tally['pairs']:,} pairs, mean score of positives "
            f"{means['positive score']}, of negatives {means['negative score']}{lost}"
        )
    _print(f"wrote {output}")


def _print(line: str) -> None:
    if jax.process_index() == 0:
        print(line)


def _vectors(
    args, mining: MiningCorpus, work: Path, model: Callable[[], Encoder]
) -> dict[str, ItemVectors]:
    vectors = {}
    for name, items in {
        "queries": mining.queries,
        "positives": mining.positives,
        "corpus": mining.documents,
    }.items():
        if name == "corpus" and mining.searches_positives:
            vectors[name] = vectors["positives"]
            continue
        vectors[name] = vectors_of(
            name,
            items,
            work / name,
            getattr(args, f"{name}_vectors"),
            model,
            max_bad_share=args.max_bad_share,
            batch_size=args.batch_size,
            shard_size=args.shard_size,
        )
    check_same(vectors)
    return vectors


def _options(args) -> dict:
    """The options that decide the output, with the sizes and times of the input's files."""
    keys = (
        "pairs",
        "corpus",
        "model",
        "queries_vectors",
        "positives_vectors",
        "corpus_vectors",
        "ranks",
        "margin",
        "share",
        "negatives",
        "choose",
        "seed",
        "within",
        "duplicate_cosine",
    )
    options = {key: getattr(args, key) for key in keys}
    options |= {key: str(value) for key, value in options.items() if isinstance(value, Path)}
    files = {}
    if args.corpus is not None and not args.corpus.exists():
        raise UserError(f"{args.corpus}: no such file or folder")
    corpus = [] if args.corpus is None else [args.corpus]
    for path in (*Sources(parse(args.pairs)).paths(), *corpus):
        if path.is_dir():
            for file in walk(path, follow_links=True).files:  # readers judge links later
                files[str(path / file.name)] = size_and_time(file.path)
        else:
            files[str(path)] = size_and_time(path)
    return json.loads(json.dumps(options | {"files": files}))


def _is_mined(output: Path, options: dict, args) -> bool:
    """Returns whether OUTPUT was mined with these options.

    Raises:
      UserError: OUTPUT holds something else, or has lost a larger share than is allowed now.
    """
    manifest = read_manifest(output, MANIFEST, "mined pairs", options, section="asked")
    if manifest is None:
        return False
    tallies = manifest["sources"].values()
    pairs = sum(tally["pairs"] for tally in tallies)
    lost = {why: sum(tally["lost"][why] for tally in tallies) for why in LOST}
    *unreadable, few = LOST
    for why in unreadable:
        if lost[why] > args.max_bad_share * pairs:
            raise UserError(
                f"{output} lacks {lost[why]} of {pairs} pairs ({why}), more than "
                f"--max-bad-share {args.max_bad_share:g}"
            )
    check_few(lost[few], pairs, args.negatives, args.max_lost_share)
    return True


def _model(args, load: Callable[[str], Encoder]) -> Encoder:
    if args.model is None:
        raise UserError(
            "--model is missing: it is needed unless --queries-vectors, --positives-vectors and, "
            "with --corpus, --corpus-vectors are given"
        )
    return hosts.run_on_all_hosts(lambda: load(args.model))


def _ranks(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, from 1")
    return int(match[1]), int(match[2])


def _limit(text: str) -> float | None:
    return None if text == "none" else float(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m gve_jax.mine", __doc__)
    add = parser.add_argument
    add(
        "--pairs",
        required=True,
        action="append",
        metavar="LOCATION",
        help="training pairs, as config.data.pairs: directories or JSONL files, several by commas "
        "or repeated, * as wildcard",
    )
    add("--output", required=True, type=local_path, help="directory of pairs to write")
    add("--model", help="directory of the model, or its Hub id, ORG/NAME or ORG/NAME@REVISION")
    add(
        "--corpus",
        type=local_path,
        help="directory of pairs, folder of media or JSONL file to search (default: the positives "
        "of the pairs)",
    )
    for name, ids in (
        ("queries", "ids SOURCE/PAIR"),
        ("positives", "ids SOURCE/PAIR"),
        ("corpus", "an output of gve_jax.embed for --corpus"),
    ):
        add(
            f"--{name}-vectors",
            type=local_path,
            help=f"folder of vectors to use instead of embedding the {name}; {ids}",
        )
    add("--work", type=local_path, help="folder of vectors and ranks (default: OUTPUT.mining)")
    add(
        "--within",
        choices=WITHIN,
        default="modality",
        help="documents that a query is compared with: those of the modalities of its positive, "
        "those of its source, or all (default: modality)",
    )
    add(
        "--ranks",
        type=_ranks,
        default=(1, 100),
        metavar="FIRST-LAST",
        help="ranks that negatives are chosen from (default: 1-100)",
    )
    add(
        "--share",
        type=_limit,
        default=0.95,
        help="highest score of a negative, as a share of the positive's score, or none for no "
        "limit (default: 0.95)",
    )
    add(
        "--margin",
        type=_limit,
        default=None,
        help="least difference of the scores of positive and negative (default: none)",
    )
    add(
        "--duplicate-cosine",
        type=float,
        default=1e-5,
        help="exclude documents within this cosine distance of a positive as duplicates "
        "(default: 1e-5)",
    )
    add(
        "--negatives",
        type=int,
        default=1,
        help=f"negatives of each pair, 1 to {MAX_NEGATIVES} (default: 1)",
    )
    add(
        "--choose",
        choices=("hardest", "random"),
        default="hardest",
        help="which of the allowed documents become negatives (default: hardest)",
    )
    add("--seed", type=int, default=0, help="seed of --choose random (default: 0)")
    add("--batch-size", type=int, default=32, help="batch size (default: 32)")
    add(
        "--shard-size",
        type=int,
        help="vectors in a file (default: as gve_jax.embed chooses it)",
    )
    add(
        "--max-bad-share",
        type=float,
        default=0.05,
        help="stop if more than this share of the items is unreadable (default: 0.05)",
    )
    add(
        "--max-lost-share",
        type=float,
        default=0.5,
        help="stop if more than this share of the pairs gets too few negatives (default: 0.5)",
    )
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    if len(args.pairs) == 1:
        (args.pairs,) = args.pairs
    for name in ("batch_size", "shard_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 1 <= args.negatives <= MAX_NEGATIVES:
        parser.error(f"--negatives must be 1 to {MAX_NEGATIVES}, not {args.negatives}")
    if args.ranks[1] - args.ranks[0] + 1 < args.negatives:
        parser.error(
            f"--ranks {args.ranks[0]}-{args.ranks[1]} has no room for {args.negatives} negatives"
        )
    for name, least, most in (
        ("share", 0, 1),
        ("margin", 0, 2),
        ("duplicate_cosine", 0, 2),
        ("max_lost_share", 0, 1),
    ):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name.replace('_', '-')} must be {least} to {most}, not {value}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative: {args.seed}")
    if args.corpus_vectors and not args.corpus:
        parser.error("--corpus-vectors requires --corpus")
    return args


if __name__ == "__main__":
    retain_freed_memory()
    keep_compiled_programs()
    run_cli(lambda: hosts.run(main), resumes=True)
