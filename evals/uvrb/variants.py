"""The runs of one command: the model's own, and those that ask what its scores depend on.

Order of frames (`--control`), number of frames and tokens (`--frames`, `--tokens`), encoding of the
documents (`--reencode`). Each run keeps its embeddings in OUTPUT/embeddings/<label>.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.progress import Progress

from data.uvrb.reader import RetrievalSet
from data.uvrb.sets import Sets
from data.uvrb.tasks import Task
from evals.uvrb import sweep
from evals.uvrb.compare import compare_runs
from evals.uvrb.cost import Ledger, Meter
from evals.uvrb.digests import left_out
from evals.uvrb.embeddings import Embedder
from evals.uvrb.evaluate import Scored, score_set, summary
from evals.uvrb.output import write_scored
from evals.uvrb.per_query import PerQuery
from evals.uvrb.reencode import Reencoder
from evals.uvrb.transcode import coding
from evals.uvrb.vectors import Vectors
from gve_jax.errors import UserError
from gve_jax.media import limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.filesystem import local_path

ORDERS = ("shuffled", "reversed")
DEPTH = 100  # documents of each query in a run file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the scores depend on, and what is written")
    group.add_argument(
        "--control",
        nargs="?",
        const="shuffled",
        default="",
        metavar="ORDERS",
        help="score the motion sets with the frames shuffled too, or shuffled,reversed",
    )
    for kind, example in (("frames", "8,16,48"), ("tokens", "200,400,800")):
        group.add_argument(
            f"--{kind}",
            metavar=example,
            help=f"score all sets at these numbers of {sweep.KINDS[kind]}, too",
        )
    group.add_argument(
        "--reencode",
        metavar="crf=40",
        help="score all sets with the documents encoded again, too: codec=..., crf=... or "
        "bitrate=...",
    )
    group.add_argument(
        "--compare",
        type=local_path,
        metavar="DIR",
        help="OUTPUT of another model: test the difference, paired by query",
    )
    group.add_argument(
        "--trec",
        type=int,
        default=DEPTH,
        metavar="K",
        help=f"documents of each query in TREC's run files; 0 writes none; {DEPTH}",
    )
    group.add_argument(
        "--published",
        action="store_true",
        help="print the paper's models, whatever the sets' sizes",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Reads the values of the flags above, in place.

    Raises:
      UserError: a value that cannot be; the message names the flag.
    """
    args.control = tuple(part for part in args.control.split(",") if part)
    for order in args.control:
        if order not in ORDERS:
            raise UserError(f"--control: unknown order {order!r}; known: {', '.join(ORDERS)}")
    for kind in sweep.KINDS:
        text = getattr(args, kind)
        setattr(args, kind, () if text is None else sweep.values(text, kind))
    args.reencode = None if args.reencode is None else coding(args.reencode)
    if args.trec < 0:
        raise UserError(f"--trec is {args.trec}, it must be at least 0")


class Runs:
    """Scores sets, shows progress, counts costs and writes what each run leaves behind.

    Args:
      args: the command's.
      source: opens the sets.
      quarantine: where unreadable media are recorded.
      progress: gets a bar a run.
      mesh: devices for the ranking; see `rank_positives`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        source: Sets,
        quarantine: Quarantine,
        progress: Progress,
        mesh: Mesh | None = None,
    ):
        self.args, self.source, self.quarantine = args, source, quarantine
        self.progress, self.mesh = progress, mesh
        self.ledger = Ledger(args.output / "cost.json")
        self.written: list[Path] = []  # files of the runs
        self._started = False
        self._model: Meter | None = None  # the first, and its embeddings
        self._first: Embedder | None = None

    def check(self, model: Meter | Vectors) -> None:
        """Before hours of work: whether the model takes the numbers of the sweeps.

        Raises:
          UserError: an encoder without input settings, or a number that it cannot take.
        """
        for kind in sweep.KINDS:
            for value in getattr(self.args, kind):
                sweep.variant(model.model, kind, value)

    def score(
        self,
        label: str,
        model: Meter | Vectors,
        tasks: Sequence[Task],
        *,
        then: Callable[[RetrievalSet, Scored], None] | None = None,
        **options,
    ) -> dict[str, Scored]:
        """One run over some sets, `options` as of `score_set`; `then` is called after each set.

        Vectors made elsewhere have cost what is not known here.
        """
        embedder = self._embedder(label, model)
        if not self._started:
            self.quarantine.forget(self.quarantine.ids)  # unreadable items are recorded again
        self._started = True
        bar = self.progress.add_task(label, total=self.source.size(tasks))
        scored = {}
        for found in self.source.each(tasks):
            name, before = found.task.name, getattr(model, "spent", None)
            self.progress.update(bar, description=f"{label} {name}")
            self.progress.update(bar, total=self.source.size(tasks))
            embedder.files, embedder.total = found.files, self.source.total
            one = score_set(
                found,
                embedder,
                advance=lambda items: self.progress.advance(bar, items),
                mesh=self.mesh,
                **options,
            )
            if before is not None:
                one.record["cost"] |= self.ledger.add(label, name, before, model.spent)
            if jax.process_index() == 0:
                self.written += write_scored(self.args.output, label, {name: one})
            if then is not None:
                then(found, one)
            scored[name] = one
        self.progress.update(bar, description=label)
        return scored

    def beyond(
        self,
        model: Meter,
        tasks: Sequence[Task],
        motion: Sequence[Task],
        scored: Mapping[str, Scored],
        results: Mapping,
    ) -> dict:
        """The runs that the flags ask for beside the model's own, as parts of `results.json`."""
        found = {}
        for order in self.args.control:
            other = self.score(order, model, motion, frame_order=order)
            found.setdefault("controls", {})[order] = {
                "frame_order": order,
                "datasets": records(other),
                "paired": paired(scored, other),
            }
        if "shuffled" in found.get("controls", {}):
            one = found["controls"]["shuffled"]
            found["control"] = {key: one[key] for key in ("frame_order", "datasets")}
        for kind in sweep.KINDS:
            points = [
                self._point(kind, value, model, tasks, results)
                for value in getattr(self.args, kind)
            ]
            if points:
                found.setdefault("sweeps", {})[kind] = points
        if self.args.reencode is not None:
            found["reencoded"] = self._reencoded(model, tasks, scored)
        return found

    def _point(self, kind: str, value: int, model: Meter, tasks, results: Mapping) -> dict:
        other = Meter(sweep.variant(model.model, kind, value))
        if dict(other.fingerprint) == dict(model.fingerprint):  # the model's own setting
            part = {
                key: results[key]
                for key in ("datasets", "abilities", "averages", "intervals", "fingerprint")
            }
            return {"value": value, **part}
        run = self.score(f"{kind}-{value}", other, tasks)
        part = summary(results["model"], other.fingerprint, run)
        del part["model"], part["chance"]
        refused = {
            name: left_out(results["datasets"][name], one.record) for name, one in run.items()
        }
        part["refused"] = {name: why for name, why in refused.items() if why is not None}
        return {"value": value, **part}

    def _reencoded(self, model: Meter, tasks, scored: Mapping[str, Scored]) -> dict:
        how = self.args.reencode
        again = Reencoder(self.args.output / "reencoded", how, limits.from_arguments(self.args))
        other = self.score(f"reencoded-{how.name}", model, tasks, prepare=again)
        part = summary("", model.fingerprint, other)
        return {
            "coding": how.name,
            "failed": dict(sorted(again.failed.items())),
            **{key: part[key] for key in ("datasets", "abilities", "averages", "intervals")},
            "paired": paired(scored, other),
        }

    def _embedder(self, label: str, model: Meter | Vectors) -> Embedder | Vectors:
        """Runs of one model share its vectors: texts are embedded once."""
        if isinstance(model, Vectors):
            return model
        folder = self.args.output / "embeddings" / label
        if model is self._model:
            return self._first.sibling(folder)
        made = Embedder(model, folder, self.quarantine, self.source.total)
        if self._model is None:
            self._model, self._first = model, made
        return made

    def release(self) -> None:
        """Lets the first model go: two large ones may not fit at once."""
        self._model = self._first = None


def per_query(scored: Mapping[str, Scored]) -> dict[str, PerQuery]:
    return {name: one.per_query for name, one in scored.items()}


def paired(one: Mapping[str, Scored], other: Mapping[str, Scored]) -> dict:
    """The first run against another one on the sets of the other; see `compare_runs`."""
    return compare_runs((records(one), records(other)), (per_query(one), per_query(other)))


def records(scored: Mapping[str, Scored]) -> dict[str, dict]:
    return {name: one.record for name, one in scored.items()}
