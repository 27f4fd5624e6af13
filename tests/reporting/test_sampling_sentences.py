from dataclasses import replace

import numpy as np
import pytest

import rlvar
from rlvar.analysis.sampling import sampling_of
from rlvar.reporting.sampling import on_policy_sentence, sampling_sentences
from rlvar.weights.batch import Batch
from sentences import told


@pytest.fixture
def sampling(rng):
    return sampling_of(Batch.of(rlvar.Rollouts(rng.standard_normal((20, 2, 2)), rng.standard_normal(20))))


def test_an_alarm_names_the_causes_that_fit_and_no_others(rng, sampling):
    shifted = rlvar.on_policy_test(rng.standard_normal((200, 1, 2)) + 0.5)
    text = on_policy_sentence(shifted, sampling, stale=False)
    for cause in ("another policy or temperature", "filtering by outcome,", "an action too rare to appear"):
        assert cause in text
    assert f"{100 * shifted.unseen_share:.2g}% or more" in text
    for other in ("repeated", "backward pass", "as the groups show", "were not sampled"):
        assert other not in text
    correlated = rlvar.on_policy_test(np.repeat(rng.standard_normal((200, 1, 2)), 4, axis=1))
    copies = replace(sampling, repeated=7, filtered=True)
    text = on_policy_sentence(correlated, copies, stale=False)
    for said in ("These look like rows of one backward pass", "one number a rollout, hold"):
        assert said in text
    for cause in ("repeated rollouts (7 here)", "one score given to several steps", "filtering by outcome"):
        assert cause in text
    both = rlvar.on_policy_test(0.4 + np.repeat(rng.standard_normal((200, 1, 2)), 4, axis=1))
    text = on_policy_sentence(both, copies, stale=False)
    for cause in ("repeated rollouts (7 here)", "rows of one backward pass", "as the groups show"):
        assert cause in text
    assert "Possible causes" not in on_policy_sentence(both, copies, stale=True)


def test_what_is_found_consistent_says_what_it_does_not_exclude(rng, sampling):
    for n, d in ((20, 1), (400, 30)):
        test = rlvar.on_policy_test(rng.standard_normal((n, 3, d)))
        text = on_policy_sentence(test, sampling, stale=False)
        assert f"whose square is up to {100 * test.mean_score.high:.2g}% of their variance" in text


def test_the_noise_scale_of_kept_groups_is_said_only_where_it_is_resolved(sampling):
    dead = replace(sampling, groups=40, dead_groups=10, filtered=False)
    unknown = rlvar.Estimate(80.0, np.nan, 20.0, np.inf, resolved=False)
    known = rlvar.Estimate(79.0, 9.0, 60.0, 99.0, resolved=True)
    for estimate in (None, unknown):
        (sentence,) = sampling_sentences(dead, estimate)
        assert "10 of 40 groups are dead" in sentence
        assert "noise scale" not in sentence
    (sentence,) = sampling_sentences(dead, known)
    assert "the noise scale of RLOO is then 59 groups that are kept, which takes 78.7 drawn;" in sentence
    assert sampling_sentences(replace(dead, dead_groups=0, filtered=None), known) == []


def test_what_rests_on_unfiltered_groups_says_so_where_none_of_them_is_dead():
    rng, condition = np.random.default_rng(0), "assumes that no groups were dropped for their outcome"
    scores, groups = rng.standard_normal((96, 1, 3)), np.arange(96) // 8
    right = np.tile([1.0, 0.0], 48)
    spoken = [
        told(rlvar.report(rlvar.Rollouts(scores, rewards, groups=groups), names))
        for rewards, names in (
            (right, ["single", "rloo"]),
            (np.where(groups == 1, 1.0, right), ["single", "rloo"]),  # one is dead
            (rng.standard_normal(96), ["single", "rloo"]),
            (right, ["single"]),
        )
    ]
    assert [condition in text for text in spoken] == [True, False, False, False]
