import json
import math
import pickle

import numpy as np
import pytest

import rlvar
from rlvar.stats.estimate import bounded

NAN, INF = math.nan, math.inf


def test_an_estimate_is_a_number_with_an_interval():
    x = rlvar.Estimate(0.323, 0.01, 0.2945, 0.3543)
    assert float(x) == 0.323
    assert x.interval == (0.2945, 0.3543)
    assert repr(x) == str(x) == "0.323 (0.2945 to 0.3543)"
    assert repr(rlvar.Estimate(2.0)) == "2"
    assert pickle.loads(pickle.dumps(x)) == x
    with pytest.raises(AttributeError):
        x.value = 1.0


def test_it_is_resolved_where_its_interval_excludes_zero_unless_it_is_known_better():
    assert rlvar.Estimate(1.0, 0.1, 0.5, 2.0).resolved
    assert rlvar.Estimate(-1.0, 0.1, -2.0, -0.5).resolved
    assert not rlvar.Estimate(1.0).resolved
    assert not rlvar.Estimate(0.1, 0.1, -0.2, 0.3).resolved
    assert not rlvar.Estimate(9.0, NAN, 5.0, INF, resolved=False).resolved
    found = json.loads(json.dumps(rlvar.Estimate(np.float64(1.0), low=np.float64(0.5)).to_dict()))
    assert found["resolved"] is True


def test_what_rests_on_a_signal_that_may_be_none_is_not_resolved(rng):
    scores = rng.standard_normal((60, 3, 2))
    for mean, expected in ((0.0, False), (1.0, True)):
        rollouts = rlvar.Rollouts(scores + mean, np.ones(60) + 0.1 * rng.standard_normal(60))
        for interval in ("jackknife", rlvar.Bootstrap(200)):
            result = rlvar.compare(rollouts, ["single", ("now", rng.random((60, 3)))], interval=interval)
            row = result["now"]
            assert row.variance.resolved
            assert row.ratio.resolved
            assert row.signal.resolved == expected
            for name in ("noise_scale", "noise_scale_ratio", "alignment"):
                assert getattr(row, name).resolved == expected, (name, mean, interval)
                assert (bounded(getattr(row, name)) == str(getattr(row, name))) == expected


def test_an_alignment_near_zero_is_resolved_where_both_signals_are(rng):
    scores = rng.standard_normal((500, 1, 2)) + 1.0
    weights = np.sign(scores[:, 0] - 1.0) @ np.array([0.5, -0.5])
    row = rlvar.compare(rlvar.Rollouts(scores, np.ones(500)), ["single", ("across", weights)])["across"]
    assert row.alignment.low < 0 < row.alignment.high
    assert row.alignment.resolved
    assert bounded(row.alignment) == str(row.alignment)


def test_a_bootstrap_checks_what_it_is_given():
    assert rlvar.Bootstrap() == rlvar.Bootstrap(2000, seed=0)
    assert pickle.loads(pickle.dumps(rlvar.Bootstrap(100, seed=np.int64(3)))) == rlvar.Bootstrap(100, seed=3)
    for arguments, error, message in (
        ({"resamples": 0}, ValueError, "resamples must be at least 1"),
        ({"resamples": 99}, ValueError, "resamples must be at least 100"),
        ({"resamples": 1e3}, TypeError, "resamples must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
    ):
        with pytest.raises(error, match=message):
            rlvar.Bootstrap(**arguments)
    with pytest.raises(TypeError):
        rlvar.Bootstrap(100, 1)
