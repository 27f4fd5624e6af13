"""Estimators of the policy gradient side by side, on the same rollouts.

An estimator is a choice of weights: g[n] = sum_t w[n,t] S[n,t]. Everything here is computed from
these gradients (N, D), which one pass over the scores gives for all estimators at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Aggregation, Importance
from rlvar.analysis.blocks import Metric
from rlvar.analysis.comparison import Comparison
from rlvar.analysis.ratio_bias import (
    bias_of_ratios,
    lacking,
    lacking_weights,
    measurable,
    small,
    surplus_of,
)
from rlvar.analysis.reward_scale import reward_scaled
from rlvar.analysis.sampling import FILTER_PROOF, filtered_groups
from rlvar.rollouts import Rollouts
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate
from rlvar.stats.inference import Inference, infer
from rlvar.stats.resampling import Bootstrap, drawn
from rlvar.terms.passes import Gradients
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike, default_estimators, resolve
from rlvar.weights.refit import refit_of
from rlvar.weights.source import estimator_of


def compare(
    rollouts: Rollouts,
    estimators: EstimatorLike | Sequence[EstimatorLike] | None = None,
    *,
    reference: str | Estimator | None = None,
    importance: Importance | Sequence[Importance] = "none",
    truncate: float | None = None,
    clip: float | tuple[float, float] | None = None,
    aggregation: Aggregation = "sum",
    scale: ArrayLike | None = None,
    blocks: Sequence[str | int] | NDArray[Any] | None = None,
    interval: Literal["jackknife"] | Bootstrap = "jackknife",
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> Comparison:
    r"""Compare estimators of the policy gradient on the same rollouts.

    Parameters
    ----------
    rollouts : Rollouts
        Without groups they are independent; with groups only the groups are.
    estimators : sequence, optional
        Names out of `estimators`, an `Estimator` with parameters (``rlvar.estimator("gae", lam=0.9)``), or
        pairs ``("mine", weights)`` with weights of your own, (N,) or (N, T), or a function from the rollouts
        to them; all of them mix. By default what the rollouts can tell apart: "single"; "multi" with rewards
        of steps; "rloo", "grpo" and "dr-grpo" with groups of two or more; else "single-mean" with one reward.
    reference : str or Estimator, optional
        The estimator whose variance is the denominator of each ratio. By default "rloo" if it is compared,
        else "single"; if that does not vary, as "rloo" where each group has equal returns, the first that
        does, of the unbiased ones if there are some.
    importance : {"none", "token", "sequence", "geometric"} or a sequence of them, default "none"
        Ratios that multiply the weights, as in `importance_ratios`, for rollouts with `logp` and
        `behavior_logp`. With a sequence there is a row for each estimator and ratio, named as in
        "multi:token"; the reference is then such a name, or an estimator: with the first ratio that
        leaves its mean alone, if any does.
    truncate : float, optional
        Largest importance ratio.
    clip : float or (float, float), optional
        PPO's clip: how far below and above 1 a ratio may lie, one number for both. A step has no gradient
        where its weight is positive and its ratio above 1 + clip[1], or negative and below 1 - clip[0]. With
        ``importance="token"`` it is that of PPO and GRPO, with "geometric" and the aggregation
        "sequence-mean" that of GSPO. Each row has its share of clipped steps; a clip biases the mean.
    aggregation : {"sum", "sequence-mean", "token-mean"}, default "sum"
        How gradients are divided by lengths. "sum": not at all, the mean over rollouts of their sums.
        "sequence-mean": each rollout's sum divided by its number of live steps. "token-mean": the sum over
        the batch divided by its number of live steps.
    scale : array_like, shape (D,), optional
        Factor of each coordinate's gradient before moments are taken, as the optimiser applies it: for Adam
        ``1 / (np.sqrt(v) + eps)`` with its second moments v of a step before these rollouts. The coordinates
        of the scores must then be those of the optimiser, not a sketch of them.
    blocks : sequence of str or int, shape (D,), optional
        The block (layer, module) of each coordinate: every row then also has the numbers of each block.
    interval : "jackknife" or Bootstrap, default "jackknife"
        Where the intervals come from: ``rlvar.Bootstrap(2000, seed=1)`` draws whole units.
    confidence : float, default 0.95
        Nominal coverage of the intervals.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError, TypeError
        For an unknown estimator or one that needs what the rollouts lack, weights of a wrong
        shape or not finite, a function of the caller's that raises (the message names the estimator, and the
        error is its cause), scores that are not finite, fewer than two groups, ratios of rollouts without
        `logp` and `behavior_logp` or beyond the range of float64, or a token mean without tokens.

    Warns
    -----
    UserWarning
        For fewer than ten units.

    Notes
    -----
    The unit u is the rollout or, with groups, the group, which contains the dependence of its rollouts.
    The batch's gradient is a ratio of sums, :math:`m = \sum_u g_u / \sum_u L_u`, with the gradients of each
    unit summed and :math:`L_u` its number of rollouts, or of tokens. By the delta method its variance is that
    of the mean over U units of :math:`y_u = (g_u - L_u m) / \bar L`, and

    .. math::

        \hat V = \frac{1}{U - 1} \sum_u |y_u|^2, \qquad
        \widehat{|E m|^2} = |m|^2 - \hat V / U .

    Intervals are the jackknife's, paired and on the log scale for ratios, a test's for the signal, Fieller's
    for the noise scale, or the bootstrap's: O(resamples U min(U, D)) for each estimator.
    ``docs/mathematics.md`` says why, and which estimators and aggregations leave the mean alone,
    ``docs/promises.md`` how often they cover. Baselines that the estimators fit, and means over the whole
    batch, tie all units together; that effect, of order 1/U, is left out.

    Examples
    --------
    >>> import rlvar
    >>> result = rlvar.compare(rlvar.datasets.cartpole())
    >>> result["multi"].ratio.high < 1  # reward-to-go is quieter, beyond doubt
    True
    """
    kinds = _check.names("importance", importance)
    batches = {
        kind: Batch.of(
            rollouts,
            importance=kind,  # type: ignore[arg-type]
            truncate=None if kind == "none" and len(kinds) > 1 else truncate,
            clip=None if kind == "none" and len(kinds) > 1 else clip,
            aggregation=aggregation,
            threads=num_threads,
        )
        for kind in kinds
    }
    metric = Metric.of(scale, blocks, batches[kinds[0]].rollouts.shape[2])
    asked = default_estimators(batches[kinds[0]]) if estimators is None else resolve(estimators)
    result = compare_batches(batches, asked, reference, aggregation, interval, confidence, metric)
    _check.warn_few(result.units, result.unit)
    return result


@_check.quiet
def compare_batches(
    batches: Mapping[str, Batch],
    estimators: Sequence[Estimator],
    reference: str | Estimator | None,
    aggregation: Aggregation,
    interval: Literal["jackknife"] | Bootstrap,
    confidence: float,
    metric: Metric | None = None,
) -> Comparison:
    """Compare estimators on batches of the same rollouts, one for each kind of importance ratio."""
    kinds, any_batch = list(batches), next(iter(batches.values()))
    rollouts, level = any_batch.rollouts, _check.confidence(confidence)
    bootstrap = drawn(interval)
    units = _check.units(rollouts.groups, len(rollouts))
    # Beside an estimator whose mean is biased by its ratios the others would look at fault.
    first = next((kind for kind in kinds if batches[kind].unbiased), kinds[0])
    found_by_itself = reference is None
    if reference is None:
        reference = "rloo" if "rloo" in (each.name for each in estimators) else "single"
    asked, label, rows = _rows(estimators, kinds, reference, first)
    gradients: dict[str, Gradients] = {}
    lacks: dict[str, Gradients] = {}  # what the ratios of whole sequences would add
    for kind, batch in batches.items():
        of_kind = {row: each for row, (each, own) in rows.items() if own == kind}
        weights = {each.name: batch.weights(each) for each in of_kind.values()}
        # With a ratio for each step, what the ratios of whole sequences would add takes separate gradients.
        by_step = measurable(batch) and kind == "token"
        more = {f"{name} lacks": lacking_weights(batch, w) for name, w in weights.items() if by_step}
        found_gradients = batch.gradients({**weights, **more})
        gradients.update(zip(of_kind, found_gradients, strict=False))
        if by_step:
            lacks.update(zip(of_kind, found_gradients[len(weights) :], strict=True))
        elif measurable(batch):
            lacks.update({row: lacking(batch, gradients[row]) for row in of_kind})
    # The batch's gradient is made of sums over units, to be divided by rollouts or tokens.
    sizes = units.sizes.astype(np.float64)
    if aggregation == "token-mean":
        sizes = units.sums(rollouts.token_counts.astype(np.float64))
        if not sizes.any():
            raise ValueError("aggregation='token-mean' needs a live step, and these rollouts have none")
    summed = units if len(units) < len(rollouts) else None
    metric = Metric() if metric is None else metric
    samples = []
    counts = rollouts.token_counts if aggregation == "token-mean" else np.ones(len(rollouts))
    biases: dict[str, Estimate] = {}
    for row, g in gradients.items():
        each, kind = rows[row]
        refit = None if g.constant is None else refit_of(batches[kind], each, units)
        spread = batches[kind].spread(each)
        if spread is not None and metric.scale is not None:
            raise ValueError(f"scale does not go with {each.name!r}, fitted to batches: leave one out")
        sample = metric.sample(g, sizes, summed, refit)
        samples.append(sample if spread is None else replace(sample, added=units.sums(spread)))
        if row in lacks:
            surplus = units.sums(surplus_of(batches[kind]) * counts)
            lacking_sample = metric.sample(lacks[row], sizes, summed)
            biases[row] = bias_of_ratios(lacking_sample, samples[-1], surplus, level, any_batch.threads)
    unbiased = {
        row: None
        if each.unbiased is None
        else each.unbiased and (batches[kind].unbiased or small(biases.get(row)))
        for row, (each, kind) in rows.items()
    }
    if filtered_groups(any_batch):  # what is common to groups is then in the mean
        kept = {row: each.base in FILTER_PROOF for row, (each, _) in rows.items()}
        unbiased = {row: known and kept[row] for row, known in unbiased.items()}
    # Unbiased estimators with the same importance ratios have one mean.
    classes = [rows[row][1] if unbiased[row] else None for row in gradients]

    def inferred(samples: list[moments.Sample]) -> list[Inference]:
        number = list(gradients).index(label)
        return infer(samples, number, level, bootstrap, any_batch.threads, classes, rollouts.sketched)

    found = dict(zip(gradients, inferred(samples), strict=True))
    if found_by_itself and not found[label].variance.value > 0:
        varying = [row for row in asked if found[row].variance.value > 0]
        if varying:
            label = next((row for row in varying if unbiased[row]), varying[0])
            found = dict(zip(gradients, inferred(samples), strict=True))
    if metric.scale is not None and not all(np.isfinite(each.variance.value) for each in found.values()):
        raise ValueError("scale makes squares of the gradients exceed the range of float64; lower it")
    blocks = metric.by_block(gradients, sizes, summed, inferred)
    others = {}
    for row in asked:
        each, kind = rows[row]
        scaled = None
        if unbiased[label] and not unbiased[row] and found[row].factor is None:
            variances = found[row].variances, found[label].variances
            scaled = reward_scaled(batches[kind], each, found[row].ratio, *variances)
        others[row] = {
            "importance": batches[kind].importance,
            "bias": biases.get(row),
            "clipped": batches[kind].clipped(each),
            "blocks": blocks[row],
            "reward_scaled_ratio": None if scaled is None else scaled.ratio,
            "reward_scaled_bracket": None if scaled is None else scaled.bracket,
        }
    return Comparison.of(
        found,
        asked,
        unbiased,
        others,
        reference=label,
        units=len(units),
        unit="rollout" if rollouts.groups is None else "group",
        aggregation=aggregation,
        interval="jackknife" if bootstrap is None else "bootstrap",
        scaled=metric.scale is not None,
        scores_of=rollouts.scores_of,
        of_sequences=any_batch.of_sequences,
        crossed=True,
    )


def _rows(
    estimators: Sequence[Estimator],
    kinds: Sequence[str],
    reference: str | Estimator,
    first: str,
) -> tuple[list[str], str, dict[str, tuple[Estimator, str]]]:
    """Return the labels asked for, the reference's, and what they stand for: estimator, kind of ratio.

    A label is the estimator's name alone where there is one kind. The reference may be a label, or an
    estimator: then with the kind `first`.
    """

    def label(name: str, kind: str) -> str:
        return name if len(kinds) == 1 else f"{name}:{kind}"

    rows = {label(each.name, kind): (each, kind) for each in estimators for kind in kinds}
    if isinstance(reference, str) and reference in rows:
        return list(rows), reference, rows
    named = {each.name: each for each in estimators}
    other, kind = None, ""
    if isinstance(reference, str):
        name, _, kind = reference.partition(":")
        other, reference = named.get(reference, named.get(name)), name
    other = estimator_of(reference, "reference") if other is None else other
    kind = kind if kind in kinds else first
    return list(rows), label(other.name, kind), {**rows, label(other.name, kind): (other, kind)}
