"""The optimiser's metric, and blocks of coordinates."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest

import rlvar

FIELDS = ("variance", "ratio", "signal", "noise_scale")


def two_blocks(a, b, first):
    """All 16 outcomes of z1, z2, r1, r2 = +-1: S_1 = (a z1, 0), S_2 = (0, b z2), rewards first r1 and r2.

    Single-step multiplies both by R, with E R^2 = first^2 + 1; multi-step the first by R, the second by
    r2, with E r2^2 = 1. All is independent and has mean 0, so the variances are

        V_single = (first^2 + 1) (a^2 + b^2),  V_multi = (first^2 + 1) a^2 + b^2.
    """
    z1, z2, r1, r2 = np.array(list(itertools.product([-1.0, 1.0], repeat=4))).T
    zero = np.zeros(16)
    scores = np.stack([np.stack([a * z1, zero], axis=1), np.stack([zero, b * z2], axis=1)], axis=1)
    return rlvar.Rollouts(scores, np.stack([first * r1, r2], axis=1))


def random_rollouts(rng, n=40, d=7, groups=None):
    return rlvar.Rollouts(rng.standard_normal((n, 4, d)) + 0.2, rng.standard_normal((n, 4)), groups=groups)


def test_in_adams_metric_a_block_that_the_largest_one_hid_decides():
    """An Adam user reads 1.49 where 2.05 is right: blocks 1.00 and 2.09."""
    b, first = np.sqrt(0.49 * 2.09 / 0.6), np.sqrt(1.09)
    rollouts = two_blocks(1.0, b, first)
    v = np.array([1.0, 1 / 32])  # Adam's second moments, of which only the ratio counts
    adam = 1 / (np.sqrt(v) + 1e-8)
    exact = {}
    for name, scale in (("plain", None), ("adam", adam)):
        result = rlvar.compare(rollouts, reference="multi", scale=scale, blocks=["embed", "head"])
        squares = np.ones(2) if scale is None else scale**2
        single, multi = 2.09 * (squares @ [1, b**2]), squares @ [2.09, b**2]
        exact[name] = single / multi
        assert result["single"].ratio.value == pytest.approx(single / multi, rel=1e-12)
        assert result["multi"].variance.value == pytest.approx(multi * 16 / 15, rel=1e-12)
        blocks = result["single"].blocks
        assert blocks["embed"].ratio.value == pytest.approx(1.0, rel=1e-12)
        assert blocks["head"].ratio.value == pytest.approx(2.09, rel=1e-12)
        share = result["multi"].blocks["head"].share
        assert share == pytest.approx(squares[1] * b**2 / multi, rel=1e-12)
    assert {name: round(x, 2) for name, x in exact.items()} == {"plain": 1.49, "adam": 2.05}


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(20), 2)])
@pytest.mark.parametrize("interval", ["jackknife", rlvar.Bootstrap(200, seed=1)])
def test_a_scale_is_that_of_the_scores(rng, groups, interval):
    rollouts, scale = random_rollouts(rng, groups=groups), rng.random(7)
    scaled = rlvar.Rollouts(rollouts.scores * scale, rollouts.rewards, groups=groups)
    one = rlvar.compare(rollouts, scale=scale, interval=interval)
    other = rlvar.compare(scaled, interval=interval)
    for row, same in zip(one, other, strict=True):
        for name in (*FIELDS, "noise_scale_ratio", "alignment"):
            found, expected = getattr(row, name), getattr(same, name)
            np.testing.assert_allclose(
                (found.value, *found.interval), (expected.value, *expected.interval), rtol=1e-9
            )
    assert one.scaled
    assert "variance of one rollout, scaled" in str(one) or groups is not None
    assert not other.scaled


def test_every_block_is_what_its_coordinates_alone_give_and_all_add_up(rng):
    rollouts, scale = random_rollouts(rng), rng.random(7) + 0.1
    labels = np.array(list("abbacab"))
    result = rlvar.compare(rollouts, scale=scale, blocks=labels)
    assert list(result["multi"].blocks) == ["a", "b", "c"]
    for label in "abc":
        columns = labels == label
        alone = rlvar.compare(
            rlvar.Rollouts(rollouts.scores[:, :, columns], rollouts.rewards), scale=scale[columns]
        )
        for row in alone:
            block = result[row.name].blocks[label]
            assert block.coordinates == columns.sum()
            for name in FIELDS:
                found, expected = getattr(block, name), getattr(row, name)
                assert found.value == pytest.approx(expected.value, rel=1e-9)
                np.testing.assert_allclose(found.interval, expected.interval, rtol=1e-9)
    for row in result:
        for name in ("variance", "signal"):
            total = sum(getattr(block, name).value for block in row.blocks.values())
            assert total == pytest.approx(getattr(row, name).value, rel=1e-9)
        assert sum(block.share for block in row.blocks.values()) == pytest.approx(1)


def test_blocks_are_shown_as_a_second_table_the_noisiest_first(rng):
    rollouts = random_rollouts(rng, d=30)
    scale = np.where(np.arange(30) == 17, 9.0, 1.0)
    result = rlvar.compare(rollouts, scale=scale, blocks=range(30))
    lines = str(result).splitlines()
    start = lines.index("Blocks of coordinates, the noisiest first")
    assert lines[start + 1].split("  ")[0] == "block"
    assert lines[start + 2].split()[:3] == ["17", "1", "single"]
    shown = [line for line in lines[start + 2 :] if line.split()[2:3] in (["single"], ["multi"])]
    assert len(shown) == 2 * 12
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert fields == result.to_dict()
    assert fields["rows"][1]["blocks"]["17"]["coordinates"] == 1
    assert "Blocks" not in str(rlvar.compare(rollouts))


def test_coordinates_without_noise_do_not_stop_the_others(rng):
    result = rlvar.compare(random_rollouts(rng), scale=[0, 0, 1, 1, 1, 1, 1], blocks=list("xxyyyyy"))
    assert result["multi"].blocks["x"].variance.value == 0
    assert result["multi"].blocks["x"].share == 0
    assert result["multi"].blocks["y"].variance == result["multi"].variance


def test_scales_and_blocks_hold_no_second_copy_of_the_gradients():
    n, d = 64, 40_000
    rollouts = rlvar.Rollouts(np.ones((n, 1, d), np.float32), np.arange(n, dtype=float))
    labels = (np.arange(d) // 10_000).tolist()
    peak = {}
    for name, options in (("plain", {}), ("metric", {"scale": np.ones(d), "blocks": labels})):
        tracemalloc.start()
        rlvar.compare(rollouts, ["single"], **options)
        peak[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak["metric"] - peak["plain"] < n * d * 8 / 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": [1.0, 2.0]}, ValueError, r"scale must have shape \(D,\) = \(7,\), got \(2,\)"),
        ({"scale": [1.0] * 6 + [-1.0]}, ValueError, r"scale must not be negative, got scale\[6\] = -1"),
        ({"scale": [np.nan] * 7}, ValueError, "scale must be finite"),
        ({"scale": [1e200] * 7}, ValueError, "scale makes squares .* exceed the range of float64"),
        ({"scale": [1e-200] * 7}, ValueError, "below the range of float64; rescale"),
        ({"blocks": list("ab")}, ValueError, "blocks must have a label for each of D = 7 coordinates, got 2"),
        ({"blocks": [None] * 7}, TypeError, r"blocks must be strings or integers, got blocks\[0\] = None"),
        ({"blocks": "abcdefg"}, TypeError, "blocks must be a label for each coordinate, got str"),
    ],
)
def test_a_metric_that_does_not_fit_is_named(rng, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.compare(random_rollouts(rng), **options)
