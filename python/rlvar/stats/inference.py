"""From the unit gradients of an estimator to what is said of it, each with an interval.

Two ways lead there: the jackknife, which leaves out one unit at a time and is in closed form, and the
bootstrap, which draws whole units with replacement. What compares two estimators is paired in both:
the same units are left out, or drawn, for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlvar._types import Double
from rlvar.stats import moments as units
from rlvar.stats import resampling
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
from rlvar.stats.moments import Sample


class Inference(NamedTuple):
    """What is said of an estimator, beside a reference; and its variance with each unit left out."""

    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    identical: bool
    variances: Moment


class Moments(NamedTuple):
    """Moments of one sample of unit gradients."""

    variance: Moment
    signal: Moment


class Bootstrap(NamedTuple):
    """How often whole units are drawn with replacement, and the seed of it."""

    resamples: int = 2000
    seed: int = 0


def moments(sample: Sample) -> Moments:
    """Return variance and signal, each with one unit left out."""
    return Moments(units.variance(sample), units.signal(sample))


def quotient(above: Moment, below: Moment) -> Moment:
    """Divide two quantities of the same units; 0 / 0 is NaN."""
    with np.errstate(all="ignore"):
        value, left_out = (np.asarray(a) / b for a, b in zip(above, below, strict=True))
    return Moment(float(value), left_out)


def infer(
    samples: Sequence[Sample], reference: int, confidence: float, bootstrap: Bootstrap | None = None
) -> list[Inference]:
    """Compare samples of gradients of the same units with one of them, number `reference`."""
    all_moments = [moments(sample) for sample in samples]
    if bootstrap is None:
        found = _jackknifed(samples, all_moments, reference, confidence)
    else:
        found = _bootstrapped(samples, all_moments, reference, confidence, bootstrap)
    # What is compared with itself is the same, resolved or not.
    same = Estimate(1.0, 0.0, 1.0, 1.0, confidence)
    return [
        each._replace(ratio=same, noise_scale_ratio=same, alignment=same)
        if each.identical and each.variance.value > 0 and len(samples[reference].sizes) > 2
        else each
        for each in found
    ]


def _beside(
    samples: Sequence[Sample],
    all_moments: Sequence[Moments],
    i: int,
    reference: int,
    signals: Sequence[Estimate],
    drawn: tuple[Double | None, Double | None] = (None, None),
) -> dict[str, Any]:
    """Return what rests on the signals of sample i and the reference; from resampled values if drawn."""
    (sample, own), (other, base) = ((samples[k], all_moments[k]) for k in (i, reference))
    options: dict[str, Any] = {
        "resolved": signals[i].low > 0 and signals[reference].low > 0,
        "confidence": signals[i].confidence,
    }
    scale_ratio, cosine = drawn
    return {
        "noise_scale_ratio": noise_scale_ratio(
            own.variance, own.signal, base.variance, base.signal, resampled=scale_ratio, **options
        ),
        "alignment": alignment(
            units.cross_signal(sample, other), own.signal, base.signal, resampled=cosine, **options
        ),
        "identical": np.array_equal(sample.mean, other.mean)
        and np.array_equal(sample.deviations, other.deviations),
        "variances": own.variance,
    }


def _jackknifed(
    samples: Sequence[Sample], all_moments: Sequence[Moments], reference: int, confidence: float
) -> list[Inference]:
    base = all_moments[reference]
    dimension = len(samples[reference].mean)
    signals = [signal_interval(own.signal, own.variance, dimension, confidence) for own in all_moments]
    results = []
    for i, own in enumerate(all_moments):
        variance = jackknife(*own.variance, confidence, positive=True)
        correlated = 0.0
        if len(own.variance.left_out) >= 2:
            correlated = correlation(own.variance.left_out, own.signal.left_out)
        results.append(
            Inference(
                variance=variance,
                ratio=jackknife(*quotient(own.variance, base.variance), confidence, positive=True),
                signal=signals[i],
                noise_scale=fieller(variance, signals[i], correlated),
                **_beside(samples, all_moments, i, reference, signals),
            )
        )
    return results


def _bootstrapped(
    samples: Sequence[Sample],
    all_moments: Sequence[Moments],
    reference: int,
    confidence: float,
    bootstrap: Bootstrap,
) -> list[Inference]:
    base, u = all_moments[reference], len(samples[reference].sizes)
    drawn = _draw(samples, reference, bootstrap)
    base_variance, base_signal = drawn.variance[reference], drawn.signal[reference]
    signals = [bca(own.signal, x, confidence) for own, x in zip(all_moments, drawn.signal, strict=True)]
    results = []
    for i, own in enumerate(all_moments):
        ratio = quotient(own.variance, base.variance)
        with np.errstate(all="ignore"):
            # Resampled variances estimate V (U - 1) / U. A signal at or below 0 is an infinite noise scale.
            inverse = drawn.signal[i] / (drawn.variance[i] * (u / (u - 1)))
            variance_ratio = drawn.variance[i] / base_variance
            scale_ratio = variance_ratio * (base_signal / drawn.signal[i])
            scale_ratio = np.where(drawn.signal[i] > 0, np.maximum(scale_ratio, 0.0), np.inf)
            cosine = drawn.cross[i] / base_signal / np.sqrt(drawn.signal[i] / base_signal)
            cosine = np.where((drawn.signal[i] > 0) & (base_signal > 0), cosine, -1.0)
        results.append(
            Inference(
                variance=bootstrap_t(
                    own.variance,
                    own.variance.value * (u - 1) / u,
                    drawn.variance[i],
                    drawn.stderr[i],
                    confidence,
                ),
                ratio=bootstrap_t(ratio, ratio.value, variance_ratio, drawn.ratio_stderr[i], confidence),
                signal=signals[i],
                noise_scale=reciprocal(
                    bca(quotient(own.signal, own.variance), inverse, confidence), signals[i]
                ),
                **_beside(samples, all_moments, i, reference, signals, (scale_ratio, cosine)),
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


def _draw(samples: Sequence[Sample], reference: int, bootstrap: Bootstrap) -> _Drawn:
    """Resample all samples with the same units drawn, a few resamples at a time."""
    base, b = samples[reference], bootstrap.resamples
    result = _Drawn(*np.empty((5, len(samples), b)))
    for part, counts in resampling.draws(len(base.sizes), b, bootstrap.seed, width=len(base.mean)):
        other = resampling.resample(base, counts)
        base_influence = resampling.influence(other)
        for i, sample in enumerate(samples):
            own = resampling.resample(sample, counts)
            influence = resampling.influence(own)
            result.variance[i, part] = resampling.resampled_variance(own)
            result.signal[i, part] = resampling.resampled_cross_signal(own, own)
            result.cross[i, part] = resampling.resampled_cross_signal(own, other)
            with np.errstate(all="ignore"):  # what does not vary in a resample has no logarithm
                result.stderr[i, part] = resampling.log_stderr(counts, influence)
                result.ratio_stderr[i, part] = resampling.log_stderr(counts, influence - base_influence)
    return result
