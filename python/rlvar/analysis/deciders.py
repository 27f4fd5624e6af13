r"""How many units decide a variance or a ratio, and the note where they are few.

If a unit left out changes a quantity by :math:`c_u` from the mean, the squares of these changes add up to its
squared standard error, and

    n = (sum c_u^2)^2 / sum c_u^4

units decide it: U if all change it alike, 1 if a single one does. Few units mean that the changes have a
heavy tail of which little has been seen. In ``studies/calibration.py`` fewer than four decide the variance or
the ratio in most data sets of the problems whose intervals cover too rarely, and in few of the others from
160 units on. It is a sign of such problems, not of such data sets: within one problem, the data sets that
have not shown the tail have the larger n, and miss more often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

#: Fewer units than these are few.
FEW = 4.0


def decided(variance_units: float, ratio_units: float, units: int) -> str:
    """Say how many of the units decide a variance and, of another estimator, its ratio."""
    known = [f"{each:.3g}" for each in (variance_units, ratio_units) if not math.isnan(each)]
    return f"{', '.join(known)} of {units:,}" if known else ""


def few_decide(behind: Iterable[tuple[str, float, float]], units: int, unit: str) -> str | None:
    """Say which variances and ratios few units decide, of names with the numbers behind the two."""
    names = list(behind)
    whose = [
        f"the {what}{'s' * (len(few) > 1)} of {_list(few)}"
        for what, few in (
            ("variance", [f"{name} ({n:.2g})" for name, n, _ in names if n < FEW]),
            ("ratio", [f"{name} ({n:.2g})" for name, _, n in names if n < FEW]),
        )
        if few
    ]
    if not whose:
        return None
    return (
        f"few of {units:,} {unit}s decide {_list(whose)}: these intervals may be far too narrow; in "
        "simulations, 95% intervals of such data cover in as few as 45% of the cases"
    )


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]][len(names) == 1 :])
