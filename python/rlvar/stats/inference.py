"""From the unit gradients of an estimator to its numbers, each with an interval.

Two ways lead there: the jackknife, which leaves out one unit at a time and is in closed form, and the
bootstrap, which draws whole units with replacement. What compares two estimators is paired in both:
the same units are left out, or drawn, for either.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats import moments
from rlvar.stats.batch_noise import share_along
from rlvar.stats.estimate import Estimate, Moment
from rlvar.stats.intervals import (
    Null,
    alignment,
    bca,
    bootstrap_t,
    correlation,
    deciding_units,
    fieller,
    jackknife,
    log_stderrs_below,
    noise_scale_ratio,
    null_of,
    ratio_of_variances,
    reciprocal,
    signal_interval,
)
from rlvar.stats.moments import Products, Sample
from rlvar.stats.resampling import Bootstrap, Resampled, draws, log_stderr
from rlvar.stats.sketch_noise import SketchNoise, of_the_whole, sketch_noise

_SURE = 0.998  # two-sided, so that theory is denied once in 1000 by chance


class Inference(NamedTuple):
    """What is said of an estimator, beside a reference; and its variance with each unit left out."""

    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    variance_units: float  # how many units decide it
    ratio_units: float
    factor: float | None  # of its mean by that of the reference, where it is known
    null: Null  # what a signal of 0 would pass
    identical: bool
    variances: Moment
    signals: Moment
    dimension: float  # effective one of the noise
    along: float  # share of the noise that lies along the mean
    differs: bool = False  # whether the data deny that its mean is that of the reference
    sketch: SketchNoise | None = None  # of coordinates that are a sketch


@quiet
def quotient(above: Moment, below: Moment) -> Moment:
    """Divide two quantities of the same units; 0 / 0 is NaN."""
    value, left_out = (np.asarray(a) / b for a, b in zip(above, below, strict=True))
    return Moment(float(value), left_out)


@quiet
def signal_of(p: Products, ddof: int = 1, *, grouped: bool = False) -> Moment:
    """Return |mean|^2 - ddof V / U, with V = sum |y|^2 / (U - ddof); of groups, sum |y|^2 / (U - 1)."""
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
    signal: Moment, variance: Moment, total: Moment, dimension: float, confidence: float
) -> tuple[Estimate, Estimate]:
    """Return the signal of units of this variance, and `total` over it; intervals only if `total` has one."""
    if not len(total.left_out):
        signal = Moment(signal.value, total.left_out)
    found = signal_interval(signal, variance, dimension, confidence)
    whole = jackknife(*total, confidence, positive=True)
    return found, fieller(whole, found, correlation(total.left_out, signal.left_out))


@dataclass(frozen=True, eq=False)
class _Pair:
    """A sample beside the reference, with their moments."""

    own: Products
    beside: Products
    variance: Moment
    signal: Moment
    cross: Moment

    @cached_property
    def dimension(self) -> float:
        return moments.dimension(self.own)

    @property
    def null(self) -> Null:
        return null_of(self.variance, self.dimension)


class Mean(NamedTuple):
    """The mean of a sample, as `scale` times that of the quietest of those that are known to share it."""

    quietest: int
    scale: float


@quiet
def means_of(
    likes: Sequence[tuple[int, float]],
    variances: Sequence[Moment],
    classes: Sequence[Hashable | None],
    reference: int,
) -> list[Mean]:
    """Find the sample whose signal is the best estimate of each one's.

    Samples of a class have one mean by theory. Those that are a number times one of them, as `likes` say,
    belong to it as well, and others that are proportional are a class of their own.
    """
    labels: list[tuple[Hashable, float]] = []  # a class, and the mean as a number times that of the class
    # Theory errs on members of a class that are another number times each other.
    classes = [
        None if own is not None and own == classes[root] and abs(factor - 1) > 1e-6 else own
        for (root, factor), own in zip(likes, classes, strict=True)
    ]
    for (root, factor), own in zip(likes, classes, strict=True):
        kin = [k for k, (other, _) in enumerate(likes) if other == root and classes[k] is not None]
        if own is not None:
            labels.append((("class", own), 1.0))
        elif kin:
            labels.append((("class", classes[kin[0]]), factor / likes[kin[0]][1]))
        else:
            labels.append((("like", root), factor))
    noise = [times(variance, scale**-2.0) for variance, (_, scale) in zip(variances, labels, strict=True)]
    members: dict[Hashable, list[int]] = {}
    for i in sorted(range(len(likes)), key=lambda i: i != reference):
        members.setdefault(labels[i][0], []).append(i)
    quietest = {kind: _quietest(noise, among) for kind, among in members.items()}
    return [Mean(quietest[kind], scale / labels[quietest[kind]][1]) for kind, scale in labels]


def _quietest(noise: Sequence[Moment], among: Sequence[int]) -> int:
    """Return the first of some, or from there on one that is quieter by two standard errors of the log.

    The least of many that are about equal would be least by chance, and its signal too easily resolved.
    """
    best = among[0]
    while True:
        log_ratios = ((i, quotient(noise[i], noise[best])) for i in among)
        quieter = (i for i, ratio in log_ratios if log_stderrs_below(ratio) > 2)
        following = next(quieter, best)
        if following == best:
            return best
        best = following


def times(moment: Moment, factor: float) -> Moment:
    return moment if factor == 1.0 else Moment(moment.value * factor, moment.left_out * factor)


def scaled(x: Estimate, factor: float) -> Estimate:
    if factor == 1.0:
        return x
    ends = x.value * factor, x.stderr * factor, x.low * factor, x.high * factor
    return Estimate(*ends, x.confidence, x.resolved)


@quiet
def infer(
    samples: Sequence[Sample],
    reference: int,
    confidence: float,
    bootstrap: Bootstrap | None = None,
    threads: int | None = None,
    classes: Sequence[Hashable | None] | None = None,
    sketched: bool = False,
    crossed: bool = True,
) -> list[Inference]:
    """Compare samples of gradients of the same units with one of them, number `reference`.

    Samples of the same of the `classes` have the same mean by theory: all take the signal of one that is
    quietest beyond doubt, and so do those that are proportional to one of them, times the square of their
    factor. Where the factor b between two means is known, their noise scales have the ratio
    (V_a / V_0) / b^2, and the means the cosine 1 or -1: no signal takes part.

    Where the coordinates are `sketched`, the uncertainty that this adds is returned too. Unless they are
    `crossed`, products of different samples are not known: no alignment is, and no mean is denied.
    """
    products = moments.products(samples, reference, gram=bootstrap is not None, threads=threads)
    if not crossed:
        base = products[reference][0]
        products = [(own, own if own is base else moments.unknown(own)) for own, _ in products]
    pairs = [
        _Pair(own, beside, moments.variance(own), moments.signal(own), moments.signal(beside))
        for own, beside in products
    ]
    classes = [None] * len(pairs) if classes is None else list(classes)
    apart = [
        i != reference and _differ(each, pairs[reference], (samples[i], samples[reference]), threads)
        for i, each in enumerate(pairs)
    ]
    # What the data deny is taken from theory, of the reference too: which of the two it errs in is not known.
    denied = {each for each, differs in zip(classes, apart, strict=True) if differs}
    known = [None if each in denied else each for each in classes]
    means = means_of([pair.own.like for pair in pairs], [pair.variance for pair in pairs], known, reference)
    if bootstrap is None:
        found = _jackknifed(pairs, means, reference, confidence)
    else:
        found = _bootstrapped(pairs, means, reference, confidence, bootstrap, threads)
    found = [each._replace(differs=differs) for each, differs in zip(found, apart, strict=True)]
    if sketched:
        noise = sketch_noise(samples, means, reference)
        found = [_sketched(each, of_row) for each, of_row in zip(found, noise, strict=True)]
    found = [_known(each, pair, pairs[reference]) for each, pair in zip(found, pairs, strict=True)]
    if not crossed:
        none = Estimate(math.nan, confidence=confidence)
        found = [each if each.factor is not None else each._replace(alignment=none) for each in found]
    return found


class _Difference(NamedTuple):
    """Gradients of the same units, one sample's minus another's; none of them is kept."""

    left: Sample
    right: Sample
    units: int

    @property
    def base(self) -> Double:
        return np.broadcast_to(np.float64(0.0), (self.units, self.left.width))

    def whole(self, coordinates: slice = slice(None)) -> Double:
        return self.left.columns(coordinates) - self.right.columns(coordinates)


def _differ(pair: _Pair, base: _Pair, samples: tuple[Sample, Sample], threads: int | None) -> bool:
    """Whether two means differ beyond doubt: the signal of the difference a - b of the units' gradients.

    By Box's F test at 1 in 1000. Its dimension is looked for where it would decide.
    """
    signal = pair.signal.value + base.signal.value - 2 * pair.cross.value
    both = moments.covariance(pair.beside)
    variance = pair.variance.value + base.variance.value - 2 * both.value
    left_out = pair.variance.left_out + base.variance.left_out - 2 * both.left_out
    if not variance > 1e-9 * (pair.variance.value + base.variance.value):  # else it is rounding
        return False
    least, most = (null_of(Moment(variance, left_out), d).limit(_SURE) for d in (samples[0].dimension, 1.0))
    if signal > least and not signal > most:
        difference = Sample(_Difference(*samples, len(left_out)), samples[0].given, spans=samples[0].spans)
        ((own, _),) = moments.products([difference], threads=threads)
        most = null_of(Moment(variance, left_out), moments.dimension(own)).limit(_SURE)
    return bool(signal > most)


def _sketched(found: Inference, noise: SketchNoise) -> Inference:
    """Put in what a sketch leaves uncertain, and take off what it adds to what batches differ by."""
    if not found.noise_scale.resolved:
        noise = replace(noise, noise_scale=math.nan)
    dimension, along = of_the_whole(found.dimension, found.along, noise.coordinates)
    return found._replace(dimension=dimension, along=along, sketch=noise)


def _known(found: Inference, pair: _Pair, base: _Pair) -> Inference:
    """Put in what a known factor between two means says of their ratios; nothing where neither varies."""
    if found.factor is None or not found.variance.value > 0:
        return found
    sign, level = math.copysign(1.0, found.factor), found.ratio.confidence
    ratio, units, squared = found.ratio, found.ratio_units, found.factor**2
    if len(base.own.diagonal) < 3:
        return found._replace(noise_scale_ratio=scaled(ratio, 1 / squared), alignment=Estimate(sign))
    if pair.own.like[0] == base.own.like[0]:  # proportional: the same noise
        ratio, units = Estimate(squared, 0.0, squared, squared, level), math.nan
    return found._replace(
        ratio=ratio,
        ratio_units=units,
        noise_scale_ratio=scaled(ratio, 1 / squared),
        alignment=Estimate(sign, 0.0, sign, sign, level),
    )


def _with_means(
    i: int,
    pairs: Sequence[_Pair],
    means: Sequence[Mean],
    reference: int,
    signals: Sequence[Estimate],
    drawn: tuple[Double | None, Double | None] = (None, None),
) -> dict[str, Any]:
    """Return what rests on two signals, from resampled values if drawn, and what has no interval."""
    pair, base, mean, of_base = pairs[i], pairs[reference], means[i], means[reference]
    resolved = signals[i].resolved and signals[reference].resolved
    options: dict[str, Any] = {"resolved": resolved, "confidence": signals[i].confidence}
    signal, base_signal = (times(pairs[m.quietest].signal, m.scale**2) for m in (mean, of_base))
    same = mean.quietest == of_base.quietest
    ratios = quotient(pair.variance, base.variance).left_out
    null = pairs[mean.quietest].null
    return {
        "dimension": pair.dimension,
        "along": share_along(pair.own, pair.variance.value, pair.signal.value, pair.dimension),
        "variance_units": deciding_units(pair.variance.left_out),
        "ratio_units": deciding_units(ratios) if np.isfinite(ratios).all() else math.nan,
        "noise_scale_ratio": noise_scale_ratio(
            pair.variance, signal, base.variance, base_signal, resampled=drawn[0], **options
        ),
        "alignment": alignment(pair.cross, signal, base_signal, resampled=drawn[1], **options),
        "factor": 1.0 if pair.beside.identical else mean.scale / of_base.scale if same else None,
        "null": null._replace(variance=null.variance * mean.scale**2),
        "identical": pair.beside.identical,
        "variances": pair.variance,
        "signals": signal,
    }


def _jackknifed(
    pairs: Sequence[_Pair], means: Sequence[Mean], reference: int, confidence: float
) -> list[Inference]:
    of_mean = {
        q: signal_interval(pairs[q].signal, pairs[q].variance, pairs[q].dimension, confidence)
        for q in {mean.quietest for mean in means}
    }
    signals = [scaled(of_mean[mean.quietest], mean.scale**2) for mean in means]
    results = []
    for i, (pair, mean) in enumerate(zip(pairs, means, strict=True)):
        variance = jackknife(*pair.variance, confidence, positive=True)
        correlated = correlation(pair.variance.left_out, pairs[mean.quietest].signal.left_out)
        results.append(
            Inference(
                variance=variance,
                ratio=ratio_of_variances(pair.variance, pairs[reference].variance, confidence),
                signal=signals[i],
                noise_scale=fieller(variance, signals[i], correlated),
                **_with_means(i, pairs, means, reference, signals),
            )
        )
    return results


def _bootstrapped(
    pairs: Sequence[_Pair],
    means: Sequence[Mean],
    reference: int,
    confidence: float,
    bootstrap: Bootstrap,
    threads: int | None,
) -> list[Inference]:
    base, u = pairs[reference], len(pairs[reference].own.diagonal)
    drawn = _draw(pairs, reference, bootstrap, threads)
    moments_of = [times(pairs[mean.quietest].signal, mean.scale**2) for mean in means]
    resampled = [drawn.signal[mean.quietest] * mean.scale**2 for mean in means]
    signals = [bca(signal, x, confidence) for signal, x in zip(moments_of, resampled, strict=True)]
    base_variance, base_signal = drawn.variance[reference], resampled[reference]
    results = []
    for i, (own, moment, signal) in enumerate(zip(pairs, moments_of, resampled, strict=True)):
        ratio = quotient(own.variance, base.variance)
        # Resampled variances estimate V (U - 1) / U. A signal at or below 0 is an infinite noise scale.
        inverse = signal / (drawn.variance[i] * (u / (u - 1)))
        variance_ratio = drawn.variance[i] / base_variance
        scale_ratio = variance_ratio * (base_signal / signal)
        scale_ratio = np.where(signal > 0, np.maximum(scale_ratio, 0.0), np.inf)
        cosine = drawn.cross[i] / base_signal / np.sqrt(signal / base_signal)
        cosine = np.where((signal > 0) & (base_signal > 0), cosine, -1.0)
        plug_in = own.variance.value * (u - 1) / u
        results.append(
            Inference(
                variance=bootstrap_t(own.variance, plug_in, drawn.variance[i], drawn.stderr[i], confidence),
                ratio=bootstrap_t(ratio, ratio.value, variance_ratio, drawn.ratio_stderr[i], confidence),
                signal=signals[i],
                noise_scale=reciprocal(bca(quotient(moment, own.variance), inverse, confidence), signals[i]),
                **_with_means(i, pairs, means, reference, signals, (scale_ratio, cosine)),
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
            added = pair.variance.value - moments.covariance(pair.own).value
            result.variance[i, part] = own.variance + added * (1 - 1 / len(base.diagonal))
            result.signal[i, part] = own.signal
            result.cross[i, part] = both.signal
            # What does not vary in a resample has no logarithm.
            result.stderr[i, part] = log_stderr(counts, own.influence)
            result.ratio_stderr[i, part] = log_stderr(counts, own.influence - of_base.influence)
    return result
