"""How noisy is a policy gradient, where does the noise come from, what would make it quieter?"""

from rlvar import datasets
from rlvar._version import version as __version__
from rlvar.accumulator import CovarianceAccumulator, Totals
from rlvar.advantages import grpo, kl_rewards, opo, reinforce_pp, rloo, to_steps, whiten
from rlvar.baseline_headroom import Headroom, headroom
from rlvar.catalog import Estimator, estimators
from rlvar.comparison import Comparison, ComparisonRow, compare
from rlvar.config import show_config
from rlvar.estimate import Estimate
from rlvar.files import load_rollouts, save_rollouts
from rlvar.importance import ImportanceRatios, importance_ratios
from rlvar.onpolicy import OnPolicyTest, on_policy_test
from rlvar.pairwise import covariance
from rlvar.prompts import Plan, PromptComponents, plan, prompt_components
from rlvar.returns import gae, lambda_returns, n_step_returns, reward_to_go, vtrace
from rlvar.rollouts import Rollouts
from rlvar.variance import Decomposition, decompose

__all__ = [
    "Comparison",
    "ComparisonRow",
    "CovarianceAccumulator",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Headroom",
    "ImportanceRatios",
    "OnPolicyTest",
    "Plan",
    "PromptComponents",
    "Rollouts",
    "Totals",
    "__version__",
    "compare",
    "covariance",
    "datasets",
    "decompose",
    "estimators",
    "gae",
    "grpo",
    "headroom",
    "importance_ratios",
    "kl_rewards",
    "lambda_returns",
    "load_rollouts",
    "n_step_returns",
    "on_policy_test",
    "opo",
    "plan",
    "prompt_components",
    "reinforce_pp",
    "reward_to_go",
    "rloo",
    "save_rollouts",
    "show_config",
    "to_steps",
    "vtrace",
    "whiten",
]
