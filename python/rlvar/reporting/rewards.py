r"""What rewards alone say: dead groups, the variance within prompts and between them, what completions buy.

With a reward R of one completion, Var R = between + within, and the mean reward of a prompt with K
completions has the variance V(K) = between + within / K. What of R lies between prompts a baseline of each
prompt takes away; how noisy the gradient is takes scores too.

The share of groups that would be dead with k completions: for each group of n with c_v of value v the share
of its subsets of size k that are all equal, sum over v of C(c_v, k) / C(n, k), which is unbiased for any
rewards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.analysis.prompt_curves import Components, one_way
from rlvar.analysis.sampling import dead_groups, filtered_groups
from rlvar.recorded import RecordedRollouts
from rlvar.reporting.text import painted, table, titled, wrapped
from rlvar.reporting.words import capital
from rlvar.rollouts import Rollouts
from rlvar.stats import moments
from rlvar.stats.estimate import Estimate, Result
from rlvar.stats.intervals import jackknife
from rlvar.stats.shown import measured, number
from rlvar.weights.batch import Batch

_DOUBLINGS = 2  # of the completions in use


class CompletionsRow(NamedTuple):
    """What K completions of a prompt would do.

    Attributes
    ----------
    completions : int
        K.
    variance : Estimate
        V(K), of a prompt's mean reward.
    dead : float or None
        Share of the groups whose rewards would all be equal; None where no group is as large.
    """

    completions: int
    variance: Estimate
    dead: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "completions": self.completions,
            "variance": self.variance.to_dict(),
            "dead": self.dead,
        }


@dataclass(frozen=True, repr=False)
class RewardReport(Result):
    """What `rlvar report` prints for rewards without scores.

    Attributes
    ----------
    source, format : str
        The file, and whose it is.
    rollouts : int
        Their number.
    mean : Estimate
        Mean reward; groups are the units, if there are some.
    std, least, most : float
        Standard deviation and range of the rewards.
    groups : int or None
        Number of groups; None without, and then all below is None or empty.
    sizes : (int, int) or None
        Rollouts of the smallest and of the largest group.
    dead_groups, dead_at_least, dead_at_most : int or None
        Groups of two rollouts or more whose rewards are all equal; all the least, all the most there is.
    filtered : bool or None
        Whether groups were kept by outcome, as `Sampling.filtered`.
    within, between, between_share : Estimate or None
        Variance of a reward given its prompt, that between prompts, and its share of both.
    completions : list of CompletionsRow
        V(K) and the share of dead groups for several K.
    scored_from : str
        "token ids", "text" or "": what scores could be computed from.
    notes : tuple of str
        On the file.
    """

    _also = ("verdict",)
    source: str
    format: str
    rollouts: int
    mean: Estimate
    std: float
    least: float
    most: float
    groups: int | None
    sizes: tuple[int, int] | None
    dead_groups: int | None
    dead_at_least: int | None
    dead_at_most: int | None
    filtered: bool | None
    within: Estimate | None
    between: Estimate | None
    between_share: Estimate | None
    completions: list[CompletionsRow]
    scored_from: str
    notes: tuple[str, ...]

    @property
    def verdict(self) -> list[str]:
        """The findings in plain sentences, each with its numbers, and what is missing."""
        return [*self._on_groups(), *self._on_completions(), self._missing()]

    def _on_groups(self) -> list[str]:
        if self.std == 0:
            return [f"All rewards are {self.most:g}: there is nothing to learn from them."]
        if self.groups is None:
            return [
                "There are no groups: dead groups and what completions buy take rollouts that share prompts. "
                "Name the column that tells prompts apart (--group), or of the prompts (--prompt)."
            ]
        if self.filtered:
            return [
                f"None of the {self.groups:,} groups is dead, its rewards all equal, though their success "
                "rates make that improbable (below 1%): they seem to have been kept by their outcome."
            ]
        dead = self.dead_groups
        if not dead:
            return ["No group is dead: in each the rewards differ."]
        all_of = [
            f"{count} with all rewards at the {which} ({value:g})"
            for count, which, value in (
                (self.dead_at_least, "least", self.least),
                (self.dead_at_most, "most", self.most),
            )
            if count
        ]
        of_which = f", {' and '.join(all_of)}" if all_of else ""
        verb = "is" if dead == 1 else "are"
        return [
            f"{dead:,} of {self.groups:,} groups {verb} dead ({dead / self.groups:.0%}{of_which}): all their "
            "rewards are equal, so RLOO and GRPO learn nothing from them."
        ]

    def _on_completions(self) -> list[str]:
        share = self.between_share
        if share is None or self.std == 0 or math.isnan(share.low):
            return []
        if not 0 <= share.low <= share.high <= 1:
            return [
                "How much of the variance of the rewards lies between prompts, and so what completions buy, "
                f"is not resolved with these {self.groups} groups."
            ]
        used, twice = self.completions[-_DOUBLINGS - 1], self.completions[-_DOUBLINGS]
        return [
            f"{share.value:.0%} of the variance of the rewards lies between prompts ({share.confidence:.0%} "
            f"interval {share.low:.0%} to {share.high:.0%}). A baseline of each prompt, as RLOO's and "
            "GRPO's, takes that away; the rest is from completion to completion.",
            f"With {twice.completions} completions in place of {used.completions} a prompt's mean reward "
            f"would have {twice.variance.value / used.variance.value:.2f} times the variance; twice as many "
            "prompts halve that of the batch's mean reward.",
        ]

    def _missing(self) -> str:
        start = "These are rewards alone. How noisy the gradient is takes scores: "
        if not self.scored_from:
            return start + (
                "they need token ids or text, which the file lacks; name their columns (--prompt, "
                "--response), or have the trainer record them."
            )
        return (
            f"{start}rlvar report {self.source} --model MODEL computes them from the {self.scored_from}, "
            "with the checkpoint that sampled these rollouts."
        )

    def text(self, *, full: bool = False, colour: bool = False) -> str:
        """Return the report as a terminal shows it, in at most 80 columns: what ``print`` shows.

        Parameters
        ----------
        full : bool, default False
            With the table of numbers of completions too.
        colour : bool, default False
            With the codes that make a terminal show colours.

        Returns
        -------
        str
        """
        groups = "" if self.groups is None else f", in {self.groups:,} groups"
        if self.sizes is not None:
            low, high = self.sizes
            groups += f" of {low}" if low == high else f" of {low} to {high}"
        blocks = [
            [
                wrapped(f"Rewards: {self.source}", indent=0),
                wrapped(f"N = {self.rollouts:,} rollouts{groups}, {self.format}"),
                *(wrapped(f"{capital(note)}.") for note in self.notes),
            ],
            titled("Verdict", self.verdict, colour),
            self._table(colour),
        ]
        if self.completions and full:
            blocks.append(self._of_completions(colour))
        elif self.completions:
            blocks[-1].append("  --full adds a table of the number of completions.")
        return "\n\n".join("\n".join(block) for block in blocks)

    def __repr__(self) -> str:
        return self.text()

    def _table(self, colour: bool) -> list[str]:
        rows = [
            ("mean", measured(self.mean)),
            ("std", number(self.std)),
            ("range", f"{number(self.least)} to {number(self.most)}"),
            *(
                (name, measured(part) if part.resolved else f"{measured(part)}, not resolved")
                for name, part in (
                    ("variance within prompts", self.within),
                    ("variance between prompts", self.between),
                )
                if part is not None
            ),
        ]
        head, *lines = table(("rewards", ""), rows)
        units = "rollouts" if self.groups is None else "groups"
        level = f"{self.mean.confidence:.0%} intervals in brackets"
        count = self.rollouts if self.groups is None else self.groups
        return [
            painted(head.strip().capitalize(), "bold", colour),
            *lines,
            wrapped(f"{level}: jackknife over {count:,} {units}."),
        ]

    def _of_completions(self, colour: bool) -> list[str]:
        rows = [
            (f"{k:,}", measured(variance), "-" if dead is None else f"{dead:.0%}")
            for k, variance, dead in self.completions
        ]
        return [
            painted("Mean reward of a prompt with K completions", "bold", colour),
            *table(("K", "variance of a prompt", "dead groups"), rows),
        ]


@_check.quiet
def report_rewards(
    recorded: RecordedRollouts, *, confidence: float = 0.95, source: str | None = None
) -> RewardReport:
    """Say what the rewards of recorded rollouts tell, without scores.

    Parameters
    ----------
    recorded : RecordedRollouts
        What `read_recorded` gave.
    confidence : float, default 0.95
        Nominal coverage of the intervals, the jackknife's over groups.
    source : str, optional
        Where the rollouts came from: the first line of the report. By default their own.

    Returns
    -------
    RewardReport
        ``print(report)`` shows it; ``report.verdict`` has the findings in sentences.

    Raises
    ------
    TypeError, ValueError
        For other things than recorded rollouts, or fewer than two.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rewards = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    >>> recorded = rlvar.RecordedRollouts("mine", "mine", rewards, groups=np.array([0, 0, 1, 1, 2, 2]))
    >>> rlvar.report_rewards(recorded).dead_groups
    2
    """
    if not isinstance(recorded, RecordedRollouts):
        raise TypeError(f"recorded must be a RecordedRollouts, got {type(recorded).__name__}")
    level, r, labels = _check.confidence(confidence), recorded.rewards, recorded.groups
    n = len(r)
    if n < 2:
        raise ValueError(f"{recorded.source}: two rollouts or more are needed, got {n}")
    labels = None if labels is None or labels.max() == 0 else labels
    units = _check.units(labels, n)
    left_out = moments.without_each(units.sums(r)) / moments.without_each(units.sizes.astype(np.float64))
    known: dict[str, Any] = dict.fromkeys(
        ("groups", "sizes", "dead_groups", "dead_at_least", "dead_at_most", "filtered", "within", "between",
         "between_share")
    )  # fmt: skip
    known["completions"] = []
    _check.warn_few(len(units), "rollout" if labels is None else "group")
    if labels is not None:
        known |= _of_groups(r, labels, units, level)
    return RewardReport(
        source=recorded.source if source is None else source,
        format=recorded.format,
        rollouts=n,
        mean=jackknife(float(r.mean()), left_out, level),
        std=float(r.std(ddof=1)),
        least=float(r.min()),
        most=float(r.max()),
        scored_from="token ids" if recorded.ids is not None else "text" if recorded.texts is not None else "",
        notes=recorded.notes,
        **known,
    )


def _of_groups(r: Double, labels: NDArray[np.int64], units: _check.Units, level: float) -> dict[str, Any]:
    sizes = units.sizes
    dead = dead_groups(r, labels, units) & (sizes > 1)
    first = r[units.members[units.offsets[:-1]]]
    batch = Batch.of(Rollouts(np.ones((len(r), 1, 1)), r, groups=labels))
    curve = one_way(r[:, None], labels, units)
    between, within = curve.values[:2].tolist()
    share_without = curve.left_out[0] / (curve.left_out[0] + curve.left_out[1])
    whole = between + within
    used = max(round(len(r) / len(units)), 1)
    return {
        "groups": len(units),
        "sizes": (int(sizes.min()), int(sizes.max())),
        "dead_groups": int(np.count_nonzero(dead)),
        "dead_at_least": int(np.count_nonzero(dead & (first == r.min()))),
        "dead_at_most": int(np.count_nonzero(dead & (first == r.max()))),
        "filtered": filtered_groups(batch),
        "within": jackknife(within, curve.left_out[1], level, positive=True),
        "between": jackknife(between, curve.left_out[0], level),
        "between_share": jackknife(between / whole if whole else math.nan, share_without, level),
        "completions": _completions(curve, r, units, used, level),
    }


def _completions(
    curve: Components, r: Double, units: _check.Units, used: int, level: float
) -> list[CompletionsRow]:
    """V(K) for halves of the completions in use, these and doubles of them."""
    ks = sorted({used >> i for i in range(used.bit_length())} | {used << i for i in range(_DOUBLINGS + 1)})
    ends = zip(units.offsets, units.offsets[1:], strict=False)
    counts = [np.unique(r[units.members[a:b]], return_counts=True)[1].tolist() for a, b in ends]
    return [CompletionsRow(k, curve.interval(k, level), _dead_with(k, counts)) for k in ks]


def _dead_with(k: int, counts: list[list[int]]) -> float | None:
    """Share of groups, each by how often its values come, of which k completions would all be equal."""
    if k < 2:
        return None
    large = [each for each in counts if sum(each) >= k]
    shares = [sum(math.comb(c, k) for c in each) / math.comb(sum(each), k) for each in large]
    return sum(shares) / len(shares) if shares else None
