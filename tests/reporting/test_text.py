"""The report on a terminal: 80 columns, the verdict first, one table, and nothing that steers it."""

import json
import re
import unicodedata

import numpy as np
import pytest

import rlvar
from rlvar.reporting.text import STYLES, clipped, sparklines, table, wrapped
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import columns, measured

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",  # clears the screen, renames the window
    "\x9b31m\x85next\u2028line",  # C1 controls and other ends of lines
    "\u202egnp.exe\u2066",  # reads backwards
    "lone\ud800surrogate",
    "two\nlines\r\tand more",
    "x" * 300,
    "估计器" * 40,
    "é" * 200,
    "a/" * 120,
]


def width(text):
    return max(map(columns, text.split("\n")))


def plain(text):
    """Whether a terminal shows it as it is, colours of ours apart."""
    for code in STYLES.values():
        text = text.replace(code, "")
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture(scope="module")
def cartpole():
    return rlvar.report(rlvar.datasets.cartpole())


@pytest.fixture(scope="module")
def hostile():
    """Names of all kinds, in estimators, the source and what the scores are of."""
    rng = np.random.default_rng(0)
    rollouts = rlvar.Rollouts(
        rng.standard_normal((48, 5, 3)),
        rng.standard_normal((48, 5)),
        groups=np.repeat(np.arange(12), 4),
        scores_of="".join(HOSTILE[:5]),
    )
    own = [(name, rng.standard_normal((48, 5)) * 10.0**i) for i, name in enumerate(HOSTILE)]
    names = ["single", "multi", "rloo", "grpo", "dr-grpo", "opo", "single-mean", *own]
    return rlvar.report(rollouts, names, reference=HOSTILE[0], source=HOSTILE[2] + HOSTILE[5])


def test_the_verdict_comes_first_then_notes_one_table_growth_and_where_to_look(cartpole):
    titles = [line for line in str(cartpole).split("\n") if line[:1].strip()]
    assert [title.split()[0].rstrip(",:") for title in titles] == [
        "Rollouts",
        "Verdict",
        "Notes",
        "Estimators",
        "Growth",
        "More",
    ]
    text = " ".join(str(cartpole).split())
    assert all(sentence in text for sentence in cartpole.verdict + cartpole.notes)
    assert text.index(cartpole.verdict[0]) < text.index(cartpole.notes[0])
    assert "rlvar explain" in text


def test_full_adds_every_table_and_chart(cartpole):
    text = cartpole.text(full=True)
    assert "signal |E g|^2" in text
    assert "Where the variance of multi-step comes from" in text
    assert text.count("Growth of the variance of") == 2
    assert "--full" not in text
    assert "signal |E g|^2" not in str(cartpole)


@pytest.mark.parametrize("colour", [False, True])
def test_80_columns_and_no_control_characters_whatever_the_names(cartpole, hostile, colour):
    for report in (cartpole, hostile):
        text = report.text(colour=colour)
        assert plain(text)
        assert plain(report.text(full=True, colour=colour))
        for code in STYLES.values():
            text = text.replace(code, "")
        assert width(text) <= 80


def test_names_are_escaped_in_every_repr(hostile):
    with pytest.warns(UserWarning, match="only 6 groups") as warned:
        pair = rlvar.compare_rollouts(hostile.rollouts[:24], hostile.rollouts[24:], names=HOSTILE[:2])
    assert all(plain(str(each.message)) for each in warned)
    for result in (hostile.comparison, rlvar.decompose(hostile.rollouts), pair):
        assert plain(repr(result))
    assert repr(hostile.comparison).count("\n") < 60  # a name has no lines of its own


def rows_of(report):
    lines = iter(report.text().split("\n"))
    found = {}
    for line in lines:
        if line.startswith("Estimators"):
            next(lines)
            for row in lines:
                if re.match(r"  \d+% intervals", row):
                    return found
                name, *cells = re.split(r" {2,}", row.strip())
                found[name] = cells
    raise AssertionError("no table")


def as_estimate(fields):
    ends = (np.nan if fields[key] is None else fields[key] for key in ("low", "high"))
    value = np.nan if fields["value"] is None else fields["value"]
    return Estimate(value, np.nan, *ends, fields["confidence"], fields["resolved"])


def test_numbers_of_the_table_are_those_of_the_json(cartpole):
    rows = rows_of(cartpole)
    assert list(rows) == ["multi", "single"]  # the quietest first
    fields = json.loads(json.dumps(cartpole.to_dict(), allow_nan=False))["comparison"]["rows"]
    for row in fields:
        ratio, scale = rows[row["name"]]
        same = row["name"] == "single"
        assert ratio == ("1" if same else measured(as_estimate(row["ratio"])))
        assert scale == measured(as_estimate(row["noise_scale"]), bounded=True)


def test_numbers_of_the_verdict_are_those_of_the_table(cartpole):
    inverse = 1 / cartpole.comparison["multi"].ratio.value
    assert f"needs {inverse:.3g} times" in cartpole.verdict[0]
    assert float(rows_of(cartpole)["multi"][0].split()[0]) == pytest.approx(1 / inverse, rel=5e-3)


@pytest.fixture(scope="module")
def grouped():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((400, 1, 6))
    rewards = (scores[:, 0, 0] + rng.standard_normal(400) > 0).astype(float)
    return rlvar.report(
        rlvar.Rollouts(scores, rewards, groups=np.repeat(np.arange(100), 4)), ["grpo", "rloo", "dr-grpo"]
    )


def test_what_is_not_comparable_is_marked_and_a_known_factor_divided_out(grouped):
    rows, text = rows_of(grouped), " ".join(str(grouped).split())
    assert set(rows) == {"grpo*", "rloo", "dr-grpo+"}
    assert rows["dr-grpo+"][0] == "1"
    assert grouped.comparison["dr-grpo"].ratio.value < 0.99
    assert "* may have another mean gradient than rloo: go by the noise scale" in text
    assert "+ has a known multiple of the mean gradient of rloo" in text


def test_an_unresolved_noise_scale_has_a_bound_and_no_value():
    rng = np.random.default_rng(1)
    report = rlvar.report(rlvar.Rollouts(rng.standard_normal((100, 3, 2)), rng.standard_normal((100, 3))))
    scales = [cells[1] for cells in rows_of(report).values()]
    assert all(re.fullmatch(r"above [\d.,]+", scale) for scale in scales)


def test_colours_are_there_only_when_wanted_and_change_no_word(cartpole):
    coloured = cartpole.text(colour=True)
    assert "\x1b" not in cartpole.text()
    assert STYLES["bold"] + "Verdict" in coloured
    quieter = next(line for line in coloured.split("\n") if "multi  " in line)
    assert quieter.startswith(STYLES["green"])  # its interval excludes 1
    for code in STYLES.values():
        coloured = coloured.replace(code, "")
    assert coloured == cartpole.text()


def test_a_tie_has_no_colour(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((12, 2, 3)), rng.standard_normal((12, 2)))
    text = rlvar.report(rollouts).text(colour=True)
    assert STYLES["green"] not in text
    assert STYLES["yellow"] not in text


def test_widths_are_those_of_a_terminal():
    assert columns("估计") == 4
    assert columns(unicodedata.normalize("NFD", "é")) == 1
    assert clipped("估计器", 5) == "估..."
    assert clipped("abc", 3) == "abc"
    lines = table(("estimator", "x"), [("估计", "1"), ("ab", "22")])
    assert [line.index(cell) for line, cell in zip(lines[1:], ("1", "22"), strict=True)] == [11, 13]


def test_a_path_is_broken_between_its_folders_and_loses_nothing():
    path = "/" + "/".join(["folder"] * 30) + "/rollouts.npz"
    lines = wrapped(f"Rollouts: {path}", indent=0).split("\n")
    assert max(map(len, lines)) <= 80
    assert "".join(line.strip() for line in lines) == f"Rollouts:{path}"
    assert all(line.endswith("/") for line in lines[1:-1])


@pytest.mark.parametrize("steps", [2, 7, 40, 41, 5000])
def test_a_sparkline_ends_at_the_last_step_and_has_one_line(steps):
    (line,) = sparklines({"multi": np.arange(1.0, steps + 1)})
    assert line.endswith(f"█  up to {steps:,}" if steps >= 1000 else f"█  up to {steps:.3g}")
    assert columns(line) <= 80


def test_one_step_has_no_sparkline(rng):
    report = rlvar.report(rlvar.Rollouts(rng.standard_normal((30, 1, 2)), rng.standard_normal(30)))
    assert "Growth" not in str(report)


def test_rewards_alone_are_laid_out_alike():
    rewards = np.random.default_rng(0).integers(0, 2, 96).astype(float)
    recorded = rlvar.RecordedRollouts(
        HOSTILE[0] + HOSTILE[5], "mine", rewards, groups=np.arange(96) // 4, notes=(HOSTILE[4],)
    )
    report = rlvar.report_rewards(recorded)
    for text in (report.text(), report.text(full=True)):
        assert width(text) <= 80
        assert plain(text)
        assert text.index("Verdict") < text.index("Rewards\n")
    assert "dead groups\n" not in report.text()
    assert "dead groups\n" in report.text(full=True)
    assert f"variance within prompts   {measured(report.within)}" in report.text()
