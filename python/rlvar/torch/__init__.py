"""Scores and gradients of torch policies. It needs torch: ``pip install 'rlvar[torch]'``."""

from rlvar.torch.language import TokenScores, token_scores
from rlvar.torch.scoring import score_recorded
from rlvar.torch.sketch import Sketch

__all__ = ["Sketch", "TokenScores", "score_recorded", "token_scores"]


def __dir__() -> list[str]:
    return __all__
