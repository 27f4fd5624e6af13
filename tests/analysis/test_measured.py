"""No noise scale is printed without the name of the part of the policy that it was measured on."""

import numpy as np
import pytest

import rlvar
from rlvar.analysis.measured import part_of
from sentences import told


@pytest.mark.parametrize(
    ("scores_of", "part"),
    [
        (None, None),
        ("all 162,368 parameters of LlamaForCausalLM", None),
        ("all 4,096 trainable parameters of LlamaForCausalLM, preconditioned", None),
        ("the final norm of LlamaForCausalLM", "the final norm"),
        ("the last block of LlamaForCausalLM", "the last block"),
        ("my features", "my features"),
    ],
)
def test_a_part_is_what_does_not_start_with_all(scores_of, part):
    assert part_of(scores_of) == part


PART, WHOLE = "the final norm of Toy", "all 9 parameters of Toy"


def reports(strong):
    """Reports of a part and of all: success by the score, which is a strong signal, or by chance."""
    rng = np.random.default_rng(3)
    scores, groups = rng.standard_normal((160, 1, 2)), np.arange(160) // 4
    rewards = (scores[:, 0, 0] if strong else rng.standard_normal(160)) > 0.8
    for scores_of in (PART, WHOLE):
        yield rlvar.report(
            rlvar.Rollouts(scores, rewards, groups=groups, scores_of=scores_of), ["single", "rloo"]
        )


@pytest.mark.parametrize(
    ("strong", "said"),
    [
        (False, "For the final norm alone: 40 groups are too few to resolve the signal"),
        (True, "For the final norm alone: with RLOO, two batches of 40 independent groups differ by"),
        (True, "but no rollouts: for the final norm alone, the noise scale of RLOO is then"),
    ],
)
def test_signals_noise_scales_and_batches_name_the_part_they_are_of(strong, said):
    of_part, of_all = reports(strong)
    assert said in told(of_part)
    assert "norm alone" not in told(of_all)


def test_what_a_part_is_good_for_is_in_verdict_notes_and_json():
    of_part, of_all = reports(True)
    notes = [note for note in of_part.comparison.notes if "The scores are those of the final norm" in note]
    assert len(notes) == 1
    assert notes[0] in of_part.notes
    assert notes[0] in of_part.to_dict()["comparison"]["notes"]
    assert "those of" not in " ".join(of_all.comparison.notes)


def test_reports_tables_and_decompositions_are_headed_by_what_the_scores_are_of():
    for report, scores_of in zip(reports(True), (PART, WHOLE), strict=True):
        line = f"Scores: {scores_of}\n"
        assert f"  {line}" in str(report)
        assert str(report.comparison).startswith(line)
        assert report.to_dict()["comparison"]["scores_of"] == scores_of
        text = str(rlvar.decompose(report.rollouts))
        assert text.startswith(line)
        assert (", for the final norm alone" in text) == (scores_of == PART)
    sketched = rlvar.Rollouts(np.ones((12, 1, 3)), np.arange(12), sketched=True)
    assert str(rlvar.decompose(sketched)).startswith("Scores: a 3-dimensional sketch\n")
