"""The paper's symmetric InfoNCE (arXiv 2510.27571, equation 1) over the global batch, in three
equivalent forms, which differ in the layout of the [B, B] matrix of cosines."""

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
TEMPERATURES = (0.01, 1.0)  # range of a learned temperature; the lower bound is CLIP's
_MASKED = -1e30  # finite, so that the gradient of a block without candidates is zero, not NaN


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """`config.loss`.

    The vectors of an untrained model may all be within `duplicate_cosine` of each other, which
    leaves no negatives: use None then. 1e-5 and a margin of 0.1 are defaults of classes that the
    authors built on.
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
        """Raises ValueError if vectors have fewer dimensions than `matryoshka` requires."""
        if self.matryoshka and max(self.matryoshka) > dim:
            raise ValueError(
                f"matryoshka {max(self.matryoshka)} exceeds the {dim} dimensions of the vectors"
            )


def log_temperature(cfg: LossConfig) -> float:
    """Initial value of the trained logarithm of a learned temperature."""
    return math.log(cfg.temperature)


def learned(log: Float[Array, ""]) -> Float[Array, ""]:
    """The temperature of a trained logarithm, clipped in the forward pass only (straight-through),
    so that it can return to the range."""
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

    All other valid pairs of the global batch are negatives, with gradients; hard negatives count
    for their query only. Excluded from the sums of a pair, in both directions, are

    - pairs that share a content id with it: the same query, the same positive, or a query that is
      the positive of the other pair;
    - hard negatives with the content of the query, of its positive, or of the positive of another
      pair of the batch with the same query;
    - duplicates by cosine (`cfg.duplicate_cosine`) and false negatives
      (`cfg.false_negative_margin`).

    Content ids do not depend on dropout, which makes two vectors of one content differ.

    Args:
      query, positive: unit vectors, float32.
      negatives: K arrays of hard negatives, one row per query.
      valid: pairs whose media were readable; the others are ignored.
      query_id, positive_id, negative_id: content ids (`gve_jax.streams.loader.content_id`).
      mesh: mesh over which the rows are sharded (data, fsdp); all forms except "plain" need it.
      temperature: overrides `cfg.temperature`.

    Returns:
      The loss and scalars: `accuracy` (the positive scores above all other candidates of its
      query), `positive_similarity` and `negative_similarity` (mean cosines), and with hard
      negatives `duplicate_negatives` (hard negatives per pair excluded by their content).
    """
    cfg.check(query.shape[-1])
    rows = {
        "query": query,
        "positive": positive,
        "valid": valid,
        "query_id": query_id,
        "positive_id": positive_id,
        "negative_id": negative_id,
        "index": jnp.arange(len(query), dtype=jnp.int32),
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
    """`compare(rows, all rows)`, one block of columns at a time, passed around the ring."""
    size = jax.lax.axis_size(ROW_AXES)
    to_next = [(device, (device + 1) % size) for device in range(size)]

    @jax.checkpoint  # the cosines of a block are recomputed in the backward pass
    def turn(carry, _):
        block, stats = carry
        block = jax.tree.map(lambda x: jax.lax.ppermute(x, ROW_AXES, to_next), block)
        new = compare(rows, block)
        return (block, {name: _REDUCE[name](stats[name], new[name]) for name in new}), None

    return jax.lax.scan(turn, (rows, compare(rows, rows)), None, length=size - 1)[0][1]


# Reductions of `_block_stats` over blocks.
_REDUCE = {
    "forward": jnp.logaddexp,
    "backward": jnp.logaddexp,
    "hardest": jnp.maximum,
    "positive": jnp.add,
    "negative_sum": jnp.add,
    "negative_count": jnp.add,
    "is_positive": jnp.logical_or,
}


def _block_stats(rows: dict, columns: dict, cfg: LossConfig, tau) -> dict[str, Array]:
    """Statistics of a block of columns for each row.

    Returns:
      forward, backward: logsumexp of the candidates' logits, [cuts, R].
      hardest: largest cosine of a candidate, [R].
      positive: cosine of the row's positive, [cuts, R]; 0 if it is in another block.
      negative_sum, negative_count: sum and number of the negatives' cosines, [R].
      is_positive: bool [R, K], whether a hard negative has the content of a positive that a pair of
        the block has for the row's query.
    """
    query, positive = rows["query"], rows["positive"]
    cosine = _product(query, columns["positive"])
    reverse = _product(positive, columns["query"])
    diagonal = rows["index"][:, None] == columns["index"]
    same_query = rows["query_id"][:, None] == columns["query_id"]
    duplicate = same_query | (rows["positive_id"][:, None] == columns["positive_id"])
    duplicate |= rows["query_id"][:, None] == columns["positive_id"]
    duplicate |= rows["positive_id"][:, None] == columns["query_id"]
    same_query &= columns["valid"]
    is_positive = [
        jnp.any(same_query & (ids[:, None] == columns["positive_id"]), axis=1)
        for ids in rows["negative_id"].T
    ]
    if cfg.duplicate_cosine is not None:
        limit = 1 - cfg.duplicate_cosine
        duplicate |= _product(positive, columns["positive"]) >= limit
        duplicate |= _product(query, columns["query"]) >= limit
    negative = ~duplicate & columns["valid"] & ~diagonal
    forward = backward = negative
    if cfg.false_negative_margin is not None:
        limit = jnp.sum(query * positive, axis=-1, keepdims=True) + cfg.false_negative_margin
        forward, backward = negative & (cosine <= limit), negative & (reverse <= limit)

    sums = {"forward": [], "backward": [], "positive": []}
    for cut in _cuts(cfg, query.shape[-1]):
        q, y, q_columns, y_columns = (
            _cut(x, cut) for x in (query, positive, columns["query"], columns["positive"])
        )
        cut_cosine = cosine if cut is None else _product(q, y_columns)
        cut_reverse = reverse if cut is None else _product(y, q_columns)
        for name, scores, candidate in (
            ("forward", cut_cosine, forward),
            ("backward", cut_reverse, backward),
        ):
            logits = jnp.where(candidate | diagonal, scores / tau, _MASKED)
            sums[name].append(jax.nn.logsumexp(logits, axis=1))
        sums["positive"].append(jnp.sum(jnp.where(diagonal, cut_cosine, 0), axis=1))
    counted = forward & rows["valid"][:, None]
    return {name: jnp.stack(values) for name, values in sums.items()} | {
        "hardest": jax.lax.stop_gradient(jnp.max(jnp.where(forward, cosine, -2), axis=1)),
        "negative_sum": jnp.sum(jnp.where(counted, cosine, 0), axis=1),
        "negative_count": jnp.sum(counted, axis=1, dtype=jnp.float32),
        "is_positive": (
            jnp.stack(is_positive, axis=1)
            if is_positive
            else jnp.zeros_like(rows["negative_id"], bool)
        ),
    }


def _sums(rows: dict, negatives: list, columns: dict, cfg: LossConfig, tau) -> dict[str, Array]:
    """Sums over rows of the losses and of the terms of the scalars."""
    query, positive, valid = rows["query"], rows["positive"], rows["valid"]
    cuts = _cuts(cfg, query.shape[-1])
    weights = jnp.array(cfg.matryoshka_weights or [1.0] * len(cuts), jnp.float32)
    score_of_positive = jnp.sum(query * positive, axis=-1)
    forward, hardest = columns["forward"], columns["hardest"]
    duplicate = columns["is_positive"] | (rows["negative_id"] == rows["query_id"][:, None])
    duplicate |= rows["negative_id"] == rows["positive_id"][:, None]
    for number, negative in enumerate(negatives):
        score = jnp.sum(query * negative, axis=-1)
        candidate = ~duplicate[:, number]
        if cfg.duplicate_cosine is not None:
            candidate &= jnp.sum(positive * negative, axis=-1) < 1 - cfg.duplicate_cosine
        if cfg.false_negative_margin is not None:
            candidate &= score <= score_of_positive + cfg.false_negative_margin
        scores = [jnp.sum(_cut(query, cut) * _cut(negative, cut), axis=-1) for cut in cuts]
        logits = jnp.where(candidate, jnp.stack(scores) / tau, _MASKED)
        forward = jnp.logaddexp(forward, logits)
        hardest = jnp.maximum(hardest, jnp.where(candidate, score, -2))
    losses = (forward + columns["backward"] - 2 * columns["positive"] / tau) / 2
    losses = jnp.tensordot(weights / jnp.sum(weights), losses, 1)
    # From the same product as the candidates: a separate dot product rounds differently, which
    # breaks ties.
    full = columns["positive"][0] if cuts[0] is None else score_of_positive

    def total(values):
        return jnp.sum(jnp.where(valid, values, 0.0))

    return {
        "loss": total(losses),
        "accuracy": total((full > jax.lax.stop_gradient(hardest)).astype(jnp.float32)),
        "positive_similarity": total(full),
        "pairs": total(1.0),
        "negative_sum": total(columns["negative_sum"]),
        "negative_count": total(columns["negative_count"]),
        **({"duplicates": total(jnp.sum(duplicate, axis=1))} if negatives else {}),
    }


def _mean(sums: dict) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    pairs = jnp.maximum(sums["pairs"], 1)
    negatives = jnp.maximum(sums["negative_count"], 1)
    scalars = {name: sums[name] / pairs for name in ("accuracy", "positive_similarity")}
    if "duplicates" in sums:
        scalars["duplicate_negatives"] = sums["duplicates"] / pairs
    return sums["loss"] / pairs, scalars | {"negative_similarity": sums["negative_sum"] / negatives}


def _cuts(cfg: LossConfig, dim: int) -> list[int | None]:
    """Lengths of the truncated vectors; None for full vectors."""
    return [None if cut == dim else cut for cut in cfg.matryoshka] or [None]


def _cut(x: Float[Array, "R D"], cut: int | None) -> Float[Array, "R cut"]:
    return x if cut is None else unit_rows(x[:, :cut])


def _product(a: Float[Array, "R D"], b: Float[Array, "C D"]) -> Float[Array, "R C"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
