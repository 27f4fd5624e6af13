import io
import os
import socket
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

import rlvar
from fuzz_files import fuzz, npy
from rlvar import files

SCORES, REWARDS = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32), np.ones((4, 3))
ENDS = np.array([[False, False, True]] * 4)
HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 3, 2), }"


def save(path, **arrays):
    np.savez(path, **{"scores": SCORES, "rewards": REWARDS, **arrays})
    return path


def pack(path, method=zipfile.ZIP_STORED, **members):
    """Write members given as bytes."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in {"scores": npy(SCORES), "rewards": npy(REWARDS), **members}.items():
            archive.writestr(f"{name}.npy", data)
    return path


def with_header(text, version=b"\1\0", data=bytes(192)):
    text = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\1\0" else 4, "little") + text + data


def same(a, b):
    for key in files.KEYS:
        assert type(getattr(a, key)) is type(getattr(b, key))
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": np.array([3, 0, 2, 1])},
        {"mask": np.array([[True, False, True]] * 4), "logp": -REWARDS, "behavior_logp": -REWARDS},
        {"values": REWARDS, "score_squares": REWARDS, "groups": np.array(["b", "a", "b", "a"])},
        {"terminated": ENDS, "truncated": ~ENDS, "next_values": REWARDS, "bootstrap_value": np.ones(4)},
        {"tokens": np.array([3, 9, 5, 4]), "scores_of": "the final norm", "sketched": True},
        {"scores": np.asfortranarray(SCORES, ">f8")},
        {"scores": (10 * SCORES).astype(np.int16), "rewards": np.array([1, 0, 1, 0], bool)},
    ],
    ids=lambda options: " ".join(options),
)
def test_npz_and_folder_hold_the_same_and_saved_they_still_do(tmp_path, options):
    archive = rlvar.load_rollouts(save(tmp_path / "r.npz", **options))
    (tmp_path / "folder").mkdir()
    for name, array in {"scores": SCORES, "rewards": REWARDS, **options}.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    folder = rlvar.load_rollouts(os.fsencode(tmp_path / "folder"))
    expected = rlvar.Rollouts(**{"scores": SCORES, "rewards": REWARDS, **options})
    rlvar.save_rollouts(str(tmp_path / "saved"), folder)
    for each in (archive, folder, rlvar.load_rollouts(tmp_path / "saved")):
        same(each, expected)
    with np.load(tmp_path / "saved") as saved:
        assert set(saved) == {"scores", "rewards", *options}


def test_bfloat16_is_read_although_numpy_saves_it_without_its_name(tmp_path):
    scores = SCORES.astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "scores.npy", scores)
    np.save(tmp_path / "rewards.npy", REWARDS)
    for path in (save(tmp_path / "r.npz", scores=scores), tmp_path):
        loaded = rlvar.load_rollouts(path).scores
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, scores.astype(np.float32))


def test_scores_in_a_folder_stay_on_disk_and_are_converted_only_when_asked_for(tmp_path):
    np.save(tmp_path / "rewards.npy", REWARDS)
    for dtype in (np.float32, np.float16):
        np.save(tmp_path / "scores.npy", SCORES.astype(dtype))
        rollouts = rlvar.load_rollouts(tmp_path)
        assert rollouts.shape == SCORES.shape
        assert isinstance(rollouts._stored.base, np.memmap)
        assert rollouts._stored.dtype == dtype
        np.testing.assert_array_equal(rollouts.scores, SCORES.astype(dtype))
        assert rollouts.scores.dtype == np.float32


def test_a_loaded_npz_may_be_cut_or_saved_over(tmp_path):
    path = save(tmp_path / "r.npz")
    rollouts = rlvar.load_rollouts(path)
    np.savez(path, scores=rollouts.scores, rewards=rollouts.rewards, groups=[0, 0, 1, 1])
    same(rlvar.load_rollouts(path), rlvar.Rollouts(SCORES, REWARDS, groups=[0, 0, 1, 1]))
    os.truncate(path, 10)
    np.testing.assert_array_equal(rollouts.scores, SCORES)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_flipped_bit_of_an_npz_is_noticed(tmp_path, method):
    path = pack(tmp_path / "r.npz", method)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("scores.npy")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"r.npz: array scores cannot be read: "):
        rlvar.load_rollouts(path)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"", "magic"),
        (b"\x93NUMPY\1\0", "EOF"),
        (with_header(HEADER, b"\4\0"), r"version \(4, 0\)"),
        (with_header(HEADER, b"\0\0"), "header"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(99), "EOF"),
        (with_header(HEADER[:-10]), "header"),
        (with_header("   " + HEADER + "\n  x\n y"), "header"),
        (with_header("[" * 3000 + "]" * 3000), "header"),
        (with_header("(" * 9900), "header"),
        (with_header("-" * 9900 + "1"), "header"),
        (with_header("1" * 9900), "header"),
        (with_header(HEADER.replace("4, 3", "18446744073709551616, 3")), "does not fit"),
        (with_header(HEADER.replace("4, 3", "200000000000, 1000")), "does not fit"),
        (with_header(HEADER.replace("4, 3", "-4, -3")), "does not fit"),
        (with_header(HEADER.replace("4, 3", "4, 2")), "does not fit"),
        (with_header(HEADER.replace("<f8", "<f4")), "does not fit"),
        (with_header(HEADER.replace("<f8", "|V0")), "records"),
        (with_header(HEADER.replace("'<f8'", "[('a', '<f4'), ('b', '<f4')]")), "records"),
        (with_header(HEADER.replace("'<f8'", "('<f4', (2,))")), "records"),
        (with_header(HEADER.replace("<f8", "|O")), "Python objects"),
        (with_header(HEADER.replace("<f8", "<c8")), "complex64"),
        (with_header(HEADER.replace("<f8", "<U2")), "<U2"),
        (with_header(HEADER) + b"\0", "does not fit"),
        (npy(np.empty((0, 3, 2))), "at least N = 2 rollouts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_that_cannot_be_is_refused_with_the_name_of_the_file(tmp_path, member, message):
    pack(tmp_path / "odd.npz", scores=member)
    with pytest.raises(ValueError, match=rf"odd.npz: .*{message}"):
        rlvar.load_rollouts(tmp_path / "odd.npz")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "scores.npy").write_bytes(member)
    np.save(tmp_path / "odd" / "rewards.npy", REWARDS)
    with pytest.raises(ValueError, match=rf"odd: .*{message}"):
        rlvar.load_rollouts(tmp_path / "odd")
    rlvar.CovarianceAccumulator().save(tmp_path / "odd.npz")
    with zipfile.ZipFile(tmp_path / "odd.npz", "a") as archive:
        archive.writestr("rollouts.npy", member)
    with pytest.raises(ValueError, match=r"odd.npz: "):
        rlvar.CovarianceAccumulator.load(tmp_path / "odd.npz")


def test_headers_of_every_version_of_the_format_are_read_aligned_or_not(tmp_path):
    data = SCORES.astype(np.float64).tobytes()
    np.save(tmp_path / "rewards.npy", REWARDS)
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        member = with_header(HEADER, version, data)
        assert (len(member) - len(data)) % 2
        (tmp_path / "scores.npy").write_bytes(member)
        for path in (tmp_path, pack(tmp_path / "r.npz", scores=member)):
            np.testing.assert_array_equal(rlvar.load_rollouts(path).scores, SCORES)


def fields(path, local, central, value):
    """Set a field of two bytes in every header of an archive."""
    data = bytearray(path.read_bytes())
    for sign, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = data.find(sign)
        while at >= 0:
            struct.pack_into("<H", data, at + place, value)
            at = data.find(sign, at + 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("method", "edit", "message"),
    [
        (zipfile.ZIP_STORED, (6, 8, 1), "array scores cannot be read: it is encrypted"),
        (zipfile.ZIP_STORED, (8, 10, 9), "it uses compression method 9, which numpy never writes"),
        (zipfile.ZIP_STORED, (8, 10, 93), "it uses compression method 93"),
        (zipfile.ZIP_BZIP2, None, "it uses compression method 12"),
        (zipfile.ZIP_LZMA, None, "it uses compression method 14"),
        (zipfile.ZIP_STORED, (4, 6, 99), "it is a damaged .npz file: zip file version 9.9"),
        (zipfile.ZIP_STORED, (6, 8, 0x20), "cannot be read"),
    ],
)
def test_archives_that_numpy_does_not_write_are_refused(tmp_path, method, edit, message):
    path = pack(tmp_path / "r.npz", method)
    if edit:
        fields(path, *edit)
    with pytest.raises(ValueError, match=f"r.npz: .*{message}"):
        rlvar.load_rollouts(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(pack(tmp_path / "r.npz"), "a") as archive:
        archive.writestr("scores.npy", npy(2 * SCORES))
    with pytest.raises(ValueError, match=r"r.npz: it has two arrays of the same name"):
        rlvar.load_rollouts(tmp_path / "r.npz")


def test_what_is_no_file_of_rollouts_is_said_to_be_what_it_is(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # addresses of sockets are short
        listener.bind("socket")
    good = save(tmp_path / "good.npz").read_bytes()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_bytes(b"hello")
    (tmp_path / "cut.npz").write_bytes(good[:-40])
    np.save(tmp_path / "alone.npy", SCORES)
    (tmp_path / "folder" / "scores.npy").mkdir(parents=True)
    np.save(tmp_path / "folder" / "rewards.npy", REWARDS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    cases = {
        "fifo": "it is a pipe, not a regular file",
        "socket": "it is a socket",
        "/dev/null": "it is a device",
        "empty.npz": "it is not an .npz file: it is empty",
        "text.npz": "it is not an .npz file",
        "cut.npz": "it is a damaged .npz file",
        "alone.npy": "it is not an .npz file but one array: put it into a folder as scores.npy",
        "folder": "array scores cannot be read: it is a folder",
        "other": "it has no array named scores or rewards; it has notes.txt",
        "a\0b": "null",
    }
    for name, message in cases.items():
        for read in (rlvar.load_rollouts, rlvar.CovarianceAccumulator.load):
            wanted = (
                "not a saved" if read is not rlvar.load_rollouts and name in ("folder", "other") else message
            )
            with pytest.raises(ValueError, match=wanted):
                read(tmp_path / name)
    (tmp_path / "other" / "scores.npy").symlink_to("nowhere")
    np.save(tmp_path / "other" / "rewards.npy", REWARDS)
    for name in ("none.npz", "other"):
        with pytest.raises(FileNotFoundError, match=name):
            rlvar.load_rollouts(tmp_path / name)
    for wrong in (3, None, io.BytesIO(good)):
        with pytest.raises(TypeError, match="PathLike"):
            rlvar.load_rollouts(wrong)


def test_missing_and_misfitting_arrays_are_named(tmp_path):
    np.savez(tmp_path / "half.npz", scores=SCORES)
    with pytest.raises(ValueError, match=r"half.npz: it has no array named rewards; it has scores"):
        rlvar.load_rollouts(tmp_path / "half.npz")
    with pytest.raises(ValueError, match=r"bad.npz: rewards must have shape"):
        rlvar.load_rollouts(save(tmp_path / "bad.npz", rewards=np.ones(9)))
    with pytest.raises(ValueError, match=r"bad.npz: lengths must be integers"):
        rlvar.load_rollouts(save(tmp_path / "bad.npz", lengths=np.ones(4)))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("groups", list("abcd"), r"save groups\.astype\(str\)"),
        (
            "scores",
            [np.ones((length, 2)) for length in (3, 1, 2, 3)],
            "padded to one shape, with their lengths",
        ),
        ("rewards", [1.0, None, 2.0, 3.0], "save numbers"),
    ],
)
def test_objects_are_not_unpickled_and_the_way_out_is_told(tmp_path, name, array, message):
    values = np.empty(4, object)
    values[:] = array
    with pytest.raises(ValueError, match=f"r.npz: array {name} cannot .* not unpickled; .*{message}"):
        rlvar.load_rollouts(save(tmp_path / "r.npz", **{name: values}))


def test_names_in_files_reach_no_terminal_as_they_are(tmp_path):
    names = [f"{number}\x1b[2J\n\u202e" for number in range(50)]
    path = save(tmp_path / "\x1b]0;r.npz", **dict.fromkeys(names, np.ones(1)), **{"long" * 99: 1})
    with pytest.warns(UserWarning, match="ignored arrays named 0") as caught:
        assert rlvar.load_rollouts(path).lengths is None
    (tmp_path / "\x1b]1;").mkdir()
    with pytest.raises(ValueError, match="has no array") as error:
        rlvar.load_rollouts(tmp_path / "\x1b]1;")
    for message in (str(caught[0].message), str(error.value)):
        assert message.isprintable()
        assert len(message) < 600
    assert r"\x1b[2J\n\u202e" in str(caught[0].message)
    assert "and 43 more" in str(caught[0].message)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_bomb_is_refused_unread(tmp_path, method):
    zeros = bytes(60 << 20)
    bombs = {
        "more than the header tells": npy(SCORES) + zeros,
        "more than there is": npy(SCORES)[:-1],
        "a header without end": b"\x93NUMPY\2\0\0\0\0\x0c" + zeros,
    }
    for name, member in bombs.items():
        path = pack(tmp_path / f"{name}.npz", method, scores=member)
        tracemalloc.start()
        with pytest.raises(ValueError, match=name):
            rlvar.load_rollouts(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()


def test_arrays_beyond_memory_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MEMORY", 400)
    with pytest.raises(ValueError, match=r"array rewards cannot .*: it is too large .* in a folder"):
        rlvar.load_rollouts(save(tmp_path / "r.npz"))


def test_a_saved_file_replaces_what_a_link_leads_to_and_keeps_its_mode(tmp_path):
    old = save(tmp_path / "old.npz")
    old.chmod(0o640)
    (tmp_path / "link.npz").symlink_to("old.npz")
    (tmp_path / "dangling.npz").symlink_to("new.npz")
    rollouts = rlvar.Rollouts(SCORES, 2 * REWARDS)
    previous = os.umask(0o027)
    try:
        for name in ("link.npz", "dangling.npz"):
            rlvar.save_rollouts(tmp_path / name, rollouts)
            assert (tmp_path / name).is_symlink()
    finally:
        os.umask(previous)
    for name in ("old.npz", "new.npz"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
        same(rlvar.load_rollouts(tmp_path / name), rollouts)
    assert len(os.listdir(tmp_path)) == 4


SAVE = """
import resource, sys
import numpy as np, rlvar
rollouts = rlvar.Rollouts(np.ones((64, 64, 8)), np.ones(64))
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
try:
    rlvar.save_rollouts(sys.argv[1], rollouts)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""


def test_on_a_full_disk_the_old_file_stays_and_no_part_of_the_new(tmp_path):
    path = save(tmp_path / "r.npz")
    before = path.read_bytes()
    command = [sys.executable, "-c", SAVE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, f"{path}: File too large\n")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r.npz"]


def test_what_is_no_regular_file_is_written_straight(tmp_path):
    rollouts = rlvar.Rollouts(SCORES, REWARDS)
    rlvar.save_rollouts("/dev/null", rollouts)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reader:
        rlvar.save_rollouts(tmp_path / "fifo", rollouts)
        (tmp_path / "r.npz").write_bytes(reader.communicate(timeout=60)[0])
    same(rlvar.load_rollouts(tmp_path / "r.npz"), rollouts)


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path):
    rollouts = rlvar.Rollouts(SCORES, REWARDS)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name, error in (
        ("none/r.npz", FileNotFoundError),
        (".", IsADirectoryError),
        ("loop", OSError),
        ("file/r.npz", NotADirectoryError),
    ):
        with pytest.raises(error, match=str(tmp_path)):
            rlvar.save_rollouts(tmp_path / name, rollouts)
    with pytest.raises(TypeError, match="rollouts must be a Rollouts, got ndarray"):
        rlvar.save_rollouts(tmp_path / "r.npz", SCORES)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_mutated_files_end_in_documented_errors_or_are_read():
    ends = fuzz(150)
    assert all(ends[what, end] for what in ("rollouts", "accumulator") for end in ("accepted", "refused"))
