"""How noisy is a policy gradient, where does the noise come from, what would make it quieter?"""

from rlvar import datasets
from rlvar.analysis.accumulator import CovarianceAccumulator, Totals
from rlvar.analysis.blocks import BlockRow
from rlvar.analysis.compare import compare
from rlvar.analysis.compare_gradients import compare_gradients
from rlvar.analysis.compare_rollouts import RolloutsComparison, RolloutsComparisonRow, compare_rollouts
from rlvar.analysis.comparison import Comparison, ComparisonRow
from rlvar.analysis.covariance import covariance
from rlvar.analysis.decompose import Decomposition, decompose
from rlvar.analysis.factored import covariance_factored
from rlvar.analysis.headroom import Headroom, headroom
from rlvar.analysis.on_policy import OnPolicyTest, on_policy_test
from rlvar.analysis.planning import Plan, plan
from rlvar.analysis.prompts import PromptComponents, prompt_components
from rlvar.analysis.run_on_policy import RunOnPolicyTest
from rlvar.config import show_config
from rlvar.config import version as __version__
from rlvar.files import load_rollouts, save_rollouts
from rlvar.monitor import Monitor, MonitorRow
from rlvar.recorded import RecordedRollouts, read_recorded
from rlvar.reporting.pair import PairReport, report_pair
from rlvar.reporting.report import Report, report
from rlvar.reporting.rewards import RewardReport, report_rewards
from rlvar.reporting.run import RunReport
from rlvar.rollouts import Rollouts
from rlvar.stats.batch_noise import BatchNoise
from rlvar.stats.estimate import Estimate
from rlvar.stats.resampling import Bootstrap
from rlvar.stats.sketch_noise import SketchNoise
from rlvar.weights.advantages import grpo, kl_rewards, opo, reinforce_pp, rloo, to_steps, whiten
from rlvar.weights.estimators import Estimator, estimator, estimators
from rlvar.weights.importance import ImportanceRatios, importance_ratios
from rlvar.weights.james_stein import james_stein
from rlvar.weights.length_weights import length_weights
from rlvar.weights.returns import gae, lambda_returns, n_step_returns, reward_to_go, vtrace

__all__ = [
    "BatchNoise",
    "BlockRow",
    "Bootstrap",
    "Comparison",
    "ComparisonRow",
    "CovarianceAccumulator",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Headroom",
    "ImportanceRatios",
    "Monitor",
    "MonitorRow",
    "OnPolicyTest",
    "PairReport",
    "Plan",
    "PromptComponents",
    "RecordedRollouts",
    "Report",
    "RewardReport",
    "Rollouts",
    "RolloutsComparison",
    "RolloutsComparisonRow",
    "RunOnPolicyTest",
    "RunReport",
    "SketchNoise",
    "Totals",
    "__version__",
    "compare",
    "compare_gradients",
    "compare_rollouts",
    "covariance",
    "covariance_factored",
    "datasets",
    "decompose",
    "estimator",
    "estimators",
    "gae",
    "grpo",
    "headroom",
    "importance_ratios",
    "james_stein",
    "kl_rewards",
    "lambda_returns",
    "length_weights",
    "load_rollouts",
    "n_step_returns",
    "on_policy_test",
    "opo",
    "plan",
    "prompt_components",
    "read_recorded",
    "reinforce_pp",
    "report",
    "report_pair",
    "report_rewards",
    "reward_to_go",
    "rloo",
    "save_rollouts",
    "show_config",
    "to_steps",
    "vtrace",
    "whiten",
]


def __dir__() -> list[str]:
    return __all__
