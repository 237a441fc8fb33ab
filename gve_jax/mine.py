"""Mines hard negatives for training pairs:

    python -m gve_jax.mine --pairs pairs --model M --output mined
    python -m gve_jax.mine --pairs pairs --model M --corpus clips/ --ranks 10-100 --negatives 3 \\
        --choose random --output mined

Every query of PAIRS is compared with every document of the corpus: the pairs' own positives, or
with --corpus another directory of pairs (its positives), a folder of media or a JSONL file (as
`gve_jax.embed` takes them). The best documents that are none of its positives are ranked, and
those that the rule allows become the pair's negatives. Not ranked are documents with the content or
the id of the query or of any positive of the same query, and those whose cosine to such a positive
is within --duplicate-cosine of one.

OUTPUT is a directory of pairs as training reads it, with README.md (the card), mining.json (what
was asked, scores) and negatives.jsonl (the ids). Negatives that the pairs had are replaced. A pair
that gets fewer than --negatives is left out and counted. WORK keeps vectors and ranks: killed at
any time, the same command goes on from there, and another window uses the same vectors. Several
hosts (docs/pods.md) that see the same files divide the embedding and the comparing, and give the
bytes of one. See docs/mining.md.
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
from gve_jax.inputs.entries import size_and_time
from gve_jax.media import limits
from gve_jax.media.walk import walk
from gve_jax.mining.corpus import WITHIN, MiningCorpus, read_mining_corpus
from gve_jax.mining.search import Found, Neighbours, check_same, vectors_of
from gve_jax.mining.write import LOST, MANIFEST, check_few, format_mean, write_mined
from gve_jax.progress import progress_bar
from gve_jax.retrieval.embedding import Encoder
from gve_jax.retrieval.negatives import Rule
from gve_jax.storage.artifacts import read_manifest
from gve_jax.storage.filesystem import local_path
from gve_jax.storage.locks import lock_folder

FORMAT = "gve_jax mined pairs 1"
MOST = 3  # negatives that a step takes


def main(argv: Sequence[str] | None = None, load: Callable[[str], Encoder] | None = None) -> None:
    """The command line. `load` makes an encoder of a model's name; by default `GVE`."""
    args = _parse(argv)
    output = args.output.resolve()
    own = output.with_name(output.name + ".mining")
    work = (args.work or own).resolve()
    asked = hosts.run_on_all_hosts(lambda: _asked(args))
    hosts.check_same(asked)
    if hosts.run_on_host0(lambda: _done(output, asked, args)):
        _tell(f"{output} is mined already")
        return
    load = load or functools.partial(load_encoder, limits=limits.from_arguments(args))
    with contextlib.ExitStack() as locks:
        # Not OUTPUT itself: it comes to be by a rename, in whole.
        for folder in dict.fromkeys((own, work)):
            locks.enter_context(lock_folder(folder))
        # Again: by whoever held the locks until now.
        if hosts.run_on_host0(lambda: _done(output, asked, args)):
            _tell(f"{output} is mined already")
        else:
            _mine(args, output, work, asked, load)


def _mine(args, output: Path, work: Path, asked: dict, load: Callable[[str], Encoder]) -> None:
    rule = Rule(args.ranks, args.share, args.margin, args.negatives, args.choose, args.seed)
    with progress_bar("percent") as progress:
        bar = progress.add_task("reading pairs", total=None)
        world = hosts.run_on_all_hosts(
            lambda: read_mining_corpus(
                args.pairs, args.corpus, lambda count: progress.advance(bar, count)
            )
        )
    found = _vectors(args, world, work, functools.cache(lambda: _model(args, load)))
    queries, positives = found["queries"], found["positives"]
    neighbours = Neighbours(
        work / f"ranks-{args.within}-{args.ranks[1]}",
        world,
        *found.values(),
        args.ranks[1],
        args.duplicate_cosine,
    )
    with progress_bar("percent") as progress:
        groups = world.groups(args.within)
        products = sum(len(group.queries) * len(group.documents) for group in groups)
        bar = progress.add_task("comparing", total=products)
        look = neighbours.find(groups, lambda n: progress.advance(bar, n))
        progress.update(bar, completed=products)
        bar = progress.add_task("writing pairs", total=sum(map(len, world.query.values())))

        def of_pair(source: str, index: int):
            return look[world.group_of(source, index, args.within)](world.query[source][index])

        settings = {
            "format": FORMAT,
            "asked": asked,
            "corpus": {"documents": len(world.corpus), "digest": world.corpus.digest()},
            "fingerprint": queries.manifest.get("fingerprint"),
        }
        told = hosts.run_on_host0(
            lambda: write_mined(
                output,
                world,
                queries,
                positives,
                of_pair,
                rule,
                settings,
                lambda count: progress.advance(bar, count),
                args.max_lost_share,
            )
        )
    for name, its in told.items():
        lost = "".join(f"; {its['lost'][why]:,} {why}" for why in LOST if its["lost"][why])
        _tell(
            f"{name}: {its['mined']:,} of {its['pairs']:,} pairs, mean score of positives "
            f"{format_mean(its['means']['positive score'])}, of negatives "
            f"{format_mean(its['means']['negative score'])}{lost}"
        )
    _tell(f"wrote {output}")


def _tell(line: str) -> None:
    if jax.process_index() == 0:
        print(line)


def _vectors(args, world: MiningCorpus, work: Path, model: Callable) -> dict[str, Found]:
    found = {}
    for name, items in {
        "queries": world.queries,
        "positives": world.positives,
        "corpus": world.corpus,
    }.items():
        if name == "corpus" and world.own_corpus:
            found[name] = found["positives"]
            continue
        found[name] = vectors_of(
            name,
            items,
            work / name,
            getattr(args, f"{name}_vectors"),
            model,
            max_bad_share=args.max_bad_share,
            batch_size=args.batch_size,
            shard_size=args.shard_size,
        )
    check_same(found)
    return found


def _asked(args) -> dict:
    """The options that the output depends on, and the files it is made of."""
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
    asked = {key: getattr(args, key) for key in keys}
    asked |= {key: str(value) for key, value in asked.items() if isinstance(value, Path)}
    files = {}
    for path in (args.pairs, args.corpus):
        if path is not None and not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if path is not None and path.is_dir():
            for file in walk(path, follow_links=True).files:  # what may be read is judged later
                files[str(path / file.name)] = size_and_time(file.path)
        elif path is not None:
            files[str(path)] = size_and_time(path)
    return json.loads(json.dumps(asked | {"files": files}))


def _done(output: Path, asked: dict, args) -> bool:
    """Returns whether OUTPUT was mined with these options.

    Raises:
      UserError: OUTPUT holds something else, or has lost a larger share than is allowed now.
    """
    manifest = read_manifest(output, MANIFEST, "mined pairs", asked, section="asked")
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
            "--model is missing: only with vectors of queries, positives and corpus "
            "can it be left out"
        )
    return hosts.run_on_all_hosts(lambda: load(args.model))


def _ranks(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, from 1")
    return int(found[1]), int(found[2])


def _limit(text: str) -> float | None:
    return None if text == "none" else float(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m gve_jax.mine", __doc__)
    add = parser.add_argument
    add("--pairs", required=True, type=local_path, help="a directory of training pairs")
    add("--output", required=True, type=local_path, help="the directory of pairs to make")
    add("--model", help="the prober: a model's directory, or its Hub id (@REVISION)")
    add(
        "--corpus",
        type=local_path,
        help="pairs, a folder or a JSONL file; the pairs' own positives",
    )
    add("--queries-vectors", type=local_path, help="made before, ids SOURCE/PAIR")
    add("--positives-vectors", type=local_path, help="made before, ids SOURCE/PAIR")
    add("--corpus-vectors", type=local_path, help="of --corpus, made by gve_jax.embed")
    add("--work", type=local_path, help="folder of vectors and ranks; OUTPUT.mining")
    add(
        "--within",
        choices=WITHIN,
        default="modality",
        help="what a query is compared with: documents of its positive's modalities, of its "
        "source, or all",
    )
    add("--ranks", type=_ranks, default=(1, 100), metavar="FIRST-LAST", help="the window; 1-100")
    add(
        "--share",
        type=_limit,
        default=0.95,
        help="a negative has at most this share of the positive's score; none: no limit; 0.95",
    )
    add(
        "--margin",
        type=_limit,
        default=None,
        help="and scores at least this much below the positive; no limit",
    )
    add(
        "--duplicate-cosine",
        type=float,
        default=1e-5,
        help="documents this near to a positive are none's negatives; 1e-5",
    )
    add("--negatives", type=int, default=1, help=f"of each pair, 1 to {MOST}; 1")
    add(
        "--choose",
        choices=("hardest", "random"),
        default="hardest",
        help="the best ranked of those allowed, or any of them",
    )
    add("--seed", type=int, default=0, help="of the random choice")
    add("--batch-size", type=int, default=32, help="items of a batch; 32")
    add("--shard-size", type=int, help="items of a shard of vectors; as of gve_jax.embed")
    add(
        "--max-bad-share",
        type=float,
        default=0.05,
        help="stop above this share of unreadable items; 0.05",
    )
    add(
        "--max-lost-share",
        type=float,
        default=0.5,
        help="fail above this share of pairs with too few negatives; 0.5",
    )
    limits.add_arguments(parser)
    args = parser.parse_args(argv)
    for name in ("batch_size", "shard_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 1 <= args.negatives <= MOST:
        parser.error(f"--negatives must be 1 to {MOST}, not {args.negatives}")
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
        parser.error("--corpus-vectors needs the --corpus that they are of")
    return args


if __name__ == "__main__":
    retain_freed_memory()
    run_cli(lambda: hosts.run(main))
