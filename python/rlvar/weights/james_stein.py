r"""Advantages about a shrunken baseline: a prompt's own mean, drawn towards that of the other prompts.

The mean of the few other completions of a prompt is a noisy baseline. The mean of all other prompts is a
quiet one, but off by the difference between prompts. The best mixture of the two weighs noise against
difference.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rlvar import _check
from rlvar._types import Double
from rlvar.stats.moments import without_each
from rlvar.weights.advantages import Groups, _scored


@_check.quiet
def james_stein(rewards: ArrayLike, groups: Groups) -> Double:
    r"""Advantages about the James-Stein baseline: the leave-one-out mean, shrunk to that of other prompts.

    For sample i of prompt u, one of P prompts, with :math:`K_u` samples and mean :math:`\bar r_u`:

    .. math:: A_i = r_i - (1 - \lambda_u) \frac{1}{K_u - 1} \sum_{j \ne i} r_j
              - \lambda_u \frac{1}{P - 1} \sum_{w \ne u} \bar r_w, \qquad
              \lambda_u = \frac{P - 1}{P} \frac{v_u}{v_u + s_u}

    where :math:`K_u v_u` is the mean over the other prompts of the sample variance of their rewards, and
    :math:`s_u` the variance (ddof 0) of the means of the other prompts.

    Parameters
    ----------
    rewards, groups : shape (N,), as for `rloo`

    Returns
    -------
    ndarray, shape (N,), float64
        Advantages; exactly 0 where the reward is NaN. The only sample of a prompt takes the mean of the
        other prompts for its baseline; a prompt without others gives the advantages of `rloo`, and its only
        sample the reward itself.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, an infinite reward (the first is named) or labels that are not hashable.

    Warns
    -----
    UserWarning
        If rewards are NaN, with their number.

    Notes
    -----
    The baseline includes neither the sample's own reward nor, in :math:`\lambda_u`, that of any sample of its
    prompt, so the gradient is unbiased. Where prompts are draws with means of variance :math:`\tau^2` and the
    rewards of each have variance :math:`\sigma^2`, the mixture with the least mean squared error has

    .. math:: \lambda = \frac{v}{v + (P \tau^2 + v) / (P - 1)} = \frac{P - 1}{P} \frac{v}{v + \tau^2}, \qquad
              v = \sigma^2 / K

    (with the K - 1 other samples of the prompt it is a little larger). The variance of the observed means
    that stands for :math:`\tau^2` here, as in the authors' code, is about :math:`\tau^2 + v`: it shrinks by
    less than the best, by half of it if all prompts are alike. The best estimate of the mean reward is not
    the best baseline where rewards and squared scores are correlated: see "single-optimal" of `estimators`.

    The intervals of `compare` are for the mixture that these rollouts give (``docs/mathematics.md``).

    The authors' code (JSPO-Official) leaves :math:`(P - 1) / P` out and adds 1e-6 to :math:`v + s`.

    References
    ----------
    Zeng et al., "Shrinking the variance" (2025), arXiv 2511.03710; James & Stein (1961).

    Examples
    --------
    >>> import rlvar
    >>> rewards, prompts = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b", "c", "c"]
    >>> rlvar.james_stein(rewards, prompts)  # of a: v = 1/8, s = 1/16, lambda = 4/9
    array([ 0.66666667, -0.88888889,  0.33333333,  0.33333333, -0.88888889,
            0.66666667])
    >>> rlvar.rloo(rewards, prompts)
    array([ 1., -1.,  0.,  0., -1.,  1.])
    """
    scored = _scored(rewards, groups)
    labels = np.unique(scored.labels, return_inverse=True)[1].ravel()
    sizes = np.bincount(labels)
    prompts, deviations = len(sizes), scored.centred()
    own = deviations * (sizes / np.maximum(sizes - 1, 1))[labels]  # reward minus the mean of the others
    if prompts < 2:
        return scored.finish(own if (sizes > 1).all() else scored.rewards)
    # In units of a power of two, so that no square is out of range; about the median prompt, so that the
    # variance of some means loses no digits to another one.
    means = scored.rewards - deviations
    means, first = np.zeros(prompts), means
    means[labels] = first
    means -= np.sort(means)[prompts // 2]
    largest = max(np.abs(deviations).max(), np.abs(means).max())
    unit = math.ldexp(1.0, max(math.frexp(largest)[1], -1022))
    several = sizes > 1
    squares = np.bincount(labels, np.square(deviations / unit)) / np.maximum(sizes - 1, 1)
    within = without_each(squares) / np.maximum(without_each(several.astype(np.float64)), 1) / sizes
    others = without_each(means / unit) / (prompts - 1)
    between = np.maximum(without_each(np.square(means / unit)) / (prompts - 1) - np.square(others), 0.0)
    total = within + between
    shrink = np.divide(within, total, out=np.zeros(prompts), where=total > 0) * (1 - 1 / prompts)
    shrink = np.where(several, shrink, 1.0)[labels]
    of_others = deviations + (means - others * unit)[labels]  # reward minus the mean of the other prompts
    return scored.finish((1 - shrink) * own + shrink * of_others)
