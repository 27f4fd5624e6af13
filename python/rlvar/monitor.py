"""A training run, watched: the numbers of each step, pooled over the last steps.

One step resolves little. A `Monitor` keeps unbiased numbers of each step (variances, signals, their products)
and pools them as ratios of sums (`rlvar.stats.pooled`); the gradients themselves are not kept.
"""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.analysis.compare_gradients import given_gradients
from rlvar.analysis.growth import slope
from rlvar.analysis.measured import scores_line
from rlvar.analysis.planning import Plan, plan_curve
from rlvar.analysis.prompt_curves import Components
from rlvar.analysis.rows import ByName
from rlvar.analysis.run_on_policy import PolicyWatch, RunOnPolicyTest
from rlvar.analysis.sampling import FILTER_PROOF
from rlvar.analysis.steps import (
    StepRecord,
    all_known,
    any_filtered,
    record_of_gradients,
    record_of_rollouts,
    separate,
)
from rlvar.analysis.table import estimators_html
from rlvar.reporting.run import RunReport, run_report
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate, Moment, Result, bounded
from rlvar.stats.frame import frame
from rlvar.stats.intervals import jackknife
from rlvar.stats.pooled import Pooled, infer_pooled
from rlvar.stats.shown import aligned, html_lines
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import (
    Estimator,
    EstimatorLike,
    OwnEstimator,
    default_estimators,
    resolve,
)

_WINDOW = 50
_FORGOTTEN = 1e-3  # the weight below which a step is let go
_MEANS = 1 << 22  # numbers of mean gradients that are kept, of the newest steps
_HISTORY = 512
_STATE = 1  # the version of `state_dict`


@dataclass(frozen=True, kw_only=True)
class MonitorRow(Result):
    """One estimator in a `Monitor`: the numbers of a `ComparisonRow`, pooled over steps.

    Attributes
    ----------
    name : str
        Name of the estimator.
    variance, ratio, signal, noise_scale, noise_scale_ratio, alignment : Estimate
        As in `ComparisonRow`: of the weighted means over steps of variances, signals and products.
    unbiased : bool or None
        As in `ComparisonRow`: at all steps.
    factor : float or None
        Its mean gradient over the reference's, where that is known.
    differs : bool
        Whether the data deny that its mean is that of the reference.
    """

    name: str
    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    unbiased: bool | None
    factor: float | None
    differs: bool


class Monitor(ByName):
    r"""Watch a training run: the noise of its gradient, pooled over the last steps.

    Parameters
    ----------
    estimators : sequence, optional
        What to compare, as in `compare`. By default what the rollouts of the first step can tell apart, as
        there; for gradients all that are given.
    reference : str, optional
        The estimator in use, whose variance is the denominator of each ratio: "rloo" by default where it is
        compared, else the first.
    window : int, default 50
        How many of the last steps are pooled, with equal weights.
    decay : float, optional
        In place of a window: weight of a step over that of the next one, between 0 and 1. A step is let go
        below a thousandth of the newest one's weight.
    confidence : float, default 0.95
        Nominal coverage of the intervals.
    num_threads : int, optional
        As in `compare`.

    Attributes
    ----------
    steps : int
        Number of steps seen.
    window, decay, confidence, reference
        As given, or as decided at the first update.
    scores_of : str or None
        What the scores are gradients with respect to.

    Notes
    -----
    Step t gives unbiased estimates of variances, signals and cross signals, of components between and
    within prompts. They are pooled as :math:`\sum w_t V_t` and :math:`\sum w_t S_t`, and the noise scale is
    the ratio of the two sums: the mean of the steps' own ratios has no expectation where a signal may be
    negative. A step of U units counts with U - 1, times the decay: as in one batch of all units, each step's
    own mean taken off. Noise scales are numbers of units: of groups where there are groups.

    Intervals have pairs of neighbouring steps as units; a drift of the policy does not widen them. They need
    eight steps. What is pooled is the mean over the window: the policy now is the newest of it.

    ``docs/promises.md`` says how often they cover, ``docs/mathematics.md`` how the test over the whole run is
    made.

    The state is of constant size: numbers for each step in the window and, of the newest, mean gradients, at
    most 32 MB of them, by which shards of a step `merge`.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> monitor = rlvar.Monitor(["rloo", "grpo"], window=20)
    >>> for step in range(20):  # the training loop
    ...     scores = rng.standard_normal((64, 1, 100))
    ...     rewards = (scores[:, 0, 0] + rng.standard_normal(64) > 0).astype(float)
    ...     monitor.update(rlvar.Rollouts(scores, rewards, groups=np.arange(64) // 8))
    >>> monitor["rloo"].noise_scale.resolved
    True
    >>> monitor.metrics()["steps"]
    20.0
    """

    def __init__(
        self,
        estimators: EstimatorLike | Sequence[EstimatorLike] | None = None,
        *,
        reference: str | None = None,
        window: int | None = None,
        decay: float | None = None,
        confidence: float = 0.95,
        num_threads: int | None = None,
    ) -> None:
        self._estimators = None if estimators is None else resolve(estimators)
        self.reference = None if reference is None else _check.text("reference", reference)
        if window is not None and decay is not None:
            raise ValueError("pass window or decay, not both")
        self.decay = None
        if decay is not None:
            self.decay = _check.positive_number("decay", decay)
            if not self.decay < 1:
                raise ValueError(f"decay must lie between 0 and 1, got {decay!r}")
        self.window = None
        if decay is None:
            self.window = _check.positive_integer("window", _WINDOW if window is None else window, 2)
        self.confidence = _check.confidence(confidence)
        self._threads = _check.threads(num_threads)
        self.scores_of: str | None = None
        self.unit = "rollout"
        self._kind: str | None = None  # "rollouts" or "gradients"
        self._names: list[str] = []  # of all that is computed; those asked for come first
        self._asked = 0
        self._sketched: int | None = None
        self._records: list[StepRecord] = []
        self._let_go: tuple[int, int, int] | None = None  # first step, last step, how many
        self._watch = PolicyWatch(self.confidence)  # of the steps that were let go
        self._kept: list[dict[str, float]] = []
        self._every = 1
        self._cache: dict[str, Any] = {}
        self._warned = False
        self._lock = threading.RLock()

    # What a run feeds.

    def update(
        self,
        what: Rollouts | Mapping[str, ArrayLike],
        *,
        step: int | None = None,
        batch: int | None = None,
        unbiased: str | Sequence[str] = (),
        groups: Sequence[Hashable] | NDArray[Any] | None = None,
        sizes: ArrayLike | None = None,
        gram_of: int | None = None,
        scores_of: str | None = None,
        sketched: bool = False,
    ) -> None:
        """Take in one training step.

        Parameters
        ----------
        what : Rollouts, or dict of array_like
            The rollouts of the step, sampled anew. Or gradients of units by the name of an estimator, as in
            `compare_gradients`, with the options below.
        step : int, optional
            The trainer's number of the step, by default one more than the last. That of the last step itself
            adds a shard to it: other rollouts of the same step, in other groups.
        batch : int, optional
            Number of rollouts in a batch in use, where these are only some of them.
        unbiased, groups, sizes, gram_of, scores_of, sketched
            Of gradients: as in `compare_gradients`.

        Raises
        ------
        ValueError, TypeError
            As `compare`, and for what does not go with the steps before: other estimators, groups where there
            were none, scores of other parameters, an earlier step. The monitor is then as it was.
        """
        with self._lock:
            before = self._config
            try:
                record = self._record(
                    what, step, batch, unbiased, groups, sizes, gram_of, scores_of, sketched
                )
            except BaseException:
                self._config = before
                raise
            if record.gradients.units < 2 and not self._warned:
                self._warned = True
                warnings.warn(
                    f"step {record.step} has one {self.unit} only, so no variance: only the rewards of such "
                    "steps count",
                    UserWarning,
                    stacklevel=2,
                )
            self._take(record)

    _CONFIG = ("_estimators", "reference", "scores_of", "unit", "_kind", "_names", "_asked", "_sketched")

    @property
    def _config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._CONFIG}

    @_config.setter
    def _config(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _record(
        self,
        what: Any,
        step: int | None,
        batch: int | None,
        unbiased: str | Sequence[str],
        groups: Any,
        sizes: ArrayLike | None,
        gram_of: int | None,
        scores_of: str | None,
        sketched: bool,
    ) -> StepRecord:
        last = self._last_step
        number = last + 1 if step is None else _check.positive_integer("step", step, 0)
        if number < last:
            raise ValueError(f"step must be at least the last one, {last}, got {number}")
        size = None if batch is None else _check.positive_integer("batch", batch)
        if isinstance(what, Rollouts):
            given = {"groups": groups, "sizes": sizes, "gram_of": gram_of, "scores_of": scores_of}
            for name, value in {**given, "unbiased": unbiased or None, "sketched": sketched or None}.items():
                if value is not None:
                    raise TypeError(f"{name} goes with gradients; Rollouts have their own")
            grouped = what.groups is not None
            self._like("rollouts", "group" if grouped else "rollout", what.scores_of)
            if self._estimators is None:
                self._estimators = default_estimators(Batch.of(what, threads=self._threads))
            chosen = self._estimators
            for each in chosen:
                if isinstance(each, OwnEstimator) and not callable(each.given):
                    raise TypeError(
                        f"estimator {each.name!r} must be a function from rollouts to weights, because each "
                        "step has other rollouts"
                    )
            self._decide([each.name for each in chosen])
            if self.reference not in self._names:
                (extra,) = resolve([self.reference], "reference")  # type: ignore[list-item]
                self._estimators, self._names = [*chosen, extra], [*self._names, extra.name]
            reference = self._names.index(self.reference or "")
            if what.sketched:
                self._sketched = what.shape[2]
            assert self._estimators is not None
            return record_of_rollouts(what, self._estimators, reference, number, size, self._threads)
        if not isinstance(what, Mapping):
            raise TypeError(f"what must be Rollouts or a dict of gradients, got {type(what).__name__}")
        if self._estimators is not None and self._kind != "rollouts":
            wanted = [each.name for each in self._estimators]
            if missing := [name for name in wanted if name not in what]:
                raise ValueError(f"gradients must have {', '.join(wanted)}, got none for {missing[0]!r}")
            what = {name: what[name] for name in wanted}
            unbiased = (
                [name for name in _check.names("unbiased", unbiased) if name in what] if unbiased else ()
            )
        found = given_gradients(what, unbiased, groups, sizes, gram_of, sketched, self._threads, least=1)
        several = groups is not None or bool((found.sizes != 1).any())
        unit = "group" if several else "rollout" if sizes is not None else "unit"
        self._like("gradients", unit, None if scores_of is None else _check.text("scores_of", scores_of))
        self._decide(found.names)
        if found.names != self._names:
            if sorted(found.names) != sorted(self._names):
                raise ValueError(
                    f"gradients must have {', '.join(self._names)}, as at earlier steps, got "
                    f"{', '.join(found.names)}"
                )
            order = [found.names.index(name) for name in self._names]
            found = found._replace(names=self._names, rows=[found.rows[i] for i in order])
        if self.reference not in self._names:
            raise ValueError(f"reference must be among {', '.join(self._names)}, got {self.reference!r}")
        if sketched:
            self._sketched = found.rows[0].base.shape[1]
        return record_of_gradients(found, self._names.index(self.reference), number, size)

    def _like(self, kind: str, unit: str, scores_of: str | None) -> None:
        """Refuse what does not go with the steps before."""
        if self._kind is None:
            self._kind, self.unit, self.scores_of = kind, unit, scores_of
        if kind != self._kind:
            raise TypeError(f"this monitor has {self._kind} from earlier steps, got {kind}: use two monitors")
        if unit != self.unit:
            raise ValueError(f"units must be {self.unit}s, as at earlier steps, got {unit}s")
        if scores_of != self.scores_of:
            raise ValueError(
                f"scores_of must be {self.scores_of!r}, as at earlier steps, got {scores_of!r}: use two "
                "monitors"
            )

    def _decide(self, names: list[str]) -> None:
        """Fix the names at the first update."""
        if not self._names:
            self._names, self._asked = names, len(names)
            if self.reference is None:
                self.reference = "rloo" if "rloo" in names else names[0]

    def _take(self, record: StepRecord) -> None:
        if self._records and self._records[-1].step == record.step:
            self._refuse_shared()
            record = self._merged(self._records[-1], record)
            self._records.pop()
            if self._kept and self._kept[-1]["step"] == record.step:
                self._kept.pop()
        self._records.append(record)
        self._trim()
        self._cache = {}
        if (self.steps - 1) % self._every == 0:
            self._kept.append(self._entry())
            if len(self._kept) > _HISTORY:
                del self._kept[1::2]
                self._every *= 2

    def _trim(self) -> None:
        """Let go of what the window has passed."""
        while len(self._records) > self._most:
            record = self._records.pop(0)
            self._watch = self._watch.add(record)
            first, _, count = self._let_go or (record.step, 0, 0)
            self._let_go = first, record.step, count + 1
        room = _MEANS
        for i in range(len(self._records) - 1, -1, -1):
            room -= self._records[i].kept
            if room < 0 and self._records[i].mergeable:
                self._records[i] = self._records[i].without_means()

    @property
    def _most(self) -> int:
        """How many steps are kept."""
        if self.decay is None:
            assert self.window is not None
            return self.window
        return max(2, math.ceil(math.log(_FORGOTTEN) / math.log(self.decay)))

    @property
    def _last_step(self) -> int:
        return self._records[-1].step if self._records else 0

    # What is pooled.

    @property
    def steps(self) -> int:
        return len(self._records) + (self._let_go[2] if self._let_go else 0)

    def _weighed(
        self, of: Callable[[StepRecord], float | None] = lambda r: r.weight
    ) -> tuple[list[StepRecord], Double]:
        """Return the steps that have something to pool, and their weights: degrees of freedom times decay."""
        decay = 1.0 if self.decay is None else self.decay
        with self._lock:
            records = list(self._records)
        last = len(records) - 1
        found = [(r, (of(r) or 0.0) * decay ** (last - i)) for i, r in enumerate(records)]
        found = [(r, w) for r, w in found if w > 0]
        return [r for r, _ in found], np.array([w for _, w in found])

    def _cached(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._cache:
                self._cache[name] = make()
            return self._cache[name]

    @property
    def rows(self) -> tuple[MonitorRow, ...]:
        """One row an estimator, in the order asked for."""
        found: tuple[MonitorRow, ...] = self._cached("rows", self._rows)
        return found[: self._asked]

    def _rows(self) -> tuple[MonitorRow, ...]:
        records, weights = self._weighed()
        if not records:
            return ()
        unbiased = [all_known(each) for each in zip(*(r.unbiased for r in records), strict=True)]
        if any_filtered(r.filtered for r in records):  # what is common to groups is then in the mean
            proof = [each.base in FILTER_PROOF for each in self._estimators or ()]
            unbiased = [known and kept for known, kept in zip(unbiased, proof, strict=True)]
        found = infer_pooled(
            np.stack([r.gradients.covariance for r in records]),
            np.stack([r.gradients.signal for r in records]),
            weights,
            ["unbiased" if each else None for each in unbiased],
            records[-1].reference,
            self.confidence,
        )
        return tuple(
            MonitorRow(name=name, unbiased=known, **row._asdict())
            for name, known, row in zip(self._names, unbiased, found, strict=True)
        )

    @property
    def in_use(self) -> MonitorRow | None:
        """The row of the reference, also where that was not asked for; None before there is one."""
        self.rows  # noqa: B018 - fills the cache
        found: tuple[MonitorRow, ...] = self._cache.get("rows", ())
        return next((row for row in found if row.name == self.reference), None)

    @property
    def units(self) -> float:
        """Mean number of units of a step, of those with two or more; NaN before the first."""
        records, _ = self._weighed()
        return float(np.mean([r.gradients.units for r in records])) if records else math.nan

    @property
    def pooled(self) -> int:
        """Number of steps that are pooled: of those in the window, the ones with two or more units."""
        return len(self._weighed()[0])

    @property
    def batch_units(self) -> float:
        """Number of units in a batch in use; NaN before the first step."""
        records, _ = self._weighed()
        sizes = [r.gradients.units * (1.0 if r.batch is None else r.batch / r.rollouts) for r in records]
        return float(np.mean(sizes)) if sizes else math.nan

    @property
    def enough(self) -> Estimate:
        """The batch in use over the noise scale of the reference: below 1 noise dominates."""
        base, units = self.in_use, self.batch_units
        if base is None:
            return Estimate(math.nan, confidence=self.confidence)
        x = base.noise_scale
        value, low, high = (_over(units, each) for each in (x.value, x.high, x.low))
        stderr = abs(value) * x.stderr / abs(x.value) if x.value else math.nan
        return Estimate(value, stderr, low, high, x.confidence, x.resolved)

    @property
    def on_policy(self) -> RunOnPolicyTest:
        """The on-policy test over all steps, with its false alarms held over the whole run."""

        def test() -> RunOnPolicyTest:
            watch = self._watch
            for record in self._records:
                watch = watch.add(record)
            return watch.result

        found: RunOnPolicyTest = self._cached("on_policy", test)
        return found

    @property
    def reward(self) -> Estimate:
        """Mean return of a rollout; NaN of gradients."""
        records, weights = self._weighed(lambda r: float(r.rollouts))
        if not records:
            return Estimate(math.nan, confidence=self.confidence)
        pooled = Pooled.of(np.array([[r.reward] for r in records]), weights)
        return jackknife(*pooled.moment(0), self.confidence)

    @property
    def growth(self) -> Estimate | None:
        """Exponent b of V(k) ~ k^b, V(k) the variance of the first k steps' terms; None without steps."""
        found: Estimate | None = self._cached("growth", self._growth)
        return found

    @_check.quiet
    def _growth(self) -> Estimate | None:
        records, weights = self._weighed(
            lambda r: None if r.cuts is None or not self._records[-1].lengths else r.weight
        )
        if not records:
            return None
        lengths = sorted(set.intersection(*(set(r.lengths) for r in records)))
        if len(lengths) < 2:
            return None
        x = [
            [r.cuts.covariance[i, i] for i in map(r.lengths.index, lengths)]
            for r in records
            if r.cuts is not None
        ]
        pooled, log_k = Pooled.of(np.array(x), weights), np.log(lengths)
        moment = Moment(float(slope(log_k, pooled.values)), slope(log_k, pooled.left_out.T))
        return jackknife(*moment, self.confidence)

    def plan(self, budget: float | None = None, **options: Any) -> Plan | None:
        """Return the best prompts x completions for the cost of a batch in use, or another budget.

        As `rlvar.plan` of the reference, from the components pooled over steps, and with its options. In use
        is what the newest step has. None without groups, for an estimator of which it is not known how its
        variance depends on completions, before there are intervals, and where its variance is not positive.
        """
        with self._lock:
            records, weights = self._weighed(
                lambda r: r.prompts.groups - 1.0 if r.prompts is not None and r.prompts.defined else None
            )
        if not records:
            return None
        parts = [r.prompts for r in records if r.prompts is not None]
        pooled = Pooled.of(np.stack([each.values for each in parts]), weights)
        if not pooled.left_out.size:
            return None
        pivot = float(np.average([each.pivot for each in parts], weights=weights))
        curve = Components(pooled.values, pooled.left_out, pivot, least=parts[0].least)
        completions = [max(round(each.rollouts / each.groups), curve.least) for each in parts]
        in_use = completions[-1]
        if not curve.at(in_use).value > 0:
            return None
        if budget is None and "target" not in options:
            alike = [r for r, k in zip(records, completions, strict=True) if k == in_use]
            mean = np.mean([r.rollouts if r.batch is None else r.batch for r in alike])
            budget = in_use * max(1, round(mean / in_use))  # whole groups of those in use
        return plan_curve(
            curve,
            in_use=in_use,
            confidence=self.confidence,
            budget=budget,
            **options,
        )

    # What others read.

    def metrics(self) -> dict[str, float]:
        """Return numbers for a logger: what is not defined is left out.

        The keys: "noise_scale" of the reference, "batch_over_noise_scale", "ratio/NAME" of the others and,
        of those with another mean gradient, "noise_scale_ratio/NAME",
        "on_policy_ratio", "mean_score", "growth_exponent" and "reward", each with "/low" and "/high";
        "best_prompts", "best_completions", "plan_gain"; "on_policy", 1 or 0; "steps".
        """
        with self._lock:
            found: dict[str, float] = {"steps": float(self.steps)}

            def put(key: str, x: Estimate | None, *, of_signal: bool = False) -> None:
                if x is not None:
                    parts = {key: x.value, f"{key}/low": x.low, f"{key}/high": x.high}
                    if of_signal and not _told(x):
                        # Without a resolved signal only a bound is known, and no value.
                        parts = {k: v for k, v in parts.items() if k != key and v > 0}
                    found.update((k, float(v)) for k, v in parts.items() if math.isfinite(v))

            base = self.in_use
            if base is not None:
                put("noise_scale", base.noise_scale, of_signal=True)
                put("batch_over_noise_scale", self.enough, of_signal=True)
                put("signal", base.signal)
                put("variance", base.variance)
            for row in self.rows:
                if row.name != self.reference:
                    put(f"ratio/{row.name}", row.ratio)
                    if row.factor != 1.0:  # with another mean gradient, variances alone say little
                        put(f"noise_scale_ratio/{row.name}", row.noise_scale_ratio, of_signal=True)
            put("reward", self.reward)
            plan = self.plan()
            if plan is not None:
                found["best_prompts"] = float(plan.prompts)
                found["best_completions"] = float(plan.completions)
                put("plan_gain", plan.gain)
            test = self.on_policy
            put("on_policy_ratio", test.ratio)
            put("mean_score", test.mean_score)
            if test.on_policy is not None:
                found["on_policy"] = float(test.on_policy)
            put("growth_exponent", self.growth)
            return found

    def _entry(self) -> dict[str, float]:
        return {"step": float(self._last_step), **self.metrics()}

    @property
    def history(self) -> list[dict[str, float]]:
        """`metrics` after each step, as records with its "step".

        At most 512: of a longer run every second, fourth, ... step, and the last.
        """
        with self._lock:
            found = [dict(each) for each in self._kept]
            if self._records and (not found or found[-1]["step"] != self._last_step):
                found.append(self._entry())
            return found

    def to_frame(self) -> Any:
        """Return `history` as a data frame with a row for each step: pandas', or polars' without it.

        Raises
        ------
        ImportError
            Without pandas and polars.
        """
        history = self.history
        keys = dict.fromkeys(key for each in history for key in each)
        return frame({key: [each.get(key) for each in history] for key in keys})

    def report(
        self, other: Monitor | None = None, names: tuple[str, str] = ("this run", "the other")
    ) -> RunReport:
        """Return a page of the run: curves over steps, and what they say; beside another run if given."""
        return run_report(self, other, names=names)

    # What is kept, moved and joined.

    def merge(self, other: Monitor) -> Monitor:
        """Return a monitor of what both have seen; neither changes.

        Steps that both have are taken for shards, disjoint units of one step, no group in both: what comes
        out is what one monitor would say of the whole, to rounding. Their history is that of the first.
        Other steps are joined, and the last of all are pooled.

        Raises
        ------
        ValueError, TypeError
            For a monitor of other estimators, options, units or scores; for shards of steps that one has let
            go, or whose mean gradients it has not kept, or of estimators whose weights depend on more than
            their own rollout or group, such as means over the batch.
        """
        if not isinstance(other, Monitor):
            raise TypeError(f"other must be a Monitor, got {type(other).__name__}")
        if other is self:
            raise ValueError("other must be another monitor, with other rollouts, got this one itself")
        self._agree(other, ("window", "decay", "confidence"))
        one, two = copy.copy(self), copy.copy(other)  # a moment's state of each
        one._threads = two._threads = self._threads
        if not self._names and other._names:
            return two
        if not other._names:
            return one
        self._agree(other, ("_names", "reference", "unit", "scores_of", "_kind", "_sketched"))
        return one._joined(two)

    def _agree(self, other: Monitor, names: Sequence[str]) -> None:
        for name in names:
            a, b = getattr(self, name), getattr(other, name)
            if a != b:
                what = {"_names": "estimators", "_kind": "input", "_sketched": "sketch"}.get(name, name)
                raise ValueError(f"monitors that are merged must have the same {what}, got {a!r} and {b!r}")

    def _joined(self, other: Monitor) -> Monitor:
        """Take in another monitor, which is used up."""
        records = {r.step: r for r in self._records}
        for r in other._records:
            if r.step in records:
                self._refuse_shared()
            records[r.step] = self._merged(records[r.step], r) if r.step in records else r
        for a, b in ((self, other), (other, self)):
            if a._let_go is not None:
                first, last, _ = a._let_go
                least = b._let_go[0] if b._let_go else min(r.step for r in b._records)
                if not (last < least or first > b._last_step):
                    raise ValueError(
                        f"steps {max(first, least)} to {min(last, b._last_step)} have left the window and "
                        "may be in both: merge sooner, or update one monitor with the gathered batch"
                    )
        # In the order of the steps, those that were let go as a whole.
        parts: list[tuple[int, Any]] = [(r.step, r) for r in records.values()]
        parts += [(each._let_go[0], each) for each in (self, other) if each._let_go is not None]
        watch, let_go, kept = PolicyWatch(self.confidence), None, []
        parts.sort(key=lambda part: part[0])
        spare = len(records) - self._most
        for _, part in parts:
            if isinstance(part, StepRecord):
                spare -= 1
                if spare < 0:
                    kept.append(part)
                    continue
                watch, span = watch.add(part), (part.step, part.step, 1)
            else:
                watch, span = watch.join(part._watch), part._let_go
            let_go = span if let_go is None else (let_go[0], span[1], let_go[2] + span[2])
        history = {each["step"]: each for each in (*other.history, *self.history)}
        self._records, self._watch, self._let_go, self._cache = kept, watch, let_go, {}
        self._trim()
        self._kept = [history[step] for step in sorted(history)]
        self._every = max(self._every, other._every)
        while len(self._kept) > _HISTORY:
            del self._kept[1::2]
            self._every *= 2
        return self

    def _refuse_shared(self) -> None:
        """Raise where shards of one step do not have the weights of the whole."""
        for each in self._estimators or ():
            if self._kind == "rollouts" and not separate(each, self.unit == "group"):
                raise ValueError(
                    f"shards of one step cannot be merged for estimator {each.name!r}, whose weights depend "
                    "on the whole batch: gather the rollouts and update once"
                )

    def _merged(self, one: StepRecord, two: StepRecord) -> StepRecord:
        if one.same(two):
            raise ValueError(f"both have the same rollouts at step {one.step}: shards must be disjoint")
        if not (one.mergeable and two.mergeable):
            raise ValueError(
                f"the mean gradients of step {one.step} were not kept, so its shards do not merge: merge "
                "sooner, sketch the scores to fewer coordinates, or gather the rollouts and update once"
            )
        if one.width != two.width:
            raise ValueError(
                f"shards of step {one.step} must have the same coordinates, got {one.width} and {two.width}"
            )
        return one.merge(two)

    def state_dict(self) -> dict[str, Any]:
        """Return what it pools, for a checkpoint: plain numbers, strings, lists and dicts.

        So ``torch.load`` takes it with ``weights_only=True``, and JSON can store it. It lacks functions (of
        weights of your own it has the name alone) and the mean gradients by which shards of a step merge; a
        pickle keeps those.
        """
        with self._lock:
            return {
                "version": _STATE,
                "estimators": None
                if self._estimators is None
                else [_of_estimator(each) for each in self._estimators],
                "reference": self.reference,
                "window": self.window,
                "decay": self.decay,
                "confidence": self.confidence,
                "scores_of": self.scores_of,
                "unit": self.unit,
                "kind": self._kind,
                "names": list(self._names),
                "asked": self._asked,
                "sketched": self._sketched,
                "records": [r.without_means().to_state() for r in self._records],
                "let_go": None if self._let_go is None else list(self._let_go),
                "watch": self._watch.to_state(),
                "history": [dict(each) for each in self._kept],
                "every": self._every,
            }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], estimators: EstimatorLike | Sequence[EstimatorLike] | None = None
    ) -> Monitor:
        """Return the monitor that `state_dict` came from.

        Parameters
        ----------
        state : dict
            What `state_dict` returned.
        estimators : sequence, optional
            The estimators again, where some have functions of your own.
        """
        if not isinstance(state, Mapping) or state.get("version") != _STATE:
            raise ValueError("state must be what state_dict of a Monitor of this version returned")
        own = None if estimators is None else resolve(estimators)
        try:
            return cls._restored(state, own)
        except (KeyError, TypeError) as error:
            raise ValueError(f"state is not what state_dict of a Monitor returned: {error!r}") from error

    @classmethod
    def _restored(cls, state: Mapping[str, Any], estimators: list[Estimator] | None) -> Monitor:
        found = cls(
            reference=state["reference"],
            window=state["window"],
            decay=state["decay"],
            confidence=state["confidence"],
        )
        if state["estimators"] is not None:
            known = {each.name: each for each in estimators or ()}
            chosen = []
            for base, changed, own in state["estimators"]:
                if own and base not in known:
                    raise ValueError(
                        f"estimator {base!r} has weights of your own, which the state lacks: pass estimators="
                    )
                chosen.append(known[base] if own else Estimator(base, tuple(map(tuple, changed))))
            found._estimators = chosen
        found.scores_of, found.unit, found._kind = state["scores_of"], state["unit"], state["kind"]
        found._names, found._asked = list(state["names"]), state["asked"]
        found._sketched, found._every = state["sketched"], state["every"]
        found._records = [StepRecord.of_state(each) for each in state["records"]]
        found._let_go = None if state["let_go"] is None else tuple(state["let_go"])
        found._watch = PolicyWatch.of_state(state["watch"])
        found._kept = [dict(each) for each in state["history"]]
        return found

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = dict(self.__dict__)
            state["_records"], state["_kept"] = list(self._records), list(self._kept)
        del state["_lock"]
        state["_cache"] = {}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        above, below = self._lines()
        table = [_table(self.rows, self.reference or "")] if self.rows else []
        return "\n".join([*above, *table, *below])

    def _repr_html_(self) -> str:
        above, below = self._lines()
        table = estimators_html(self.rows, self.reference or "", self.unit) if self.rows else ""
        return html_lines(above) + table + html_lines(below)

    def _lines(self) -> tuple[list[str], list[str]]:
        """Return what is above and below the table of estimators."""
        if not self.rows:
            return [f"Monitor: {self.steps} steps, nothing to pool yet"], []
        pooled, of = self.pooled, scores_line(self.scores_of, self._sketched)
        head = f"{self.steps} step{'s' * (self.steps > 1)} of {self.units:.4g} {self.unit}s"
        if pooled > 1:
            by_decay = f", each counts {self.decay} times the next"
            last = "the last " if pooled in (self.steps, self.window) else ""
            head += by_decay if self.decay is not None else f", {last}{pooled} pooled"
        below = [f"batch in use: {self.batch_units:.4g} {self.unit}s{_times_noise_scale(self.enough)}"]
        if self.growth is not None:
            below.append(f"variance grows as length^b, b = {self.growth}")
        if self._kind == "rollouts":
            below.append(repr(self.on_policy).splitlines()[-1])
        return [head, *([] if of is None else [of])], below


def _over(units: float, noise_scale: float) -> float:
    if noise_scale == 0:
        return math.inf
    return units / noise_scale


def _told(x: Estimate) -> bool:
    """Whether what rests on a signal has a value to show: without an interval, one that it can have."""
    return x.resolved or (math.isnan(x.low) and math.copysign(1.0, x.value) > 0)


def _scale(x: Estimate) -> str:
    return bounded(x) if _told(x) or not math.isnan(x.low) else "not resolved"


def _times_noise_scale(x: Estimate) -> str:
    """Say how a batch compares with the noise scale, which may have no upper end."""
    if x.low == 0 and math.isfinite(x.high):
        return f", at most {x.high:.4g} times the noise scale"
    if _told(x):
        return f", {x} times the noise scale"
    return "; the noise scale is not resolved"


def _table(rows: Sequence[MonitorRow], reference: str) -> str:
    head = ("estimator", f"ratio to {reference}", "signal |E g|^2", "noise scale")
    cells = [(r.name, str(r.ratio), str(r.signal), _scale(r.noise_scale)) for r in rows]
    return "\n".join(aligned([head, *cells]))


def _of_estimator(each: Estimator) -> list[Any]:
    return [each.base, [list(pair) for pair in each.changed], isinstance(each, OwnEstimator)]
