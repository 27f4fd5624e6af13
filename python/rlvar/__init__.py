"""How noisy is a policy gradient, where does the noise come from, what would make it quieter?"""

from rlvar import datasets
from rlvar._version import version as __version__
from rlvar.comparison import Comparison, ComparisonRow, compare
from rlvar.config import show_config
from rlvar.estimate import Estimate
from rlvar.pairwise import covariance
from rlvar.returns import reward_to_go
from rlvar.rollouts import Rollouts, load_rollouts
from rlvar.variance import Decomposition, decompose

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Decomposition",
    "Estimate",
    "Rollouts",
    "__version__",
    "compare",
    "covariance",
    "datasets",
    "decompose",
    "load_rollouts",
    "reward_to_go",
    "show_config",
]
