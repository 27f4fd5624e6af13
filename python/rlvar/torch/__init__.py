"""Scores and gradients of torch policies. It needs torch: ``pip install 'rlvar[torch]'``."""

from rlvar.torch.gradients import UnitGradients, unit_gradients
from rlvar.torch.language import TokenScores, token_scores
from rlvar.torch.sequences import SequenceScores, sequence_scores
from rlvar.torch.sketch import Sketch

__all__ = [
    "SequenceScores",
    "Sketch",
    "TokenScores",
    "UnitGradients",
    "sequence_scores",
    "token_scores",
    "unit_gradients",
]


def __dir__() -> list[str]:
    return __all__
