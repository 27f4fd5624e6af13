"""Scores and gradients of torch policies. It needs torch: ``pip install 'rlvar[torch]'``."""

from rlvar.torch.gradients import UnitGradients, unit_gradients
from rlvar.torch.language import TokenScores, token_scores
from rlvar.torch.minari import minari_rollouts
from rlvar.torch.parts import HeadFactors, head_factors
from rlvar.torch.probe import Probe
from rlvar.torch.scoring import score_recorded
from rlvar.torch.sequences import SequenceScores, sequence_scores
from rlvar.torch.sketch import Sketch
from rlvar.torch.steps import StepScores, per_step_scores

__all__ = [
    "HeadFactors",
    "Probe",
    "SequenceScores",
    "Sketch",
    "StepScores",
    "TokenScores",
    "UnitGradients",
    "head_factors",
    "minari_rollouts",
    "per_step_scores",
    "score_recorded",
    "sequence_scores",
    "token_scores",
    "unit_gradients",
]


def __dir__() -> list[str]:
    return __all__
