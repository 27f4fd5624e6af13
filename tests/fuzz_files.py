"""Damaged files through everything that reads files: none but the documented errors may come.

    python tests/fuzz_files.py [COUNT [SEED]]

mutates rollouts, folders and accumulators, as bytes or inside their members (with checksums that fit, so that
the damage gets past them), and prints what came of it. tests/test_files.py runs a short part.
"""

import collections
import contextlib
import io
import subprocess
import sys
import tempfile
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

import rlvar
from rlvar.cli import main

# fmt: off
SIZES = ["0", "-1", "7", "4294967296", "9223372036854775807", "18446744073709551616", "True", "None", "1e3"]
DTYPES = ["<f4", "<f8", ">f8", "<f2", "<f16", "|b1", "|i1", ">i8", "<u2", "|O", "|V2", "|V1", "|V0", "|S0",
          "<U3", "<M8[D]", "<c8", "f8,f4", "(2,)f4", "q", "9", "@"]
EDITS = [(b"(", b"[" * 5000), (b"}", b""), (b",", b",,"), (b"'", b'"'), (b"False", b"True"), (b"{", b" {\n ")]
# fmt: on
VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf, 2.0**62, -(2.0**63)]
METHODS = [zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED] * 3 + [zipfile.ZIP_LZMA]


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array))
    return file.getvalue()


def files(rng):
    """Kinds of files that are read, with their members as .npy."""
    n, t, d = 12, 5, 3
    scores, logp = rng.standard_normal((n, t, d)), -rng.random((n, t))
    groups = np.array(list("aabbccddeeff"))
    steps = {"mask": rng.random((n, t)) < 0.8, "values": logp, "logp": logp, "behavior_logp": logp}
    found = [
        {"scores": scores.astype(np.float32), "rewards": rng.random((n, t)), "lengths": np.full(n, 4)},
        {"scores": np.asfortranarray(scores, ">f8"), "rewards": rng.random(n), "groups": groups},
        {"scores": scores, "rewards": rng.random(n), "score_squares": logp**2},
        {"scores": scores.astype(np.float16), "rewards": rng.integers(0, 2, (n, t)), **steps},
        {
            "scores": scores[:, 0],
            "rewards": rng.random(12),
            "lengths": np.ones(n, int),
            "tokens": np.full(n, 7),
        },
        {"scores": scores.reshape(-1, d), "rewards": rng.random(n * t), "lengths": np.full(n, t)},
        {
            "scores": scores,
            "rewards": rng.random(n),
            "scores_of": np.array("all"),
            "sketched": np.array(True),
        },
    ]
    for p in (None, rng.random(n)):
        with tempfile.NamedTemporaryFile() as place:
            accumulator = rlvar.CovarianceAccumulator(block_size=2)
            accumulator.update(scores, sample_weight=p)
            accumulator.save(place.name)
            with np.load(place.name) as archive:
                found.append(dict(archive))
    return [{name: npy(array) for name, array in members.items()} for members in found]


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def mutated_bytes(rng, data, donor):
    """Flip bits; cut, drop, repeat or overwrite a piece, or put another file's in its place."""
    a = int(rng.integers(len(data) + 1))
    b = min(len(data), a + int(2 ** rng.uniform(0, 10)))
    flipped = bytes(byte ^ (1 << int(rng.integers(8))) for byte in data[a : min(b, a + 8)])
    filled = pick(rng, [b"\0", b"\1", b"\x7f", b"\x80", b"\xff"]) * (b - a)
    pieces = [flipped + data[a + len(flipped) :], b"", data[b:], data[a:b] + data[a:]]
    return data[:a] + pick(rng, [*pieces, filled + data[b:], donor[a:b] + data[b:]])


def mutated_member(rng, data, donor):
    """Edit the header of an .npy, or a number behind it, or any bytes."""
    end = data.find(b"\n") + 1
    head, body = data[:end], data[end:]
    edit = pick(rng, ["dtype", "shape", "text", "number", "number", "number", "bytes"])
    if edit == "bytes":
        return mutated_bytes(rng, data, donor)
    if edit == "dtype":
        for known in (b"<f4", b"<f8", b">f8", b"<i8", b"<f2", b"|b1", b"<U1"):
            head = head.replace(known, pick(rng, DTYPES).encode())
    elif edit == "shape":
        start, stop = head.find(b"(") + 1, head.find(b")")
        sizes = [
            pick(rng, SIZES).encode() if rng.random() < 0.4 else each for each in head[start:stop].split(b",")
        ]
        head = head[:start] + b",".join(sizes) + head[stop:]
    elif edit == "text":
        head = head.replace(*pick(rng, EDITS))
    elif len(body) >= 8:
        at = 8 * int(rng.integers(len(body) // 8))
        old = float(np.frombuffer(body[at : at + 8])[0])
        with np.errstate(all="ignore"):
            new = pick(rng, [np.float64(old * 1.001), *np.array(VALUES), *np.array(VALUES).astype(np.int64)])
        body = body[:at] + new.tobytes() + body[at + 8 :]
    if rng.random() < 0.5:  # make the length of the header fit
        head = head[:8] + (len(head) - 10).to_bytes(2, "little") + head[10:]
    return head + body


def write(path, rng, members, others, folder):
    """Write the members, mutated one way or another, as a folder or an archive."""
    inside = rng.random() < 0.7
    name, donor = pick(rng, list(members)), pick(rng, list(others.values()))
    if inside and rng.random() < 0.7:
        members[name] = mutated_member(rng, members[name], donor)
    elif inside:
        new = pick(rng, [name, name.upper(), f"\x1b[31m\u202e{name}", "lengths", "mask"])
        members[new] = pick(rng, [donor, members.pop(name)])
    if folder:
        path.mkdir()
        for each, data in members.items():
            whole = inside or each != name
            (path / f"{each}.npy").write_bytes(data if whole else mutated_bytes(rng, data, donor))
        return
    with zipfile.ZipFile(path, "w", pick(rng, METHODS)) as archive:
        for each, data in members.items():
            archive.writestr(f"{each}.npy", data)
    if not inside:
        path.write_bytes(mutated_bytes(rng, path.read_bytes(), b"".join(others.values())))


def try_rollouts(path):
    rollouts = rlvar.load_rollouts(path)
    saved = path.with_name("saved.npz")
    rlvar.save_rollouts(saved, rollouts)
    np.testing.assert_array_equal(rlvar.load_rollouts(saved).scores, rollouts.scores)


def try_accumulator(path):
    accumulator = rlvar.CovarianceAccumulator.load(path)
    other = rlvar.CovarianceAccumulator(block_size=accumulator.block_size)
    other.update(np.ones((3, 5, 3)))
    for each, rest in ((accumulator, other), (other, accumulator)):
        merge, exact = partial(each.merge, rest), partial(each.totals, ddof=0)
        for use in (each.covariance, each.totals, each.growth, exact, merge, each.covariance):
            with contextlib.suppress(ValueError):  # not enough rollouts, beyond the range, other coordinates
                result = use()
                assert result is None or np.isfinite(result).all()
        assert 0 <= each.effective_size <= 1.001 * each.count
    accumulator.save(path)
    rlvar.CovarianceAccumulator.load(path)


def try_command_line(path, command, process):
    if process:
        done = subprocess.run([sys.executable, "-m", "rlvar", command, path], capture_output=True, text=True)
        status, out, err = done.returncode, done.stdout, done.stderr
    else:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            status = main([command, str(path)])
        out, err = out.getvalue(), err.getvalue()
    lines = [line for line in err.splitlines() if not line.startswith("rlvar: warning: ")]
    assert all(line.isprintable() for line in (out + err).split("\n")), (out, err)
    assert (status, len(lines), out == "") in ((0, 0, False), (2, 1, True)), (status, out, err)
    return f"status {status}"


def fuzz(count, seed=0, processes=0):
    """Mutate `count` files; return how often each reader came to which end."""
    ends, known = collections.Counter(), files(np.random.default_rng(seed))
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        members = known[number % len(known)]
        folder = "scores" in members and rng.random() < 0.3
        what = "folder" if folder else "rollouts" if "scores" in members else "accumulator"
        command = "report" if number % 20 == 0 else "covariance"
        try:
            with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
                path = Path(scratch, "mutated")
                write(path, rng, dict(members), pick(rng, known), folder)
                end = try_command_line(path, command, number < processes)
                ends[f"rlvar {command}" + " as a process" * (number < processes), end] += 1
                # A warning of numpy about numbers would be one that nobody has thought of.
                warnings.simplefilter("error" if what == "accumulator" else "ignore")
                try:
                    (try_accumulator if what == "accumulator" else try_rollouts)(path)
                    ends[what, "accepted"] += 1
                except (ValueError, FileNotFoundError) as error:
                    named = path.name in str(error)
                    ends[what, "refused" if named else "no name"] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}, of {what}") from error
    assert "no name" not in {end for _, end in ends}
    return ends


if __name__ == "__main__":
    for (what, end), times in sorted(fuzz(*map(int, sys.argv[1:] or ["1000"]), processes=50).items()):
        print(f"{what:<30} {end:<9} {times:>6}")
