"""From the unit gradients of an estimator to what is said of it, each with an interval.

Two ways lead there: the jackknife, which leaves out one unit at a time and is in closed form, and the
bootstrap, which draws whole units with replacement. What compares two estimators is paired in both:
the same units are left out, or drawn, for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats import moments
from rlvar.stats.batch_noise import share_along
from rlvar.stats.estimate import Estimate, Moment
from rlvar.stats.intervals import (
    alignment,
    bca,
    bootstrap_t,
    correlation,
    fieller,
    jackknife,
    noise_scale_ratio,
    reciprocal,
    signal_interval,
)
from rlvar.stats.moments import Products, Sample
from rlvar.stats.resampling import Bootstrap, Resampled, draws, log_stderr


class Inference(NamedTuple):
    """What is said of an estimator, beside a reference; and its variance with each unit left out."""

    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    largest_share: float  # of all squares, what the largest unit carries
    top_share: float  # and the largest 1 %
    identical: bool
    variances: Moment
    dimension: float  # effective one of the noise
    along: float  # share of the noise that lies along the mean


@quiet
def quotient(above: Moment, below: Moment) -> Moment:
    """Divide two quantities of the same units; 0 / 0 is NaN."""
    value, left_out = (np.asarray(a) / b for a, b in zip(above, below, strict=True))
    return Moment(float(value), left_out)


@quiet
def signal_of(p: Products, ddof: int = 1, *, grouped: bool = False) -> Moment:
    """Return |mean|^2 less ddof V / U, with V = sum |y|^2 / (U - ddof); of groups, sum |y|^2 / (U - 1)."""
    signal = moments.signal(p)
    if ddof == 1:
        return signal
    u, variance = len(p.diagonal), moments.variance(p)

    def extra(variance: Any, u: int) -> Any:
        taken = ddof if grouped else ddof * (u - 1) / (u - ddof)
        return (1 - taken) * variance / u

    left_out = signal.left_out
    if len(left_out):
        left_out = left_out + extra(variance.left_out, u - 1)
    return Moment(signal.value + extra(variance.value, u), left_out)


def signal_and_noise_scale(
    signal: Moment, variance: Moment, total: Moment, dimension: int, confidence: float
) -> tuple[Estimate, Estimate]:
    """Return the signal of units of this variance, and `total` over it; intervals only if `total` has one."""
    if not len(total.left_out):
        signal = Moment(signal.value, total.left_out)
    found = signal_interval(signal, variance, dimension, confidence)
    whole = jackknife(*total, confidence, positive=True)
    return found, fieller(whole, found, correlation(total.left_out, signal.left_out))


class _Pair(NamedTuple):
    """A sample beside the reference, with their moments."""

    own: Products
    beside: Products
    variance: Moment
    signal: Moment
    cross: Moment


@quiet
def infer(
    samples: Sequence[Sample],
    reference: int,
    confidence: float,
    bootstrap: Bootstrap | None = None,
    threads: int | None = None,
) -> list[Inference]:
    """Compare samples of gradients of the same units with one of them, number `reference`."""
    products = moments.products(samples, reference, gram=bootstrap is not None, threads=threads)
    pairs = [
        _Pair(own, beside, moments.variance(own), moments.signal(own), moments.signal(beside))
        for own, beside in products
    ]
    if bootstrap is None:
        dimension = samples[reference].dimension
        found = [_jackknifed(pair, pairs[reference], dimension, confidence) for pair in pairs]
    else:
        found = _bootstrapped(pairs, reference, confidence, bootstrap, threads)
    # What is compared with itself is the same, resolved or not.
    same = Estimate(1.0, 0.0, 1.0, 1.0, confidence)
    return [
        each._replace(ratio=same, noise_scale_ratio=same, alignment=same)
        if each.identical and each.variance.value > 0 and len(pairs[reference].own.diagonal) > 2
        else each
        for each in found
    ]


def _with_signals(
    pair: _Pair,
    base: _Pair,
    signals: tuple[Estimate, Estimate],
    drawn: tuple[Double | None, Double | None] = (None, None),
) -> dict[str, Any]:
    """Return what rests on the two signals, from resampled values if drawn, and what has no interval."""
    resolved = all(each.resolved for each in signals)
    options: dict[str, Any] = {"resolved": resolved, "confidence": signals[0].confidence}
    scale_ratio, cosine = drawn
    dimension = moments.dimension(pair.own)
    return {
        "dimension": dimension,
        "along": share_along(pair.own, pair.variance.value, pair.signal.value, dimension),
        "noise_scale_ratio": noise_scale_ratio(
            pair.variance, pair.signal, base.variance, base.signal, resampled=scale_ratio, **options
        ),
        "alignment": alignment(pair.cross, pair.signal, base.signal, resampled=cosine, **options),
        "largest_share": moments.largest_share(pair.own),
        "top_share": moments.largest_share(pair.own, moments.TOP),
        "identical": pair.beside.identical,
        "variances": pair.variance,
    }


def _jackknifed(pair: _Pair, base: _Pair, dimension: int, confidence: float) -> Inference:
    (signal, noise_scale), (base_signal, _) = (
        signal_and_noise_scale(each.signal, each.variance, each.variance, dimension, confidence)
        for each in (pair, base)
    )
    return Inference(
        variance=jackknife(*pair.variance, confidence, positive=True),
        ratio=jackknife(*quotient(pair.variance, base.variance), confidence, positive=True),
        signal=signal,
        noise_scale=noise_scale,
        **_with_signals(pair, base, (signal, base_signal)),
    )


def _bootstrapped(
    pairs: Sequence[_Pair], reference: int, confidence: float, bootstrap: Bootstrap, threads: int | None
) -> list[Inference]:
    base, u = pairs[reference], len(pairs[reference].own.diagonal)
    drawn = _draw(pairs, reference, bootstrap, threads)
    base_variance, base_signal = drawn.variance[reference], drawn.signal[reference]
    signals = [bca(own.signal, x, confidence) for own, x in zip(pairs, drawn.signal, strict=True)]
    results = []
    for i, own in enumerate(pairs):
        ratio = quotient(own.variance, base.variance)
        # Resampled variances estimate V (U - 1) / U. A signal at or below 0 is an infinite noise scale.
        inverse = drawn.signal[i] / (drawn.variance[i] * (u / (u - 1)))
        variance_ratio = drawn.variance[i] / base_variance
        scale_ratio = variance_ratio * (base_signal / drawn.signal[i])
        scale_ratio = np.where(drawn.signal[i] > 0, np.maximum(scale_ratio, 0.0), np.inf)
        cosine = drawn.cross[i] / base_signal / np.sqrt(drawn.signal[i] / base_signal)
        cosine = np.where((drawn.signal[i] > 0) & (base_signal > 0), cosine, -1.0)
        plug_in = own.variance.value * (u - 1) / u
        results.append(
            Inference(
                variance=bootstrap_t(own.variance, plug_in, drawn.variance[i], drawn.stderr[i], confidence),
                ratio=bootstrap_t(ratio, ratio.value, variance_ratio, drawn.ratio_stderr[i], confidence),
                signal=signals[i],
                noise_scale=reciprocal(
                    bca(quotient(own.signal, own.variance), inverse, confidence), signals[i]
                ),
                **_with_signals(own, base, (signals[i], signals[reference]), (scale_ratio, cosine)),
            )
        )
    return results


class _Drawn(NamedTuple):
    """What the resamples of E samples give, (E, B) each."""

    variance: Double
    signal: Double
    cross: Double  # with the reference
    stderr: Double  # of log V
    ratio_stderr: Double  # of log (V / V_0)


def _draw(pairs: Sequence[_Pair], reference: int, bootstrap: Bootstrap, threads: int | None) -> _Drawn:
    """Resample all samples with the same units drawn, a few resamples at a time."""
    base = pairs[reference].own
    result = _Drawn(*np.empty((5, len(pairs), bootstrap.resamples)))
    for part, counts in draws(len(base.diagonal), bootstrap):
        of_base = Resampled(base, counts, threads)
        for i, pair in enumerate(pairs):
            own = of_base if pair.own is base else Resampled(pair.own, counts, threads)
            both = own if own is of_base else Resampled(pair.beside, counts, threads)
            result.variance[i, part] = own.variance
            result.signal[i, part] = own.signal
            result.cross[i, part] = both.signal
            # What does not vary in a resample has no logarithm.
            result.stderr[i, part] = log_stderr(counts, own.influence)
            result.ratio_stderr[i, part] = log_stderr(counts, own.influence - of_base.influence)
    return result
