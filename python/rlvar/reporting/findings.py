"""A finding: one sentence, and the figure that supports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rlvar.stats.estimate import Result

_MOST = 6  # sentences of a verdict
NOTE = 100  # the rank of what limits numbers


@dataclass(frozen=True)
class Finding(Result):
    """A sentence with its numbers.

    Attributes
    ----------
    text : str
    figure : str
        Which figure of the page supports it: "estimators", "noise-scale", "headroom", "covariance", "growth",
        "length", "plan", "on-policy", "sampling" or "table".
    kind : str
        "verdict" for the main findings, "note" for what limits their numbers and for all others.
    """

    text: str
    figure: str
    kind: Literal["verdict", "note"]


@dataclass(frozen=True)
class Said:
    """A sentence with its rank: of the verdict are the few that matter most, those of lowest rank."""

    text: str
    figure: str
    rank: int


def said(texts: Sequence[str], figure: str, *ranks: int) -> list[Said]:
    """Give sentences their ranks, the last rank to all that are left."""
    return [Said(text, figure, ranks[min(i, len(ranks) - 1)]) for i, text in enumerate(texts)]


def findings(sentences: Sequence[Said]) -> Iterator[Finding]:
    """Yield the verdict, at most six sentences in their order, and then the notes."""
    ranked = sorted((each.rank, i) for i, each in enumerate(sentences) if each.rank < NOTE)
    main = {i for _, i in ranked[:_MOST]}
    for kind, wanted in (("verdict", True), ("note", False)):
        for i, each in enumerate(sentences):
            if (i in main) is wanted:
                yield Finding(each.text, each.figure, kind)  # type: ignore[arg-type]


class Concluded(Result):
    """A report whose sentences are findings."""

    _also = ("verdict", "notes")

    def _said(self) -> Sequence[Said]:
        raise NotImplementedError

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All sentences, each with the figure behind it: the verdict first, then the notes."""
        return tuple(findings(self._said()))

    @property
    def verdict(self) -> list[str]:
        """The main findings in at most six sentences, each with its numbers."""
        return [each.text for each in self.findings if each.kind == "verdict"]

    @property
    def notes(self) -> list[str]:
        """What limits the numbers, and findings that the verdict has no room for."""
        return [each.text for each in self.findings if each.kind == "note"]
