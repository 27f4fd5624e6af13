"""What `_check` takes, what it refuses and in which words; and that every public function asks it."""

import decimal
import fractions
import sys
import types
import warnings

import numpy as np
import pytest

import rlvar
from rlvar import _check

ONES = np.ones((2, 3))


class Raises:
    """An array of another library that cannot be read now."""

    shape = (2, 3)

    def __array__(self, dtype=None, copy=None):
        raise KeyError("the buffer was donated")


class OnDevice(Raises):
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it")


class Column:
    """A column of pandas, polars or jax: what counts is `__array__`."""

    def __init__(self, values):
        self.values = np.array(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


# Arrays


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[1, 2]], [[1.0, 2.0]]),
        ([[True, False]], [[1.0, 0.0]]),
        ([[fractions.Fraction(1, 2), decimal.Decimal("0.25"), 2**70]], [[0.5, 0.25, 2.0**70]]),
        (np.array([[1, 2]], object), [[1.0, 2.0]]),
        ([[np.float32(0.5), np.int8(3)]], [[0.5, 3.0]]),
        ([[5e-324, -1e308]], [[5e-324, -1e308]]),
        ([np.array([1.0, 2.0]), (3, 4)], [[1.0, 2.0], [3.0, 4.0]]),
        (Column([[1, 2]]), [[1.0, 2.0]]),
        ([Column([1, 2]), Column([3, 4])], [[1.0, 2.0], [3.0, 4.0]]),
        (np.array([[1, 2]], ">i2"), [[1.0, 2.0]]),
    ],
)
def test_numbers_of_any_kind_are_taken_exactly(value, expected):
    result = _check.floats("x", value)
    np.testing.assert_array_equal(result, expected)


def test_a_column_with_missing_numbers_is_as_a_list_with_none():
    for column in (Column([1.0, None, 0.0]), [1.0, None, 0.0], np.array([1.0, None, 0.0], object)):
        with pytest.warns(UserWarning, match="1 of 3 rewards are NaN; they are ignored and get advantage 0"):
            result = rlvar.rloo(column, ["p"] * 3)
        np.testing.assert_array_equal(result, [1.0, 0.0, -1.0])


RECTANGLE = "x cannot be read as an array; pad its rows and pass lengths=: .*inhomogeneous"
REAL = "x must be float32, float64, half precision, integers or booleans, got dtype "


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0], [1.0, 2.0]], ValueError, RECTANGLE),
        ([["a"]], TypeError, f"{REAL}<U1"),
        ([[1j]], TypeError, f"{REAL}complex128"),
        (np.ones(2, np.longdouble), TypeError, f"{REAL}(float128|float96)"),
        (np.array([1], "M8[s]"), TypeError, f"{REAL}datetime64"),
        (np.zeros(2, [("a", float)]), TypeError, REAL),
        ([[1.0, None]], TypeError, r"x must be real numbers, got x\[0, 1\] = None"),
        ([[1.0, [2]]], ValueError, RECTANGLE),
        ([1, "a", None], TypeError, r"x must be real numbers, got x\[1\] = 'a'"),
        ([1, fractions.Fraction(1, 2), 1j], TypeError, r"got x\[2\] = 1j"),
        ([1, 10**400], TypeError, r"x must be real numbers, got x\[1\] = 1000"),
        (None, TypeError, "x must be an array of numbers, got NoneType"),
        (object(), TypeError, "x must be an array of numbers, got object"),
        ({1, 2}, TypeError, "x must be an array of numbers, got set"),
        (iter([1]), TypeError, "x must be an array of numbers, got list_iterator"),
        (Raises(), TypeError, "x cannot be read as an array: 'the buffer was donated'"),
        ([Raises()], TypeError, "x cannot be read as an array"),
        (OnDevice(), TypeError, r"x cannot be read as an array: can't convert .* Use Tensor.cpu\(\)"),
        (np.ma.masked_array([1.0]), TypeError, "x cannot be read as an array: it is a masked array; fill it"),
        ([np.ma.masked_array([1.0])], TypeError, "it is a masked array"),
        ([1.0, np.ma.masked], TypeError, "it is a masked array"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_named(value, error, message):
    with pytest.raises(error, match=message):
        _check.floats("x", value)


class OfTorch:
    """What the core asks of a tensor, whose library it never imports."""

    is_meta = is_nested = is_quantized = False
    layout = "torch.strided"

    def __init__(self, values, dtype="torch.float32"):
        self.values, self.dtype, self.requires_grad = np.asarray(values), dtype, True

    def detach(self):
        detached = OfTorch(self.values, self.dtype)
        detached.requires_grad = False
        return detached

    def float(self):
        as_float = OfTorch(self.values)
        as_float.requires_grad = self.requires_grad
        return as_float

    def numpy(self, force):
        assert force
        assert not self.requires_grad
        assert self.dtype == "torch.float32"
        return self.values


class Sharded(OfTorch):
    def full_tensor(self):
        raise AssertionError


def test_tensors_are_read_without_an_import_of_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=OfTorch))
    for tensor in (OfTorch([1, 2]), OfTorch([1, 2], "torch.bfloat16"), [OfTorch(1), OfTorch(2)]):
        np.testing.assert_array_equal(_check.floats("x", tensor), [1, 2])
    with pytest.raises(TypeError, match=r"x cannot be read .*distributed tensor; pass its full_tensor\(\)"):
        _check.floats("x", Sharded([1, 2]))


def test_bfloat16_and_smaller_floats_of_ml_dtypes_are_taken():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        assert _check.floats("x", np.array([1.5, -2.0], dtype)).tolist() == [1.5, -2.0]


# Labels

NAT = np.array(["NaT", "NaT", "2020-01-01"], "M8[D]")


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        ([None, None, "a"], 0),
        (["a", np.nan, "a"], 1),
        (np.array([1.0, 2.0, np.nan]), 2),
        (np.array(["a", None, "a"], object), 1),
        (NAT, 0),
        (NAT.astype("M8[ns]"), 0),
        (NAT - NAT[2], 0),
        (list(NAT), 0),
        ([("a", 1), ("a", None), ("a", 1)], 1),
        (["a", "a", np.ma.masked], 2),
        ([1, 1, decimal.Decimal("nan")], 2),
        ([1, type("NAType", (), {})(), 1], 1),
        (Column([1.0, np.nan, 1.0]), 1),
    ],
)
def test_a_missing_label_is_an_error_that_says_where(labels, index):
    with pytest.raises(ValueError, match=rf"a label for each rollout, got groups\[{index}\]"):
        rlvar.rloo([1.0, 2.0, 9.0], labels)


def test_labels_are_told_apart_exactly():
    for labels in ([2**53, 2**53 + 1, 2**53], np.array([2**63, 2**63 + 1, 2**63], np.uint64)):
        assert _check.group_labels(labels, 3).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.ma.masked_array([1, 1, 2], mask=[0, 0, 1]), TypeError, "groups cannot .*: it is a masked array"),
        ([[0], [0], [1]], TypeError, r"groups must be hashable labels, got groups\[0\] = \[0\]"),
        (0, TypeError, "groups must be a sequence of labels, got int"),
        ({1, 2, 3}, TypeError, "groups must be a sequence of labels, got set"),
        ({1: 2, 3: 4, 5: 6}, TypeError, "groups must be a sequence of labels, got dict"),
        (iter([1, 2, 3]), TypeError, "groups must be a sequence of labels, got list_iterator"),
        ([0], ValueError, r"groups must have shape \(N,\) = \(3,\), got \(1,\)"),
        (np.zeros((3, 1)), ValueError, r"groups must have shape \(N,\) = \(3,\), got \(3, 1\)"),
        (Raises(), TypeError, "groups cannot be read as an array"),
    ],
)
def test_what_are_no_labels_is_named(labels, error, message):
    with pytest.raises(error, match=message):
        _check.group_labels(labels, 3)


# Steps, numbers and the rest

SHAPE = (2, 3)
HALF = np.array([[0.5, 0.5, np.nan]] * 2)


def scan(**options):
    names = ("terminated", "truncated", "next_values", "bootstrap_value")
    ends = tuple(options.pop(name, None) for name in names)
    given = {"arrays": {"rewards": ONES}, "gamma": 1.0, "lengths": None, "mask": None, "time_axis": -1}
    return _check.scan(**{**given, **options}, ends=ends)


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: _check.scores(ONES), ValueError, r"scores must have shape \(N, T, D\), got \(2, 3\)"),
        (lambda: _check.scores(np.ones((1, 2, 3))), ValueError, "scores must have at least N = 2 rollouts"),
        (lambda: _check.scores(np.ones((2, 0, 3))), ValueError, "scores must have T >= 1 steps and D >= 1"),
        (
            lambda: _check.doubles("x", ONES, (3, 2), (3,)),
            ValueError,
            r"x must have shape \(N, T\) = \(3, 2\) or \(N,\) = \(3,\), got \(2, 3\)",
        ),
        (lambda: _check.finite("x", HALF), ValueError, r"x must be finite, got x\[0, 2\] = nan"),
        (
            lambda: _check.finite("x", HALF, _check.steps(SHAPE, lengths=[2, 3])),
            ValueError,
            r"x must be finite in live steps, got x\[1, 2\] = nan",
        ),
        (
            lambda: _check.steps(SHAPE, lengths=[1, 2], mask=ONES),
            ValueError,
            "pass lengths or mask, not both",
        ),
        (lambda: _check.steps(SHAPE, lengths=[1, 4]), ValueError, r"in 0..T = 0..3, got lengths\[1\] = 4"),
        (lambda: _check.steps(SHAPE, lengths=[-1, 4]), ValueError, r"got lengths\[0\] = -1"),
        (lambda: _check.steps(SHAPE, lengths=[2**64, 1]), TypeError, "lengths must be integers"),
        (lambda: _check.steps(SHAPE, lengths=[1]), ValueError, r"lengths must have shape \(N,\) = \(2,\)"),
        (
            lambda: _check.steps(SHAPE, lengths=[1.0, 2.0]),
            TypeError,
            "lengths must be integers, got dtype float",
        ),
        (
            lambda: _check.steps(SHAPE, lengths=[True, True]),
            TypeError,
            "lengths must be integers, got dtype bool",
        ),
        (lambda: _check.steps(SHAPE, lengths=[1, None]), TypeError, r"got lengths\[1\] = None"),
        (
            lambda: _check.steps(SHAPE, mask=ONES.T),
            ValueError,
            r"mask must have shape \(N, T\) = \(2, 3\), got",
        ),
        (lambda: _check.steps(SHAPE, mask=2 * ONES), ValueError, r"be 0 or 1, got mask\[0, 0\] = 2"),
        (lambda: _check.steps(SHAPE, mask=HALF), ValueError, r"be 0 or 1, got mask\[0, 0\] = 0.5"),
        (
            lambda: _check.steps(SHAPE, mask=[["x"] * 3] * 2),
            TypeError,
            "mask must be booleans, or numbers 0 and 1",
        ),
        (
            lambda: _check.non_negative("p", [1, -1], 2),
            ValueError,
            r"p must not be negative, got p\[1\] = -1",
        ),
        (lambda: _check.samples([0, 0], 2).normaliser(1), ValueError, "sample_weight must not be all zero"),
        (lambda: _check.samples([0, 1], 2).normaliser(1), ValueError, "ddof must leave degrees of freedom"),
        (lambda: _check.samples(None, 2).normaliser(2), ValueError, "got ddof = 2 for 2 samples"),
        (lambda: _check.samples(None, 2).normaliser(True), ValueError, "ddof must be a non-negative integer"),
        (
            lambda: _check.units([1, 1], 2),
            ValueError,
            "have at least two different labels, got one",
        ),
        (lambda: _check.discount("lam", 1.5), ValueError, "lam must lie in 0..1, got 1.5"),
        (lambda: _check.discount("lam", np.nan), ValueError, "lam must lie in 0..1, got nan"),
        (lambda: _check.discount("lam", None), TypeError, "lam must be a number, got NoneType"),
        (lambda: _check.discount("lam", "1"), TypeError, "lam must be a number, got str"),
        (lambda: _check.discount("lam", True), TypeError, "lam must be a number, got bool"),
        (lambda: _check.discount("lam", 1j), TypeError, "lam must be a number, got complex"),
        (lambda: _check.discount("lam", [1.0]), TypeError, "lam must be a number, got list"),
        (lambda: _check.bound("c", -1), ValueError, "c must not be negative, got -1"),
        (lambda: _check.positive_number("c", 0), ValueError, "c must be finite and positive, got 0"),
        (lambda: _check.non_negative_number("c", np.inf), ValueError, "c must be finite and not negative"),
        (lambda: _check.confidence(1), ValueError, "confidence must lie strictly between 0 and 1, got 1"),
        (lambda: _check.positive_integer("n", 0), ValueError, "n must be at least 1, got 0"),
        (lambda: _check.positive_integer("n", 1.5), TypeError, "n must be an integer, got float"),
        (lambda: _check.positive_integer("n", True), TypeError, "n must be an integer, got bool"),
        (lambda: _check.choice("k", "c", ("a", "b")), ValueError, "k must be one of 'a', 'b', got 'c'"),
        (lambda: _check.choice("k", ONES, ("a", "b")), ValueError, "k must be one of 'a', 'b', got array"),
        (lambda: _check.choice("k", True, (0, 1)), ValueError, "k must be one of 0, 1, got True"),
        (lambda: scan(time_axis=2), ValueError, "time_axis must be one of -1, 0, 1, got 2"),
        (lambda: scan(arrays={"r": [1.0]}), ValueError, r"r must have shape \(N, T\), got \(1,\)"),
        (lambda: scan(truncated=ONES), ValueError, "truncated needs next_values: next_values are the values"),
        (lambda: scan(next_values=ONES), ValueError, "next_values needs truncated"),
        (lambda: scan(terminated=ONES.T), ValueError, r"terminated must have shape \(N, T\) = \(2, 3\), got"),
        (lambda: scan(bootstrap_value=1.0), ValueError, r"bootstrap_value must have shape .*, got \(\)"),
        (
            lambda: scan(gamma=[0.5, 0.5]),
            ValueError,
            r"gamma must have shape \(N, T\) = \(2, 3\), got \(2,\)",
        ),
        (lambda: scan(gamma=HALF), ValueError, r"gamma must lie in 0..1, got gamma\[0, 2\] = nan"),
        (lambda: scan(gamma=1.5), ValueError, "gamma must lie in 0..1, got 1.5"),
        (lambda: scan(gamma=None), TypeError, "gamma must be a number, got NoneType"),
        (
            lambda: scan(truncated=ONES, next_values=HALF).raise_not_finite(),
            ValueError,
            r"next_values must be finite in live steps, got next_values\[0, 2\] = nan",
        ),
        (
            lambda: _check.ratios(scan(arrays={"r": ONES, "rho": -ONES})),
            ValueError,
            r"rho must not be negative, got rho\[0, 0\] = -1",
        ),
        (lambda: _check.out_array([1.0], (1,), float), TypeError, "out must be a numpy array, got list"),
        (
            lambda: _check.out_array(ONES, (1,), float),
            ValueError,
            r"out must have shape \(1,\), got",
        ),
        (lambda: _check.out_array(ONES, SHAPE, np.dtype("f4")), TypeError, "out must have dtype float32"),
    ],
)
def test_what_is_wrong_is_named(check, error, message):
    with pytest.raises(error, match=message):
        check()


# Every public function asks

LOGP = -ONES
SCORES = np.random.default_rng(0).standard_normal((4, 3, 2))
ROLLOUTS = {"scores": SCORES, "rewards": np.ones((4, 3))}
TAIL = {
    "lengths": [1, 3],
    "mask": ONES,
    "terminated": 0 * ONES,
    "truncated": 0 * ONES,
    "next_values": ONES,
    "bootstrap_value": [1, 1],
}
VALUES = {"rewards": ONES, "values": ONES, "gamma": 0.9, **TAIL}
GROUPED = {"rewards": [1.0, 2.0], "groups": ["a", "a"]}
CALLS = {
    rlvar.Rollouts: {
        **ROLLOUTS,
        **{name: 4 * list(x)[:1] for name, x in TAIL.items()},
        "groups": list("aabb"),
    }
    | {"values": np.ones((4, 3)), "logp": np.ones((4, 3)), "behavior_logp": np.ones((4, 3))},
    rlvar.reward_to_go: {"rewards": ONES, "gamma": 0.9, **TAIL, "time_axis": -1, "out": ONES.copy()},
    rlvar.gae: {**VALUES, "lam": 0.9, "time_axis": -1, "out": (ONES.copy(), ONES.copy())},
    rlvar.lambda_returns: {**VALUES, "lam": 0.9, "time_axis": -1},
    rlvar.n_step_returns: {**VALUES, "n": 2, "time_axis": -1},
    rlvar.vtrace: {**VALUES, "rho": ONES, "lam": 1.0, "rho_clip": 1.0, "c_clip": 1.0, "time_axis": -1},
    rlvar.rloo: {**GROUPED, "singleton": "zero"},
    rlvar.grpo: {**GROUPED, "scale": "group", "eps": 0.1, "ddof": 1, "singleton": "raw", "preset": None},
    rlvar.reinforce_pp: GROUPED,
    rlvar.opo: {**GROUPED, "lengths": [1, 2]},
    rlvar.whiten: {"x": ONES + np.eye(2, 3), "lengths": [1, 3], "mask": ONES, "eps": 0.1, "ddof": 1},
    rlvar.kl_rewards: {"rewards": ONES, "logp": LOGP, "ref_logp": LOGP, "coef": 0.1, "estimator": "k1"}
    | {"lengths": [1, 3], "mask": ONES},
    rlvar.to_steps: {"per_sequence": [1.0, 2.0], "lengths": [1, 3], "mask": ONES, "steps": 3},
    rlvar.importance_ratios: {"logp": LOGP, "behavior_logp": LOGP, "importance": "token", "truncate": 2.0}
    | {"lengths": [1, 3], "mask": ONES},
    rlvar.covariance: {"rollouts": SCORES, "estimator": np.ones(4), "lengths": [1, 3, 3, 3]}
    | {"mask": np.ones((4, 3)), "sample_weight": np.ones(4), "ddof": 1, "block_size": 1, "num_threads": 1},
}


SAID = {(rlvar.covariance, "rollouts"): "scores", (rlvar.covariance, "estimator"): "weights"}


def one_of_lengths_and_mask(options, name):
    """What a call takes: not both, and `truncated` beside `next_values`."""
    drop = "lengths" if name == "mask" else "mask"
    return {key: x for key, x in options.items() if key != drop}


@pytest.mark.parametrize(
    ("function", "name"), [(function, name) for function, options in CALLS.items() for name in options]
)
def test_every_argument_of_every_function_is_checked_and_named(function, name):
    options = one_of_lengths_and_mask(CALLS[function], name)
    function(**options)
    said = f"{SAID.get((function, name), name)} (must|cannot)"
    with pytest.raises((TypeError, ValueError), match=said):
        function(**{**options, name: object()})
    if isinstance(options[name], np.ndarray):
        with pytest.raises((TypeError, ValueError), match=said):
            function(**{**options, name: np.ma.masked_array(options[name])})


@pytest.mark.parametrize("function", CALLS)
def test_numpys_error_state_changes_nothing(function):
    options = one_of_lengths_and_mask(CALLS[function], "lengths")
    want = function(**options)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        got = function(**options)
    assert repr(got) == repr(want)


def test_underflow_is_no_error_where_it_is_harmless():
    with np.errstate(all="raise"):
        assert rlvar.importance_ratios(LOGP - 1000.0, LOGP, importance="token").largest == 0.0
        np.testing.assert_array_equal(rlvar.opo([1.0, 2.0], [1e-320, 1e300]), [-1.0, 0.0])
        assert np.isfinite(rlvar.grpo([1e-200, 0.0, 1e-160, 1.0], [0, 0, 1, 1])).all()
        _check.samples([1.0, 1e-320], 2).normaliser(1)
