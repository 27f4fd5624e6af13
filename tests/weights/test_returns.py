import functools
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
import rlvar
import strategies

# Each as a call of rlvar or of the reference.
FUNCTIONS = {
    "reward_to_go": lambda module, case, **out: module.reward_to_go(case.rewards, **case.options, **out),
    "gae": lambda module, case, **out: module.gae(
        case.rewards, case.values, lam=case.lam, **case.options, **out
    ),
    "lambda_returns": lambda module, case: module.lambda_returns(
        case.rewards, case.values, lam=case.lam, **case.options
    ),
    "n_step_returns": lambda module, case: module.n_step_returns(
        case.rewards, case.values, case.n, **case.options
    ),
    "vtrace": lambda module, case: module.vtrace(
        *(case.rewards, case.values, case.rho),
        **{"lam": case.lam, "rho_clip": case.rho_clip, "c_clip": case.c_clip, **case.options},
    ),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", strategies.DTYPES)
with_isa = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def columns_in_a_row(case):
    """The same (N, T) arrays, in memory as (T, N)."""
    return case.map(np.asfortranarray)


def time_first(case):
    """(T, N) arrays."""
    return case.map(lambda x: np.ascontiguousarray(x.T)).but(time_axis=0)


LAYOUTS = {"rows": lambda case: case, "columns": columns_in_a_row, "time first": time_first}
layouts = st.sampled_from(list(LAYOUTS.values()))
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def call(function, case, module=rlvar, **out):
    """All results of a function, each (N, T)."""
    results = FUNCTIONS[function](module, case, **out)
    results = results if isinstance(results, tuple) else (results,)
    return [result.T for result in results] if case.options.get("time_axis") == 0 else list(results)


def collected(case, module=reference):
    """Size (N, T) of all that a step adds up: s[t] = |r[t]| + |V[t]| + |V[t']| + decay[t] s[t'].

    And the scan that does so, of the numbers of each step.
    """
    case = case.clean()
    sizes = case.map(np.abs)
    if "bootstrap_value" in case.options:
        sizes = sizes.but(bootstrap_value=np.abs(case.options["bootstrap_value"]))
    own = module.n_step_returns(sizes.rewards, sizes.values, 1, **sizes.options)
    own += sizes.values
    trace = np.maximum(case.lam * np.minimum(case.rho, case.c_clip), 1)
    flow = case.but(
        gamma=case.options["gamma"] * trace,
        terminated=case.flag("terminated") | case.flag("truncated"),
        **dict.fromkeys(("truncated", "next_values", "bootstrap_value")),
    )
    scale = max(case.rho_clip, 1) ** 2
    return scale * module.reward_to_go(own, **flow.options), lambda x: module.reward_to_go(x, **flow.options)


def rounding(case):
    """Bound (N, T) of rounding errors, over the machine epsilon.

    Each step rounds all it has collected and hands its error on: e[t] = 4 s[t] + decay[t] e[t'].
    """
    sizes, scan = collected(case)
    return 4 * scan(sizes)


def assert_rounds_to(results, expected, bound, dtype):
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert result.shape == wanted.shape
        error = np.abs(result.astype(float) - wanted)
        allowed = bound * np.finfo(dtype).eps + np.finfo(dtype).tiny
        assert (error <= allowed).all(), f"off by {(error / allowed).max()} times what rounding explains"


def tolerance(dtype, rewards):
    """Rounding of a sum of T rewards, relative to the sum of their sizes."""
    steps = rewards.shape[-1]
    size = np.abs(np.where(np.isfinite(rewards), rewards, 0)).sum(axis=-1, initial=0).max(initial=0)
    return 4 * steps * np.finfo(dtype).eps * float(size)


# Against the definitions


@with_isa
@given(case=strategies.trajectories(), layout=layouts)
def test_everything_matches_its_definition(isa, case, layout):
    bound = rounding(case)
    for function in FUNCTIONS:
        expected = call(function, case, reference)
        assert_rounds_to(call(function, layout(case)), expected, bound, case.rewards.dtype)


@functools.cache
def long_rows(shape, live):
    """Long trajectories of float32 numbers, what they give and how exactly."""
    rng = np.random.default_rng(shape)
    case = strategies.make_trajectories(
        *(rng, shape, np.float32, live),
        done=0.002,
        with_options=() if live == "all" else ("terminated", "truncated", "bootstrap"),
        gamma="steps" if live == "mask" else 0.9,
    )
    return case, {function: call(function, case, reference) for function in FUNCTIONS}, rounding(case)


@each_dtype
@pytest.mark.parametrize("shape", [*itertools.product([1, 3, 9], [1000, 1001, 1003]), (70, 1003)])
@pytest.mark.parametrize("live", ["all", "lengths", "mask"])
def test_long_rows_match_the_definitions_on_every_isa(isa, dtype, shape, live):
    case, expected, bound = long_rows(shape, live)
    for layout in LAYOUTS.values():
        for function in FUNCTIONS:
            results = call(function, layout(case.astype(dtype)))
            assert_rounds_to(results, expected[function], bound, dtype)


@each_function
@each_layout
def test_rows_do_not_depend_on_their_neighbours(isa, rng, function, layout):
    case = strategies.make_trajectories(rng, (900, 700), np.float32, "mask", done=0.01, gamma=1.0)
    whole = call(function, layout(case))
    for rows in (slice(0, 1), slice(417, 440), slice(893, 900)):
        part = case.rows(rows)
        expected = call(function, part.astype(np.float64))
        assert_rounds_to([result[rows] for result in whole], expected, rounding(part), np.float32)


def test_stops_and_the_tail_by_hand():
    rewards, gamma = [[1.0, 2.0, 4.0]], 0.5
    stop, beyond = [[0, 1, 0]], [[np.nan, 8.0, np.nan]]

    def expect(result, **options):
        np.testing.assert_array_equal(rlvar.reward_to_go(rewards, gamma, **options), [result])

    expect([3.0, 4.0, 4.0])
    expect([5.0, 8.0, 12.0], bootstrap_value=[16.0])
    expect([2.0, 2.0, 12.0], bootstrap_value=[16.0], terminated=stop)
    expect([4.0, 6.0, 12.0], bootstrap_value=[16.0], truncated=stop, next_values=beyond)
    expect([2.0, 2.0, 12.0], bootstrap_value=[16.0], truncated=stop, next_values=beyond, terminated=stop)
    expect([2.0, 2.0, 0.0], truncated=[[0, 0, 1]], next_values=[[0, 0, 8]], terminated=stop, mask=[[1, 1, 0]])
    expect([5.0, 0.0, 8.0], bootstrap_value=[8.0], mask=[[1, 0, 1]])
    expect([5.0, 8.0, 0.0], bootstrap_value=[12.0], lengths=[2])


def test_gamma_and_lam_go_by_their_place():
    rewards, values = [[1.0, 2.0]], [[0.5, 1.0]]
    for function in (rlvar.gae, rlvar.lambda_returns):
        by_name = function(rewards, values, gamma=0.9, lam=0.8)
        np.testing.assert_array_equal(function(rewards, values, 0.9, 0.8), by_name)
    by_name = rlvar.n_step_returns(rewards, values, n=1, gamma=0.9)
    np.testing.assert_array_equal(rlvar.n_step_returns(rewards, values, 1, 0.9), by_name)
    by_name = rlvar.vtrace(rewards, values, rho=values, gamma=0.9, lam=0.8)
    np.testing.assert_array_equal(rlvar.vtrace(rewards, values, values, 0.9, 0.8), by_name)


def test_vtrace_by_hand():
    options = {"gamma": 0.5, "lam": 0.5, "rho_clip": 2.0, "c_clip": 1.0, "bootstrap_value": [8.0]}
    vs, advantages = rlvar.vtrace([[1.0, 2.0]], [[2.0, 4.0]], [[3.0, 0.5]], **options)
    np.testing.assert_array_equal(vs, [[4.25, 5.0]])
    np.testing.assert_array_equal(advantages, [[3.0, 1.0]])


@given(case=strategies.rewards(), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_matches_the_definition(case, gamma):
    rewards, options = case
    result = rlvar.reward_to_go(rewards, gamma, **options)
    assert result.dtype == rewards.dtype
    expected = reference.reward_to_go(rewards, gamma, **options)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(rewards.dtype, rewards))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (7, 33), (8, 33), (29, 17), (300, 900)])
def test_every_isa_matches_the_definition(isa, rng, dtype, shape):
    rewards = rng.standard_normal(shape).astype(dtype)
    lengths = rng.integers(0, shape[1] + 1, shape[0])
    mask = rng.random(shape) < 0.7
    for options in ({}, {"lengths": lengths}, {"mask": mask}):
        live = reference.live_steps(shape, **options)
        result = rlvar.reward_to_go(rewards, 0.9, **options)
        expected = np.zeros(shape)
        for n in range(shape[0]):  # no more than the recursion: the reference is too slow here
            future = 0.0
            for t in reversed(range(shape[1])):
                if live[n, t]:
                    expected[n, t] = future = float(rewards[n, t]) + 0.9 * future
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(dtype, rewards))


# Identities


@given(case=strategies.trajectories(), steps=st.booleans())
def test_gamma_zero_gives_the_rewards(case, steps):
    zero = np.zeros_like(case.rewards) if steps else 0.0
    case, rewards = case.but(gamma=zero), np.where(case.live, case.rewards, 0)
    for function in ("reward_to_go", "n_step_returns"):
        np.testing.assert_array_equal(call(function, case)[0], rewards)
    (result,) = call("lambda_returns", case)  # it may take the value away and add it again
    assert_rounds_to([result], [rewards], rounding(case), rewards.dtype)


@given(case=strategies.trajectories())
def test_lambda_one_is_reward_to_go_with_the_bootstrap_less_the_values(case):
    (whole,), case = call("reward_to_go", case), case._replace(lam=1.0)
    expected = np.where(case.live, whole - case.values, 0)
    assert_rounds_to(call("gae", case), [expected, whole], 2 * rounding(case), whole.dtype)
    assert_rounds_to(call("lambda_returns", case), [whole], 2 * rounding(case), whole.dtype)


@given(case=strategies.trajectories())
def test_lambda_zero_is_the_one_step_error(case):
    case = case._replace(lam=0.0, n=1)
    (returns,) = call("n_step_returns", case)
    errors = np.where(case.live, returns - case.values, 0)
    assert_rounds_to(call("gae", case), [errors, returns], 2 * rounding(case), returns.dtype)


def test_one_step_is_the_reward_and_the_next_value(rng):
    rewards, values = rng.standard_normal((2, 5, 9))
    end = rng.standard_normal(5)
    following = np.column_stack([values[:, 1:], end])
    result = rlvar.n_step_returns(rewards, values, 1, gamma=0.9, bootstrap_value=end)
    np.testing.assert_allclose(result, rewards + 0.9 * following, rtol=0, atol=1e-15)


@given(case=strategies.trajectories(), more=st.sampled_from([0, 1, 10**9]))
def test_n_steps_to_the_end_are_reward_to_go_with_the_bootstrap(case, more):
    whole = call("reward_to_go", case)
    case = case._replace(n=max(case.rewards.shape[1], 1) + more)
    assert_rounds_to(call("n_step_returns", case), whole, 2 * rounding(case), whole[0].dtype)


@given(case=strategies.trajectories())
def test_lambda_returns_are_the_returns_of_gae(case):
    expected = call("gae", case)[1:]
    assert_rounds_to(call("lambda_returns", case), expected, 2 * rounding(case), case.rewards.dtype)


@given(case=strategies.trajectories(min_t=1), lam=st.sampled_from([0.5, 0.95]))
def test_lambda_returns_mix_all_n_step_returns(case, lam):
    case, last = case.astype(np.float64)._replace(lam=lam), case.rewards.shape[1]
    steps = [call("n_step_returns", case._replace(n=n))[0] for n in range(1, last + 1)]
    mixed = (1 - lam) * sum(lam**i * g for i, g in enumerate(steps[:-1])) + lam ** (last - 1) * steps[-1]
    assert_rounds_to(call("lambda_returns", case), [mixed], (last + 2) * rounding(case), np.float64)


@each_function
@given(case=strategies.trajectories(live=("mask", "lengths")))
def test_masked_is_compressed_and_scattered_back(function, case):
    results, bound = call(function, case), rounding(case)
    for n, live in enumerate(case.live):
        row = case.but(mask=None, lengths=None).rows(slice(n, n + 1)).map(lambda x, live=live: x[:, live])
        expected = np.zeros((len(results), 1, len(live)), case.rewards.dtype)
        expected[:, :, live] = call(function, row)
        part = [result[n : n + 1] for result in results]
        assert_rounds_to(part, expected, 2 * bound[n : n + 1], case.rewards.dtype)
        assert not np.any([result[n, ~live] for result in results])


@each_function
@pytest.mark.parametrize("done", ["terminated", "truncated"])
@given(case=strategies.trajectories(live=("all",), min_t=1), data=st.data())
def test_splitting_at_a_done_equals_two_calls(function, done, case, data):
    dtype, k = case.rewards.dtype, data.draw(st.integers(0, case.rewards.shape[1] - 1))
    flags = {name: case.flag(name) for name in ("terminated", "truncated")}
    for name, flag in flags.items():
        flag[:, k] = name == done
    read = flags["truncated"] & ~flags["terminated"]
    values = np.where(read, case.options.get("next_values", 0), 0).astype(dtype)
    values[:, k] = 7.5
    whole = case.but(**flags, next_values=values)
    beyond = values[:, k] if done == "truncated" else None
    left, right = whole.map(lambda x: x[:, : k + 1]), whole.map(lambda x: x[:, k + 1 :])
    flags = {name: flag[:, : k + 1] & (np.arange(k + 1) < k) for name, flag in flags.items()}
    left = left.but(**flags, bootstrap_value=beyond)
    expected = [np.hstack(parts) for parts in zip(call(function, left), call(function, right), strict=True)]
    assert_rounds_to(call(function, whole), expected, 2 * rounding(whole), dtype)


@each_function
@given(case=strategies.trajectories())
def test_time_axis_0_equals_the_transpose(function, case):
    expected, bound = call(function, case), 2 * rounding(case)
    assert_rounds_to(call(function, time_first(case)), expected, bound, case.rewards.dtype)
    for result, same in zip(call(function, case.but(time_axis=1)), expected, strict=True):
        np.testing.assert_array_equal(result, same)


@each_function
@given(case=strategies.trajectories(), value=st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_a_constant_gamma_of_each_step_is_a_number(function, case, value):
    expected = call(function, case.but(gamma=value))
    case = case.but(gamma=np.full_like(case.rewards, value))
    assert_rounds_to(call(function, case), expected, 2 * rounding(case), case.rewards.dtype)


@each_function
@given(case=strategies.trajectories())
def test_a_gamma_of_zero_at_a_step_cuts_the_trace_there(function, case):
    gamma = np.where(case.live, np.broadcast_to(case.options["gamma"], case.rewards.shape), 0)
    done = case.flag("terminated")
    expected = call(function, case.but(gamma=gamma.astype(case.rewards.dtype)))
    cut = np.where(done, 0, gamma).astype(case.rewards.dtype)
    case = case.but(gamma=cut, terminated=None)
    if "truncated" in case.options:
        case = case.but(truncated=case.flag("truncated") & ~done)
    assert_rounds_to(call(function, case), expected, 2 * rounding(case), cut.dtype)


@given(case=strategies.trajectories())
def test_vtrace_on_policy_is_lambda_returns_less_the_values(case):
    one = np.where(case.live, np.ones_like(case.rho), case.rho)
    case = case._replace(rho=one, rho_clip=1.0, c_clip=1.0)
    (returns,), bound = call("lambda_returns", case), 2 * rounding(case)
    vs, advantages = call("vtrace", case)
    assert_rounds_to([vs], [returns], bound, returns.dtype)
    errors = np.where(case.live, vs - case.values, 0)
    assert_rounds_to([errors], call("gae", case)[:1], bound, returns.dtype)
    if case.lam == 1:
        assert_rounds_to([advantages], call("gae", case)[:1], bound, returns.dtype)


@given(case=strategies.trajectories())
def test_vtrace_clips_and_forgets_what_the_policy_never_does(case):
    expected = call("vtrace", case)
    clip = max(case.rho_clip, case.c_clip)
    clipped = case._replace(rho=np.where(case.live, np.minimum(case.rho, clip), -1).astype(case.rho.dtype))
    for result, same in zip(call("vtrace", clipped), expected, strict=True):
        np.testing.assert_array_equal(result, same)
    vs, advantages = call("vtrace", case._replace(rho=np.zeros_like(case.rho)))
    np.testing.assert_array_equal(vs, np.where(case.live, case.values, 0))
    assert not advantages.any()


# Numbers


def test_terminal_reward_arrives_whole_100000_steps_ahead(isa):
    rewards = np.zeros((2, 100_001), np.float32)
    rewards[:, -1] = 0.1
    case = strategies.Trajectories(rewards, 0 * rewards, 1 + 0 * rewards, {"gamma": 1.0}, lam=1.0, n=10**6)
    np.testing.assert_array_equal(rlvar.reward_to_go(rewards), np.full_like(rewards, 0.1))
    for layout in LAYOUTS.values():
        for function in FUNCTIONS:
            for result in call(function, layout(case)):
                np.testing.assert_array_equal(result, np.full_like(rewards, 0.1))


def test_a_value_beyond_the_row_arrives_whole_100000_steps_ahead(isa):
    rewards, expected = np.zeros((2, 100_001), np.float32), np.full((2, 100_001), 0.1, np.float32)
    last = np.arange(100_001) == np.full((2, 1), 100_000)
    for tail in {"bootstrap_value": expected[:, 0]}, {"truncated": last, "next_values": expected}:
        np.testing.assert_array_equal(rlvar.reward_to_go(rewards, **tail), expected)


def test_gaps_are_skipped_without_discount():
    result = rlvar.reward_to_go([[1.0, 9.0, 2.0]], 0.5, mask=[[1, 0, 1]])
    np.testing.assert_array_equal(result, [[2.0, 0.0, 2.0]])


def test_what_lies_under_the_mask_changes_no_bit(rng):
    rewards = rng.standard_normal((10, 30))
    mask = rng.random((10, 30)) < 0.5
    clean = rlvar.reward_to_go(np.where(mask, rewards, 0.0), 0.9, mask=mask)
    for junk in (np.nan, np.inf, 1e300):
        dirty = rlvar.reward_to_go(np.where(mask, rewards, junk), 0.9, mask=mask)
        np.testing.assert_array_equal(dirty, clean)
    assert (clean[~mask] == 0).all()


@with_isa
@given(case=strategies.trajectories(), layout=layouts)
def test_what_nobody_may_read_changes_no_bit_of_any_function(isa, case, layout):
    for function in FUNCTIONS:
        expected = call(function, layout(case.clean()))
        for result, same in zip(call(function, layout(case)), expected, strict=True):
            np.testing.assert_array_equal(result, same)
            assert (result[~case.live] == 0).all()


def packed(x):
    """An unaligned view."""
    records = np.zeros(x.shape, np.dtype([("flag", "i1"), ("number", x.dtype)]))
    records["number"] = x
    return records["number"]


VIEWS = {
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every third step": lambda x: np.repeat(x, 3, axis=1)[:, ::3],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "part of columns": lambda x: np.repeat(np.asfortranarray(x), 2, axis=1)[:, ::2],
    "transposed": np.asfortranarray,
    "unaligned": packed,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
}


@each_function
@each_dtype
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@each_layout
def test_views_of_every_argument_give_what_their_copies_give(rng, function, dtype, view, layout):
    case = strategies.make_trajectories(rng, (19, 37), dtype, "mask", gamma="steps")
    views = layout(case).map(view)
    kept = views.map(np.copy)
    views.map(lambda x: x.setflags(write=False))
    assert_rounds_to(call(function, views), call(function, case), 2 * rounding(case), dtype)
    for option, array in views.options.items():
        np.testing.assert_array_equal(array, kept.options[option])
    for array, same in zip(views[:3], kept[:3], strict=True):
        np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strided_views_give_what_their_copies_give(rng, dtype):
    base = rng.standard_normal((40, 50)).astype(dtype)
    for view in (base[::2], base[:, ::3], base[::-1, ::-1], base.T, np.asfortranarray(base), base[:1]):
        expected = rlvar.reward_to_go(view.copy(order="C"), 0.9)
        np.testing.assert_allclose(
            rlvar.reward_to_go(view, 0.9), expected, rtol=0, atol=tolerance(dtype, view)
        )
    zero_strides = np.broadcast_to(base[:, :1], (40, 6))
    np.testing.assert_array_equal(
        rlvar.reward_to_go(zero_strides), rlvar.reward_to_go(np.array(zero_strides))
    )


def test_unaligned_and_byte_swapped_rewards_are_converted(rng):
    records = np.zeros((5, 6), dtype=np.dtype([("flag", "i1"), ("reward", "f8")]))
    records["reward"] = rng.standard_normal((5, 6))
    expected = rlvar.reward_to_go(np.ascontiguousarray(records["reward"]))
    np.testing.assert_array_equal(rlvar.reward_to_go(records["reward"]), expected)
    np.testing.assert_array_equal(rlvar.reward_to_go(records["reward"].astype(">f8")), expected)


def test_out_is_filled_and_returned(rng):
    rewards = rng.standard_normal((6, 9))
    expected = rlvar.reward_to_go(rewards, 0.9)
    strided = np.empty((6, 18))[:, ::2]
    assert rlvar.reward_to_go(rewards, 0.9, out=strided) is strided
    np.testing.assert_array_equal(strided, expected)


@each_dtype
@each_layout
@pytest.mark.parametrize("live", ["all", "lengths", "mask"])
def test_out_may_be_any_of_the_inputs(isa, rng, dtype, layout, live):
    case = layout(strategies.make_trajectories(rng, (19, 37), dtype, live, gamma="steps"))
    names = {
        "rewards": lambda case: case.rewards,
        "values": lambda case: case.values,
        "next_values": lambda case: case.options["next_values"],
        "gamma": lambda case: case.options["gamma"],
    }
    for function, count in (("reward_to_go", 1), ("gae", 2)):
        expected = call(function, case)
        for chosen in itertools.permutations(names.values(), count):
            fresh = case.map(np.copy)
            out = tuple(choose(fresh) for choose in chosen)
            results = call(function, fresh, out=out if count == 2 else out[0])
            for result, same, target in zip(results, expected, out, strict=True):
                assert np.shares_memory(result, target)
                np.testing.assert_array_equal(result, same)


def test_both_outs_of_gae_are_filled_and_returned(rng):
    rewards, values = rng.standard_normal((2, 6, 9))
    expected = rlvar.gae(rewards, values, gamma=0.9, lam=0.8)
    out = np.empty((6, 18))[:, ::2], np.empty((9, 6)).T
    result = rlvar.gae(rewards, values, gamma=0.9, lam=0.8, out=out)
    for given_back, array, wanted in zip(result, out, expected, strict=True):
        assert given_back is array
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("name", ["rewards", "gamma", "next_values"])
def test_out_may_not_overlap_an_argument_otherwise(rng, name):
    buffer = rng.random(60)
    argument, out = buffer[10:50].reshape(2, 20), buffer[:40].reshape(2, 20)
    options = {"rewards": rng.standard_normal((2, 20)), "gamma": 0.9, name: argument}
    if name == "next_values":
        options["truncated"] = rng.random((2, 20)) < 0.5
    with pytest.raises(ValueError, match="out must not overlap an argument"):
        rlvar.reward_to_go(**options, out=out)
    with pytest.raises(ValueError, match="out must not overlap an argument"):
        rlvar.reward_to_go(**options, out=argument[:, ::-1])
    apart = np.empty((2, 40))  # interleaved, and not one number in common
    apart[:, ::2] = options["rewards"]
    expected = rlvar.reward_to_go(apart[:, ::2].copy(), 0.5)
    np.testing.assert_array_equal(rlvar.reward_to_go(apart[:, ::2], 0.5, out=apart[:, 1::2]), expected)


def test_a_read_only_out_is_refused():
    out = np.full((1, 2), 7.0)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out must be writeable"):
        rlvar.reward_to_go([[1.0, 1.0]], out=out)


def test_inputs_are_never_changed(rng):
    rewards = rng.standard_normal((6, 9))
    kept = rewards.copy()
    rewards.setflags(write=False)
    rlvar.reward_to_go(rewards, lengths=[1, 2, 3, 4, 5, 9])
    np.testing.assert_array_equal(rewards, kept)


@pytest.mark.parametrize(
    ("given_as", "result"),
    [
        (np.int32, np.float64),
        (np.uint8, np.float64),
        (bool, np.float64),
        (np.float16, np.float32),
        (np.float32, np.float32),
    ],
)
def test_dtypes(given_as, result):
    rewards = np.ones((2, 3), given_as)
    out = rlvar.reward_to_go(rewards)
    assert out.dtype == result
    np.testing.assert_array_equal(out, [[3, 2, 1]] * 2)


@each_function
@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
@each_layout
def test_half_precision_is_returned_in_float32(rng, function, half, layout):
    case = strategies.make_trajectories(rng, (9, 37), np.float16, "mask", gamma="steps").astype(half)
    expected = call(function, layout(case.astype(np.float32)))
    for result, same in zip(call(function, layout(case)), expected, strict=True):
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, same)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_counts_beyond_its_own_integers(half):
    result = rlvar.reward_to_go(np.ones((1, 5000), half))
    np.testing.assert_array_equal(result, [np.arange(5000, 0, -1)])


@pytest.mark.parametrize(
    ("given_as", "result"),
    [
        ((np.float32, np.float64), np.float64),
        ((np.float64, np.float32), np.float64),
        ((np.float32, np.int64), np.float64),
        ((np.float32, np.float16), np.float32),
        ((ml_dtypes.bfloat16, np.float16), np.float32),
    ],
)
def test_the_widest_argument_decides_the_dtype(given_as, result):
    rewards, other = (np.ones((2, 3), dtype) for dtype in given_as)
    no = np.zeros((2, 3), bool)
    for results in (
        [rlvar.reward_to_go(rewards, truncated=no, next_values=other)],
        rlvar.gae(rewards, other, gamma=0.9, lam=0.9),
        [rlvar.lambda_returns(rewards, other, gamma=0.9, lam=0.9)],
        [rlvar.n_step_returns(rewards, other, 2, gamma=0.9)],
        rlvar.vtrace(rewards, rewards, other, gamma=0.9),
    ):
        assert [array.dtype for array in results] == [result] * len(results)


@each_function
@each_layout
@pytest.mark.parametrize("live", ["all", "lengths", "mask"])
def test_float32_results_are_a_few_roundings_from_the_float64_ones(isa, rng, function, layout, live):
    for shape, gamma in itertools.product([(3, 30_001), (70, 33)], [0.9999, "steps"]):
        case = strategies.make_trajectories(rng, shape, np.float32, live, gamma=gamma)
        precise = case.astype(np.float64)
        exact, (sizes, _) = call(function, layout(precise)), collected(precise, rlvar)
        # A block adds up 8 steps in 3 rounds, powers of the discount in as many, and then what is carried:
        # 32 roundings at most, of half an epsilon. The error that is handed on is that of its first step.
        assert_rounds_to(call(function, layout(case)), exact, 16 * sizes, np.float32)


@each_layout
def test_a_million_float32_rewards_add_up_without_drift(isa, layout):
    rewards = np.full((2, 10**6), 0.1, np.float32)
    (result,) = call("reward_to_go", layout(strategies.Trajectories(rewards, rewards, rewards, {})))
    exact = float(rewards[0, 0]) * np.arange(10**6, 0, -1)
    np.testing.assert_allclose(result[1], exact, rtol=8 * np.finfo(np.float32).eps)
    decay = 1 - 1e-6  # as float32, it would be off by 1 % after as many steps
    for options in ({}, {"mask": np.arange(10**6) % 3 < np.full((2, 1), 2)}):
        case = strategies.Trajectories(rewards, rewards, rewards, {"gamma": decay, **options}, lam=1.0)
        for function in ("reward_to_go", "gae", "vtrace"):
            precise = case.astype(np.float64)
            exact, (sizes, _) = call(function, layout(precise)), collected(precise, rlvar)
            assert_rounds_to(call(function, layout(case)), exact, 16 * sizes, np.float32)


@each_function
def test_integers_are_computed_in_float64(rng, function):
    rewards, values, rho, beyond = rng.integers(0, 9, (4, 5, 20))
    terminated, truncated = rng.integers(0, 2, (2, 5, 20))
    options = {"gamma": 0.9, "terminated": terminated, "truncated": truncated, "next_values": beyond}
    case = strategies.Trajectories(rewards, values, rho, {**options, "bootstrap_value": np.arange(5)})
    flags = {"terminated": terminated.astype(bool), "truncated": truncated.astype(bool)}
    expected = call(function, case.but(**flags).astype(np.float64))
    for result, same in zip(call(function, case), expected, strict=True):
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, same)
    lists = case.map(np.ndarray.tolist)
    for result, same in zip(call(function, lists), expected, strict=True):
        np.testing.assert_array_equal(result, same)


def test_lists_and_empty_arrays():
    np.testing.assert_array_equal(rlvar.reward_to_go([[1, 2], [3, 4]]), [[3, 2], [7, 4]])
    assert rlvar.reward_to_go(np.empty((0, 5))).shape == (0, 5)
    assert rlvar.reward_to_go(np.empty((5, 0))).shape == (5, 0)
    np.testing.assert_array_equal(rlvar.reward_to_go([[1.0, 2.0]], lengths=[0]), [[0.0, 0.0]])


ONES = strategies.Trajectories(*np.ones((3, 2, 3)), {"gamma": 0.9})


def test_with_time_first_errors_speak_of_the_arrays_as_they_were_given():
    with pytest.raises(ValueError, match=r"got rewards\[2, 1\] = nan"):
        rlvar.reward_to_go([[1.0, 1.0], [1.0, 1.0], [1.0, np.nan]], time_axis=0)
    with pytest.raises(ValueError, match=r"values must have shape .*\(3, 2\), got \(2, 3\)"):
        rlvar.gae(np.ones((3, 2)), np.ones((2, 3)), gamma=0.9, lam=0.9, time_axis=0)
    with pytest.raises(ValueError, match=r"bootstrap_value must have shape \(N,\) = \(2,\), got \(3,\)"):
        rlvar.reward_to_go(np.ones((3, 2)), bootstrap_value=np.ones(3), time_axis=0)


def test_gamma_and_lam_have_no_default():
    with pytest.raises(TypeError, match=r"gamma.*lam"):
        rlvar.gae([[1.0]], [[1.0]])


@each_function
@each_dtype
@each_layout
def test_overflow_is_an_error_not_an_infinity(isa, function, dtype, layout):
    rewards = np.zeros((9, 21), dtype)
    rewards[7, 17:19] = 0.9 * np.finfo(dtype).max
    case = strategies.Trajectories(rewards, 0 * rewards, 1 + 0 * rewards, {"gamma": 1.0}, lam=1.0)
    with pytest.raises(ValueError, match=f"beyond the range of {np.dtype(dtype)}"):
        call(function, layout(case))


def test_sums_that_leave_the_range_and_come_back_are_errors(isa):
    big = np.float32(3e38)
    for rewards in ([[-big, big, big]], [[0.0] * 9 + [-big, big, big] + [0.0] * 9]):
        rewards = np.array(rewards, np.float32)
        for array in (rewards, np.asfortranarray(np.repeat(rewards, 9, axis=0))):
            with pytest.raises(ValueError, match="beyond the range of float32"):
                rlvar.reward_to_go(array)
    for lam in (0.0, 1.0):
        with pytest.raises(ValueError, match="beyond the range of float32"):
            rlvar.gae(np.array([[big, 0]], "f4"), np.array([[-big, 0]], "f4"), gamma=1.0, lam=lam)


def test_outs_of_gae_may_not_be_one():
    out = np.empty((2, 3))
    with pytest.raises(ValueError, match="two arrays that share no memory"):
        rlvar.gae(np.ones((2, 3)), np.ones((2, 3)), gamma=1.0, lam=1.0, out=(out, out))


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.empty((2, 3)), (TypeError, ValueError)),
        ((np.empty((2, 3)),), (TypeError, ValueError)),
        ((np.empty((2, 3)), np.empty((3, 2))), ValueError),
        ((np.empty((2, 3)), np.empty((2, 3), np.float32)), TypeError),
        ((np.empty((2, 3)), [[0.0] * 3] * 2), TypeError),
    ],
)
def test_a_bad_out_of_gae_is_named(out, error):
    with pytest.raises(error, match="out"):
        call("gae", ONES, out=out)
