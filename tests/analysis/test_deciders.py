"""What is said where few units decide: in the notes of a comparison, its table, its JSON and the report."""

import numpy as np
import pytest

import rlvar
from rlvar.analysis.deciders import FEW

ROLLOUTS = 200


def make_rollouts(rng, **large):
    """Light tails; `large` rewards of some rollouts at all steps, or at the first one alone."""
    rewards = np.ones((ROLLOUTS, 3))
    rewards[7] *= large.get("every", 1.0)
    rewards[7, 0] *= large.get("first", 1.0)
    return rlvar.Rollouts(rng.standard_normal((ROLLOUTS, 3, 2)), rewards)


def test_a_variance_that_few_rollouts_decide_is_in_notes_table_json_and_report(rng):
    rollouts = make_rollouts(rng, every=100.0)
    result = rlvar.compare(rollouts)
    (note,) = result.notes
    assert note.startswith("Few of 200 rollouts decide the variances of single (1) and multi (1)")
    assert note.endswith("95% intervals of such data cover in as few as 45% of the cases.")
    text = str(result)
    assert " ".join(text.split()).endswith(note)
    assert max(map(len, text[text.index("Few of") :].splitlines())) <= 110
    assert result.to_dict()["notes"] == [note]
    report = rlvar.report(rollouts)
    assert note in report.notes
    assert report.to_dict()["comparison"]["notes"] == [note]


def test_a_ratio_that_few_rollouts_decide_is_named_beside_its_variances(rng):
    # Of the tail at step 1 single-step has more: its variance and the ratio rest on one rollout.
    result = rlvar.compare(make_rollouts(rng, first=40.0))
    assert "variances of single (1) and multi (1" in result.notes[0]
    assert "and the ratio of multi (1" in result.notes[0]
    assert result["multi"].ratio_units < FEW


def test_only_rows_that_are_shown_are_named(rng):
    result = rlvar.compare(make_rollouts(rng, first=40.0)).only(["single"])
    assert result.notes[0].startswith("Few of 200 rollouts decide the variance of single (1): ")


def test_rollouts_that_decide_alike_have_no_note(rng):
    result = rlvar.compare(make_rollouts(rng))
    assert min(result["single"].variance_units, result["multi"].ratio_units) > FEW
    assert result.notes == ()


def test_groups_are_what_decides_where_they_are_the_units(rng):
    scores, rewards = rng.standard_normal((120, 1, 3)), np.ones(120)
    rewards[:4] = 1000.0
    result = rlvar.compare(rlvar.Rollouts(scores, rewards, groups=np.arange(120) // 4), ["single"])
    assert result.notes[0].startswith("Few of 30 groups decide the variance of single (1")


def test_what_never_varies_is_decided_by_none(rng):
    # As where none of some rollouts has succeeded: an interval of 0 to 0 has seen nothing.
    result = rlvar.compare(rlvar.Rollouts(rng.standard_normal((40, 1, 2)), np.zeros(40)), ["single"])
    assert result["single"].variance.interval == (0.0, 0.0)
    assert result.notes[0].startswith("Few of 40 rollouts decide the variance of single (0): ")


def test_of_few_units_the_notes_say_that_alone(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((6, 1, 2)), np.arange(6.0))
    with pytest.warns(UserWarning, match="only 6 rollouts"):
        assert rlvar.compare(rollouts).notes == ("Only 6 rollouts: intervals may be far too narrow.",)


def test_units_that_change_a_variance_alike_all_decide_it(rng):
    # Half of them have twice the norm of the others: each changes the variance by as much, up or down.
    signs = np.where(rng.permutation(100) % 2, 1.0, -1.0) * np.repeat([1.0, 2.0], 50)
    centred = np.concatenate([signs, -signs])
    row = rlvar.compare(rlvar.Rollouts(centred[:, None, None], np.ones(200)), ["single"])["single"]
    assert row.variance_units == pytest.approx(200)
