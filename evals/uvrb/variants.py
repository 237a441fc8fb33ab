"""The runs of one command: the model's, and variants that show what its scores depend on.

Variants change the order of frames (`--control`), the number of frames and tokens (`--frames`,
`--tokens`), or the encoding of the documents (`--reencode`). Embeddings of a run are stored in
OUTPUT/embeddings/<label>.
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
from evals.uvrb.transcode import parse_coding
from evals.uvrb.vectors import Vectors
from gve_jax.errors import UserError
from gve_jax.media import limits
from gve_jax.media.quarantine import Quarantine
from gve_jax.storage.filesystem import local_path

ORDERS = ("shuffled", "reversed")
DEPTH = 100  # documents of each query in a run file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("variants, comparisons and files")
    add = group.add_argument
    text = "also score the motion sets with frames shuffled (default), reversed, or both"
    add("--control", nargs="?", const="shuffled", default="", metavar="ORDERS", help=text)
    for kind, example in (("frames", "8,16,48"), ("tokens", "200,400,800")):
        text = f"also score all sets at these numbers of {sweep.KINDS[kind]}"
        add(f"--{kind}", metavar=example, help=text)
    text = "also score all sets with re-encoded documents: codec=..., and crf=... or bitrate=..."
    add("--reencode", metavar="crf=40", help=text)
    text = "OUTPUT of another model, to test the difference, paired by query"
    add("--compare", type=local_path, metavar="DIR", help=text)
    text = f"documents of each query in TREC run files, 0 for no files (default: {DEPTH})"
    add("--trec", type=int, default=DEPTH, metavar="K", help=text)
    text = "print the paper's models even if no set has the released size"
    add("--published", action="store_true", help=text)


def check_arguments(args: argparse.Namespace) -> None:
    """Parses the values of the flags above, in place.

    Raises:
      UserError: an invalid value; the message names the flag.
    """
    args.control = tuple(part for part in args.control.split(",") if part)
    for order in args.control:
        if order not in ORDERS:
            raise UserError(f"--control: unknown order {order!r}; known: {', '.join(ORDERS)}")
    for kind in sweep.KINDS:
        text = getattr(args, kind)
        setattr(args, kind, () if text is None else sweep.values(text, kind))
    args.reencode = None if args.reencode is None else parse_coding(args.reencode)
    if args.trec < 0:
        raise UserError(f"--trec {args.trec} must be at least 0")


class Scorer:
    """Scores sets with a model and its variants, shows progress, adds up costs, writes files.

    Args:
      args: arguments of the command.
      source: opens the sets.
      quarantine: records unreadable media.
      progress: shows a bar for each run.
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
        self._model: Meter | None = None  # the first model, and its embeddings
        self._embedder: Embedder | None = None

    def check_sweeps(self, model: Meter | Vectors) -> None:
        """Checks the numbers of the sweeps before hours of work.

        Raises:
          UserError: an encoder without input settings, or a number that it refuses.
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
        """One run over some sets; `then` is called after each set, `options` go to `score_set`."""
        embedder = self._open_embedder(label, model)
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
            if before is not None:  # the cost of imported vectors is unknown
                one.record["cost"] |= self.ledger.add(label, name, before, model.spent)
            if jax.process_index() == 0:
                self.written += write_scored(self.args.output, label, {name: one})
            if then is not None:
                then(found, one)
            scored[name] = one
        self.progress.update(bar, description=label)
        return scored

    def score_variants(
        self,
        model: Meter,
        tasks: Sequence[Task],
        motion: Sequence[Task],
        scored: Mapping[str, Scored],
        results: Mapping,
    ) -> dict:
        """Scores the variants that the flags select; returns their parts of `results.json`."""
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
                self._sweep_point(kind, value, model, tasks, results)
                for value in getattr(self.args, kind)
            ]
            if points:
                found.setdefault("sweeps", {})[kind] = points
        if self.args.reencode is not None:
            found["reencoded"] = self._score_reencoded(model, tasks, scored)
        return found

    def _sweep_point(self, kind: str, value: int, model: Meter, tasks, results: Mapping) -> dict:
        other = Meter(sweep.variant(model.model, kind, value))
        if dict(other.fingerprint) == dict(model.fingerprint):  # the model's default
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

    def _score_reencoded(self, model: Meter, tasks, scored: Mapping[str, Scored]) -> dict:
        coding, allowed = self.args.reencode, limits.from_arguments(self.args)
        reencode = Reencoder(self.args.output / "reencoded", coding, allowed)
        other = self.score(f"reencoded-{coding.name}", model, tasks, prepare=reencode)
        part = summary("", model.fingerprint, other)
        return {
            "coding": coding.name,
            "failed": dict(sorted(reencode.failed.items())),
            **{key: part[key] for key in ("datasets", "abilities", "averages", "intervals")},
            "paired": paired(scored, other),
        }

    def _open_embedder(self, label: str, model: Meter | Vectors) -> Embedder | Vectors:
        """Runs of one model share its vectors, so that texts are embedded once."""
        if isinstance(model, Vectors):
            return model
        folder = self.args.output / "embeddings" / label
        if model is self._model:
            return self._embedder.sibling(folder)
        embedder = Embedder(model, folder, self.quarantine, self.source.total)
        if self._model is None:
            self._model, self._embedder = model, embedder
        return embedder

    def release(self) -> None:
        """Drops the references to the first model: two large models may not fit at once."""
        self._model = self._embedder = None


def per_query(scored: Mapping[str, Scored]) -> dict[str, PerQuery]:
    return {name: one.per_query for name, one in scored.items()}


def paired(one: Mapping[str, Scored], other: Mapping[str, Scored]) -> dict:
    """Compares one run with another on the other's sets; see `compare_runs`."""
    return compare_runs((records(one), records(other)), (per_query(one), per_query(other)))


def records(scored: Mapping[str, Scored]) -> dict[str, dict]:
    return {name: one.record for name, one in scored.items()}
