"""From the unit gradients of an estimator to what is said of it, each with an interval.

Two ways lead there: the jackknife, which leaves out one unit at a time and is in closed form, and the
bootstrap, which draws whole units with replacement. What compares two estimators is paired in both:
the same units are left out, or drawn, for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar import units
from rlvar.estimate import (
    Estimate,
    Moment,
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
from rlvar.units import Sample

Double = NDArray[np.float64]


class Inference(NamedTuple):
    """What is said of an estimator, beside a reference."""

    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate


class Moments(NamedTuple):
    """Moments of one sample of unit gradients."""

    variance: Moment
    signal: Moment


class Bootstrap(NamedTuple):
    """How often whole units are drawn with replacement, and the seed of it."""

    resamples: int
    seed: int


def moments(sample: Sample) -> Moments:
    """Return variance and signal, each with one unit left out."""
    return Moments(units.variance(sample), units.signal(sample))


def quotient(above: Moment, below: Moment) -> Moment:
    """Divide two quantities of the same units; 0 / 0 is NaN."""
    with np.errstate(all="ignore"):
        value, left_out = (np.asarray(a) / b for a, b in zip(above, below, strict=True))
    return Moment(float(value), left_out)


def same_sample(a: Sample, b: Sample) -> bool:
    """Whether two samples are the same numbers."""
    return np.array_equal(a.mean, b.mean) and np.array_equal(a.deviations, b.deviations)


def infer(
    samples: Sequence[Sample], reference: Sample, confidence: float, bootstrap: Bootstrap | None = None
) -> list[Inference]:
    """Compare samples of gradients of the same units with a reference, one of them or another."""
    if bootstrap is None:
        base = moments(reference)
        found = [_jackknifed(sample, moments(sample), reference, base, confidence) for sample in samples]
    else:
        found = _bootstrapped(samples, reference, confidence, bootstrap)
    # What is compared with itself is the same, resolved or not.
    same = Estimate(1.0, 0.0, 1.0, 1.0, confidence)
    return [
        each._replace(ratio=same, noise_scale_ratio=same, alignment=same)
        if same_sample(sample, reference) and each.variance.value > 0 and reference.number > 2
        else each
        for sample, each in zip(samples, found, strict=True)
    ]


def _jackknifed(
    sample: Sample, own: Moments, reference: Sample, base: Moments, confidence: float
) -> Inference:
    variance = jackknife(*own.variance, confidence, positive=True)
    signal, base_signal = (
        signal_interval(each.signal, each.variance, len(sample.mean), confidence) for each in (own, base)
    )
    correlated = 0.0
    if len(own.variance.left_out) >= 2:
        correlated = correlation(own.variance.left_out, own.signal.left_out)
    resolved = signal.low > 0 and base_signal.low > 0
    return Inference(
        variance=variance,
        ratio=jackknife(*quotient(own.variance, base.variance), confidence, positive=True),
        signal=signal,
        noise_scale=fieller(variance, signal, correlated),
        noise_scale_ratio=noise_scale_ratio(
            own.variance, own.signal, base.variance, base.signal, resolved=resolved, confidence=confidence
        ),
        alignment=alignment(
            units.cross_signal(sample, reference),
            own.signal,
            base.signal,
            resolved=resolved,
            confidence=confidence,
        ),
    )


def _bootstrapped(
    samples: Sequence[Sample], reference: Sample, confidence: float, bootstrap: Bootstrap
) -> list[Inference]:
    base = moments(reference)
    drawn = _draw(samples, reference, bootstrap)
    base_signal = bca(base.signal, drawn.base_signal, confidence)
    u = len(reference.sizes)
    results = []
    for i, sample in enumerate(samples):
        own = moments(sample)
        signal = bca(own.signal, drawn.signal[i], confidence)
        ratio = quotient(own.variance, base.variance)
        resolved = signal.low > 0 and base_signal.low > 0
        with np.errstate(all="ignore"):
            # Resampled variances estimate V (U - 1) / U. A signal at or below 0 is an infinite noise scale.
            inverse = drawn.signal[i] / (drawn.variance[i] * (u / (u - 1)))
            scale_ratio = drawn.variance[i] / drawn.base_variance * (drawn.base_signal / drawn.signal[i])
            scale_ratio = np.where(drawn.signal[i] > 0, np.maximum(scale_ratio, 0.0), np.inf)
            cosine = drawn.cross[i] / drawn.base_signal / np.sqrt(drawn.signal[i] / drawn.base_signal)
            cosine = np.where((drawn.signal[i] > 0) & (drawn.base_signal > 0), cosine, -1.0)
            variance_ratio = drawn.variance[i] / drawn.base_variance
        results.append(
            Inference(
                variance=bootstrap_t(
                    own.variance,
                    own.variance.value * (u - 1) / u,
                    drawn.variance[i],
                    drawn.stderr[i],
                    confidence,
                ),
                ratio=bootstrap_t(
                    ratio,
                    ratio.value,
                    variance_ratio,
                    drawn.ratio_stderr[i],
                    confidence,
                ),
                signal=signal,
                noise_scale=reciprocal(bca(quotient(own.signal, own.variance), inverse, confidence), signal),
                noise_scale_ratio=noise_scale_ratio(
                    own.variance,
                    own.signal,
                    base.variance,
                    base.signal,
                    resolved=resolved,
                    confidence=confidence,
                    resampled=scale_ratio,
                ),
                alignment=alignment(
                    units.cross_signal(sample, reference),
                    own.signal,
                    base.signal,
                    resolved=resolved,
                    confidence=confidence,
                    resampled=cosine,
                ),
            )
        )
    return results


class _Drawn(NamedTuple):
    """What the resamples of E samples and the reference give: (E, B), and (B,)."""

    variance: Double
    signal: Double
    cross: Double
    stderr: Double  # of log V
    ratio_stderr: Double  # of log (V / V_0)
    base_variance: Double
    base_signal: Double


def _draw(samples: Sequence[Sample], reference: Sample, bootstrap: Bootstrap) -> _Drawn:
    """Resample all samples with the same units drawn, a few resamples at a time."""
    u, b = len(reference.sizes), bootstrap.resamples
    drawn = _Drawn(*np.empty((5, len(samples), b)), *np.empty((2, b)))
    for part, counts in units.draws(u, b, bootstrap.seed, width=len(reference.mean)):
        base = units.resample(reference, counts)
        base_influence = units.influence(base)
        drawn.base_variance[part] = units.resampled_variance(base)
        drawn.base_signal[part] = units.resampled_cross_signal(base, base)
        for i, sample in enumerate(samples):
            own = units.resample(sample, counts)
            influence = units.influence(own)
            drawn.variance[i, part] = units.resampled_variance(own)
            drawn.signal[i, part] = units.resampled_cross_signal(own, own)
            drawn.cross[i, part] = units.resampled_cross_signal(own, base)
            with np.errstate(all="ignore"):  # what does not vary in a resample has no logarithm
                drawn.stderr[i, part] = units.log_stderr(counts, influence)
                drawn.ratio_stderr[i, part] = units.log_stderr(counts, influence - base_influence)
    return drawn
