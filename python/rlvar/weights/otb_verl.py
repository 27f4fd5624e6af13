r"""The optimal token baseline as verl computes it, from what its actor knows without a backward pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.weights.batch import Batch

_EPS = 1e-8  # verl's, on the denominator


def otb_verl(batch: Batch, groups: NDArray[np.int64], score_squares: Double) -> Double:
    r"""Return-to-go minus verl's optimal token baseline, that of the prompt's rollouts and a proxy.

    .. math:: w_{i,t} = G_{i,t} - \frac{\sum_j G_{j,t} W_{j,t}}{\sum_j W_{j,t} + 10^{-8}}, \qquad
              W_{j,t} = \sum_{k \le t} \rho_{j,k}^2 q_{j,k}

    over the rollouts j of i's group, i itself included, that are alive at step t; 0 for the baseline where i
    is alone. The q are the `score_squares` of the rollouts, in verl the squared norm of the score by the
    logits, :math:`1 - 2 \pi(y) + \sum_a \pi(a)^2`; the :math:`\rho` importance ratios, if there are any.

    Notes
    -----
    `token_baseline` ("otb") has the same formula with three differences: its squares are those of the
    scores themselves, its expectations are over all prompts of the other folds, and so it is unbiased. Here
    the rollout is in its own baseline, which shrinks the mean by about 1/K and turns it.

    In the logits a token's score is :math:`e_y - \pi`, of squared norm
    :math:`(1 - \pi(y))^2 + \sum_{a \ne y} \pi(a)^2`, the q above. In the parameters it is
    :math:`J^T (e_y - \pi)`, of which q says little if the Jacobian J changes from token to token.

    References
    ----------
    Li et al., "The optimal token baseline" (2026), arXiv 2602.07078; verl 0.9.1,
    ``compute_optimal_token_baseline_advantage``, for rollouts without gaps.
    """
    ratios = 1.0 if batch.importance is None else np.square(batch.importance.values)
    energy = np.where(batch.live, score_squares * ratios, 0.0).cumsum(axis=1)
    energy = np.where(batch.live, energy, 0.0)
    to_go = batch.to_go()
    units = _check.Units(np.argsort(groups, kind="stable"), np.append(0, np.bincount(groups).cumsum()))
    above, below, alive = (units.sums(x)[groups] for x in (to_go * energy, energy, batch.live * 1.0))
    baseline = np.where(alive > 1, above / (below + _EPS), 0.0)
    return np.where(batch.live, to_go - baseline, 0.0)
