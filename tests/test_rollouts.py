import numpy as np
import pytest

import rlvar

SCORES, REWARDS = np.ones((4, 3, 2)), np.ones((4, 3))


def test_scores_are_kept_without_a_copy():
    for dtype in (np.float32, np.float64):
        scores = np.ones((4, 3, 2), dtype)
        assert rlvar.Rollouts(scores, REWARDS).scores is scores


def test_fields_shape_and_lengths():
    rollouts = rlvar.Rollouts(SCORES, REWARDS, lengths=[3, 0, 2, 1], groups=["b", "a", "b", "a"])
    assert rollouts.shape == (4, 3, 2)
    assert len(rollouts) == 4
    np.testing.assert_array_equal(rollouts.live_steps, [3, 0, 2, 1])
    np.testing.assert_array_equal(rollouts.groups, [0, 1, 0, 1])
    assert repr(rollouts) == "Rollouts(N=4, T=3, D=2, lengths 0 to 3, 2 groups)"
    gaps = rlvar.Rollouts(SCORES, REWARDS, mask=[[1, 0, 1]] * 4, values=REWARDS)
    np.testing.assert_array_equal(gaps.live_steps, [2, 2, 2, 2])
    np.testing.assert_array_equal(rlvar.Rollouts(SCORES, [1, 2, 3, 4]).live_steps, [3, 3, 3, 3])


def test_frozen():
    with pytest.raises(AttributeError):
        rlvar.Rollouts(SCORES, REWARDS).rewards = None


def test_junk_in_padding_is_ignored():
    rewards = np.where(np.arange(3) < 2, 1.0, np.nan) * np.ones((4, 1))
    rollouts = rlvar.Rollouts(SCORES, rewards, lengths=[2] * 4, values=rewards)
    assert rlvar.compare(rollouts)["multi"].variance.value == 0


@pytest.mark.parametrize(
    ("rewards", "options", "error", "message"),
    [
        (np.ones((3, 4)), {}, ValueError, r"rewards must have shape \(N, T\) = \(4, 3\) or \(N,\) = \(4,\)"),
        (np.full((4, 3), np.nan), {}, ValueError, r"got rewards\[0, 0\] = nan"),
        ([1, np.nan, 1, 1], {}, ValueError, r"got rewards\[1\] = nan"),
        (REWARDS, {"values": np.ones(4)}, ValueError, r"values must have shape \(N, T\) = \(4, 3\)"),
        (REWARDS, {"values": REWARDS * np.nan}, ValueError, r"got values\[0, 0\] = nan"),
        (REWARDS, {"groups": [1]}, ValueError, "groups must have shape"),
        (REWARDS, {"lengths": [1, 2, 3, 9]}, ValueError, r"got lengths\[3\] = 9"),
    ],
)
def test_bad_arguments_are_named(rewards, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.Rollouts(SCORES, rewards, **options)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": np.array([3, 0, 2, 1])},
        {"mask": np.array([[True, False, True]] * 4)},
        {"values": REWARDS, "groups": np.array(["b", "a", "b", "a"])},
    ],
)
def test_npz_and_directory_hold_the_same(tmp_path, options):
    arrays = {"scores": SCORES, "rewards": REWARDS, **options}
    archive = rlvar.load_rollouts(save(tmp_path / "r.npz", **arrays))
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    folder = rlvar.load_rollouts(str(tmp_path))
    assert isinstance(folder.scores.base, np.memmap)  # still on disk
    for name in ("scores", "rewards", "lengths", "mask", "values", "groups"):
        np.testing.assert_array_equal(getattr(archive, name), getattr(folder, name))
    assert str(rlvar.compare(archive)) == str(rlvar.compare(folder))


def test_unusable_files_are_refused_with_their_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        rlvar.load_rollouts(tmp_path / "none.npz")
    good = save(tmp_path / "good.npz", scores=SCORES, rewards=REWARDS).read_bytes()
    cases = {
        "empty.npz": b"",
        "text.npz": b"hello",
        "truncated.npz": good[:-40],
        "corrupt.npz": good[:200] + bytes(50) + good[250:],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}(: array scores cannot be read| is not an .npz file)"):
            rlvar.load_rollouts(tmp_path / name)
    np.save(tmp_path / "single.npy", SCORES)
    with pytest.raises(ValueError, match=r"single.npy is not an .npz file"):
        rlvar.load_rollouts(tmp_path / "single.npy")
    objects = save(
        tmp_path / "objects.npz", scores=SCORES, rewards=REWARDS, groups=np.array(list("abcd"), object)
    )
    with pytest.raises(ValueError, match=r"objects.npz: array groups cannot be read: Object arrays"):
        rlvar.load_rollouts(objects)


def test_missing_and_misfitting_arrays_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no array named scores or rewards, but nothing"):
        rlvar.load_rollouts(tmp_path)
    with pytest.raises(ValueError, match=r"half.npz holds no array named rewards, but scores"):
        rlvar.load_rollouts(save(tmp_path / "half.npz", scores=SCORES))
    with pytest.raises(ValueError, match=r"bad.npz: rewards must have shape"):
        rlvar.load_rollouts(save(tmp_path / "bad.npz", scores=SCORES, rewards=np.ones(9)))
    (tmp_path / "scores.npy").write_bytes(b"junk")
    np.save(tmp_path / "rewards.npy", REWARDS)
    with pytest.raises(ValueError, match="array scores cannot be read"):
        rlvar.load_rollouts(tmp_path)


def test_arrays_by_other_names_are_ignored_with_a_warning(tmp_path):
    path = save(tmp_path / "typo.npz", scores=SCORES, rewards=REWARDS, length=np.ones(4, int), seed=1)
    with pytest.warns(UserWarning, match=r"typo.npz: ignored arrays named length, seed"):
        assert rlvar.load_rollouts(path).lengths is None


def test_nan_is_no_label():
    with pytest.raises(ValueError, match="groups must not hold NaN"):
        rlvar.Rollouts(SCORES, REWARDS, groups=[np.nan] * 4)


def test_a_rollout_without_live_steps_may_have_any_reward():
    assert len(rlvar.Rollouts(SCORES, [np.nan, 1, 1, 1], lengths=[0, 3, 3, 3])) == 4


def test_aligned_scores_of_an_uncompressed_npz_stay_on_disk(tmp_path):
    scores = SCORES.astype(np.float32)
    plain = rlvar.load_rollouts(save(tmp_path / "plain.npz", scores=scores, rewards=REWARDS))
    assert isinstance(plain.scores.base, np.memmap)
    np.savez_compressed(tmp_path / "small.npz", scores=scores, rewards=REWARDS)
    packed = rlvar.load_rollouts(tmp_path / "small.npz")
    assert not isinstance(packed.scores.base, np.memmap)
    fortran = rlvar.load_rollouts(
        save(tmp_path / "fortran.npz", scores=np.asfortranarray(scores), rewards=REWARDS)
    )
    for rollouts in (plain, packed, fortran):
        np.testing.assert_array_equal(rollouts.scores, scores)
