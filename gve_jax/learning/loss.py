"""The paper's symmetric InfoNCE (arXiv 2510.27571, equation 1) over the global batch, in three
forms that agree: what differs is where the [B, B] matrix of cosines lives."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from gve_jax.distributed.sharding import ROW_AXES
from gve_jax.fields import setting
from gve_jax.model.layers import unit_rows

FORMS = ("plain", "all_gather", "ring")
TEMPERATURES = (0.01, 1.0)  # what a learned temperature may become; CLIP's lower bound
_MASKED = -1e30  # finite, so that a block of columns without a candidate has a gradient: zero


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`config.loss`.

    An untrained model may place all vectors within `duplicate_cosine` of each other, which leaves
    no negatives: None then. 1e-5 and a margin of 0.1 are defaults of classes the authors built on.
    """

    temperature: float = setting(0.03, "divisor of the cosines; the paper's is 0.03", above=0)
    learned_temperature: bool = setting(False, "train the temperature, within 0.01 to 1")
    form: str = setting(
        "plain",
        "layout of the cosines: left to the compiler, rows against all, or blocks in a ring",
        choices=FORMS,
        resume=True,
    )
    duplicate_cosine: float | None = setting(
        1e-5,
        "pairs whose queries or positives have a cosine within this of 1 are not negatives of "
        "each other; None: only equal content is excluded",
        least=0,
    )
    false_negative_margin: float | None = setting(
        None,
        "candidates that score this much above the positive are not negatives; None: off",
        least=0,
    )
    matryoshka: tuple[int, ...] = setting(
        (), "lengths of truncated vectors that the loss averages over; (): full vectors", least=1
    )
    matryoshka_weights: tuple[float, ...] = setting(
        (), "weights of that average; (): equal", least=0
    )

    def __post_init__(self):
        def require(fits, field, what):
            if not fits:
                raise ValueError(f"{field} {getattr(self, field)!r} is not {what}")

        for field in ("matryoshka", "matryoshka_weights"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        require(self.temperature > 0, "temperature", "above 0")
        low, high = TEMPERATURES
        if self.learned_temperature:
            require(low <= self.temperature <= high, "temperature", f"in {low}..{high}, as learned")
        require(self.form in FORMS, "form", f"one of {', '.join(FORMS)}")
        for field in ("duplicate_cosine", "false_negative_margin"):
            value = getattr(self, field)
            require(value is None or value >= 0, field, "at least 0, or None")
        dims, weights = self.matryoshka, self.matryoshka_weights
        require(
            all(isinstance(d, int) and d > 0 for d in dims) and len(set(dims)) == len(dims),
            "matryoshka",
            "different lengths above 0",
        )
        require(
            not weights or len(weights) == len(dims),
            "matryoshka_weights",
            f"as many as matryoshka has, {len(dims)}",
        )
        require(
            all(w >= 0 for w in weights) and (not weights or sum(weights) > 0),
            "matryoshka_weights",
            "at least 0, some above",
        )

    def check(self, dim: int) -> None:
        """Raises ValueError if vectors of `dim` numbers cannot be cut as asked."""
        if self.matryoshka and max(self.matryoshka) > dim:
            raise ValueError(f"matryoshka {max(self.matryoshka)} is more than the vectors' {dim}")


def log_temperature(cfg: LossConfig) -> float:
    """Where a learned temperature starts."""
    return math.log(cfg.temperature)


def learned(log: Float[Array, ""]) -> Float[Array, ""]:
    """The temperature of a trained logarithm. Past its bounds the gradient goes on: it returns."""
    bounds = map(math.log, TEMPERATURES)
    return jnp.exp(log + jax.lax.stop_gradient(jnp.clip(log, *bounds) - log))


def info_nce(
    query: Float[Array, "B D"],
    positive: Float[Array, "B D"],
    negatives: list[Float[Array, "B D"]],
    valid: Bool[Array, " B"],
    query_id: Int[Array, " B"],
    positive_id: Int[Array, " B"],
    negative_id: Int[Array, "B K"],
    cfg: LossConfig,
    *,
    mesh: Mesh | None = None,
    temperature: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over valid pairs of (L(q -> y) + L(y -> q)) / 2.

    All other valid pairs of the global batch are negatives, with gradients; a query's hard
    negatives are its own. Left out of a pair's sums, in both directions, are

    - pairs that share a content id with it: the same query, the same positive, or a query that is
      the other's positive;
    - hard negatives with the content of the query, of its positive, or of a positive that another
      pair of the batch gives for the same query;
    - duplicates by cosine (`cfg.duplicate_cosine`) and false negatives
      (`cfg.false_negative_margin`).

    Content ids do not depend on dropout, which makes two vectors of one content differ.

    Args:
      query, positive: unit vectors, float32.
      negatives: K arrays of hard negatives, one row a query.
      valid: pairs whose media were readable; the others take no part at all.
      query_id, positive_id, negative_id: content ids (`gve_jax.streams.loader.content_id`).
      mesh: what the rows are split over (data, fsdp); all forms but "plain" need it.
      temperature: in place of `cfg.temperature`.

    Returns the loss and scalars: `accuracy` (the positive scores above all other candidates of its
    query), `positive_similarity`, `negative_similarity` (means of cosines), and with hard negatives
    `duplicate_negatives` (hard negatives a pair that were left out by their content).
    """
    cfg.check(query.shape[-1])
    rows = {
        "query": query,
        "positive": positive,
        "valid": valid,
        "query_id": query_id,
        "positive_id": positive_id,
        "negative_id": negative_id,
        "place": jnp.arange(len(query), dtype=jnp.int32),
    }
    tau = jnp.float32(cfg.temperature if temperature is None else temperature)
    if cfg.form == "plain":
        columns = _block_stats(rows, rows, cfg, tau)
        return _mean(_sums(rows, list(negatives), columns, cfg, tau))

    def local(rows, negatives, tau):
        compare = functools.partial(_block_stats, cfg=cfg, tau=tau)
        if cfg.form == "all_gather":
            everything = jax.tree.map(lambda x: jax.lax.all_gather(x, ROW_AXES, tiled=True), rows)
            columns = compare(rows, everything)
        else:
            columns = _ring(rows, compare)
        return jax.lax.psum(_sums(rows, negatives, columns, cfg, tau), ROW_AXES)

    split = jax.shard_map(local, mesh=mesh, in_specs=(P(ROW_AXES), P(ROW_AXES), P()), out_specs=P())
    return _mean(split(rows, list(negatives), tau))


def _ring(rows: dict, compare) -> dict:
    """`compare(rows, all rows)`, a block of columns at a time, each from the neighbour before."""
    size = jax.lax.axis_size(ROW_AXES)
    onward = [(at, (at + 1) % size) for at in range(size)]

    @jax.checkpoint  # a block's cosines are computed again on the way back
    def turn(carry, _):
        block, found = carry
        block = jax.tree.map(lambda x: jax.lax.ppermute(x, ROW_AXES, onward), block)
        new = compare(rows, block)
        together = {name: _JOIN[name](found[name], new[name]) for name in new}
        return (block, together), None

    return jax.lax.scan(turn, (rows, compare(rows, rows)), None, length=size - 1)[0][1]


# How what is known of some columns joins what is known of others.
_JOIN = {
    "forward": jnp.logaddexp,
    "backward": jnp.logaddexp,
    "best": jnp.maximum,
    "own": jnp.add,
    "other": jnp.add,
    "others": jnp.add,
    "known": jnp.logical_or,
}


def _block_stats(rows: dict, columns: dict, cfg: LossConfig, tau) -> dict[str, Array]:
    """What a block of columns adds to each row: logsumexps of candidates' logits by cut [M, R], the
    best of their cosines, the cosine of the row's own positive by cut (0 if it is in another
    block), sum and number of the negatives' cosines, and which of the row's hard negatives have the
    content of a positive that these columns give for its query, bool [R, K]."""
    query, positive = rows["query"], rows["positive"]
    cosine = _product(query, columns["positive"])
    reverse = _product(positive, columns["query"])
    diagonal = rows["place"][:, None] == columns["place"]
    same_query = rows["query_id"][:, None] == columns["query_id"]
    twins = same_query | (rows["positive_id"][:, None] == columns["positive_id"])
    twins |= rows["query_id"][:, None] == columns["positive_id"]
    twins |= rows["positive_id"][:, None] == columns["query_id"]
    same_query &= columns["valid"]
    known = [
        jnp.any(same_query & (ids[:, None] == columns["positive_id"]), axis=1)
        for ids in rows["negative_id"].T
    ]
    if cfg.duplicate_cosine is not None:
        near = 1 - cfg.duplicate_cosine
        twins |= _product(positive, columns["positive"]) >= near
        twins |= _product(query, columns["query"]) >= near
    negative = ~twins & columns["valid"] & ~diagonal
    forward = backward = negative
    if cfg.false_negative_margin is not None:
        most = jnp.sum(query * positive, axis=-1, keepdims=True) + cfg.false_negative_margin
        forward, backward = negative & (cosine <= most), negative & (reverse <= most)

    sums = {"forward": [], "backward": [], "own": []}
    for cut in _cuts(cfg, query.shape[-1]):
        q, y, q_columns, y_columns = (
            _cut(x, cut) for x in (query, positive, columns["query"], columns["positive"])
        )
        there = cosine if cut is None else _product(q, y_columns)
        back = reverse if cut is None else _product(y, q_columns)
        for name, logits, taken in (("forward", there, forward), ("backward", back, backward)):
            logits = jnp.where(taken | diagonal, logits / tau, _MASKED)
            sums[name].append(jax.nn.logsumexp(logits, axis=1))
        sums["own"].append(jnp.sum(jnp.where(diagonal, there, 0), axis=1))
    counted = forward & rows["valid"][:, None]
    return {name: jnp.stack(values) for name, values in sums.items()} | {
        "best": jax.lax.stop_gradient(jnp.max(jnp.where(forward, cosine, -2), axis=1)),
        "other": jnp.sum(jnp.where(counted, cosine, 0), axis=1),
        "others": jnp.sum(counted, axis=1, dtype=jnp.float32),
        "known": jnp.stack(known, axis=1) if known else jnp.zeros_like(rows["negative_id"], bool),
    }


def _sums(rows: dict, negatives: list, columns: dict, cfg: LossConfig, tau) -> dict[str, Array]:
    """Sums over rows of the losses and of what the scalars are means of."""
    query, positive, valid = rows["query"], rows["positive"], rows["valid"]
    cuts = _cuts(cfg, query.shape[-1])
    weights = jnp.array(cfg.matryoshka_weights or [1.0] * len(cuts), jnp.float32)
    own = jnp.sum(query * positive, axis=-1)
    forward, best = columns["forward"], columns["best"]
    duplicate = columns["known"] | (rows["negative_id"] == rows["query_id"][:, None])
    duplicate |= rows["negative_id"] == rows["positive_id"][:, None]
    for number, negative in enumerate(negatives):
        score = jnp.sum(query * negative, axis=-1)
        taken = ~duplicate[:, number]
        if cfg.duplicate_cosine is not None:
            taken &= jnp.sum(positive * negative, axis=-1) < 1 - cfg.duplicate_cosine
        if cfg.false_negative_margin is not None:
            taken &= score <= own + cfg.false_negative_margin
        scores = [jnp.sum(_cut(query, cut) * _cut(negative, cut), axis=-1) for cut in cuts]
        logits = jnp.where(taken, jnp.stack(scores) / tau, _MASKED)
        forward = jnp.logaddexp(forward, logits)
        best = jnp.maximum(best, jnp.where(taken, score, -2))
    losses = (forward + columns["backward"] - 2 * columns["own"] / tau) / 2
    losses = jnp.tensordot(weights / jnp.sum(weights), losses, 1)
    # Not `own`: a dot product of its own rounds differently, and breaks ties.
    full = columns["own"][0] if cuts[0] is None else own

    def total(values):
        return jnp.sum(jnp.where(valid, values, 0.0))

    return {
        "loss": total(losses),
        "accuracy": total((full > jax.lax.stop_gradient(best)).astype(jnp.float32)),
        "positive_similarity": total(full),
        "pairs": total(1.0),
        "other": total(columns["other"]),
        "others": total(columns["others"]),
        **({"duplicates": total(jnp.sum(duplicate, axis=1))} if negatives else {}),
    }


def _mean(sums: dict) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    pairs, others = jnp.maximum(sums["pairs"], 1), jnp.maximum(sums["others"], 1)
    scalars = {name: sums[name] / pairs for name in ("accuracy", "positive_similarity")}
    if "duplicates" in sums:
        scalars["duplicate_negatives"] = sums["duplicates"] / pairs
    return sums["loss"] / pairs, scalars | {"negative_similarity": sums["other"] / others}


def _cuts(cfg: LossConfig, dim: int) -> list[int | None]:
    """Lengths that vectors are cut to; None: not at all."""
    return [None if cut == dim else cut for cut in cfg.matryoshka] or [None]


def _cut(x: Float[Array, "R D"], cut: int | None) -> Float[Array, "R C"]:
    return x if cut is None else unit_rows(x[:, :cut])


def _product(a: Float[Array, "R D"], b: Float[Array, "C D"]) -> Float[Array, "R C"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
