"""Two sets of rollouts in sentences, tables and a page."""

import json
import math
import re

import numpy as np
import pytest

import rlvar
from pages import Page
from rlvar.stats.shown import number, printable

HOSTILE = "<script>alert('x')</script> \x1b[31m\u202e &amp; $x^2$"


def rollouts(seed=5, *, prompts=40, sizes=8, effect=2.0, noise=1.0, shift=0.0, labels=None, **options):
    """Rollouts of one step in 6 coordinates, whose rewards are 0 or 1 by the first of them."""
    rng = np.random.default_rng(seed)
    n = prompts * sizes
    z = rng.standard_normal((n, 1, 6))
    rewards = (effect * z[:, 0, 0] + noise * rng.standard_normal(n) + shift > 0).astype(float)
    names = [f"{p} of {p % 3}, {p * p}" for p in range(prompts)] if labels is None else labels
    return rlvar.Rollouts(z, rewards, groups=np.repeat(names, sizes), **options)


@pytest.fixture(scope="module")
def clear():
    """A policy that follows the reward, and one that hardly does: B needs the larger batch."""
    return rlvar.report_pair(rollouts(), rollouts(1, effect=0.5, shift=1.0))


def test_the_verdict_leads_with_the_batch_that_noise_scales_ask_for(clear):
    row = clear.pair["rloo"]
    times = f"B needs {number(row.noise_scale_ratio.value)} times as large a batch as A"
    assert row.noise_scale_ratio.low > 1
    assert clear.verdict[0].startswith(f"With RLOO, {times} for as much signal as noise")
    assert row.ratio.value < 1.5  # and the variance alone says nothing of it
    (of_variance,) = [text for text in clear.verdict if "By itself this does not say" in text]
    assert f"squared norm of that of B is {number(row.signal_ratio.value)} (" in of_variance
    assert 2 <= len(clear.verdict) <= 6


def test_turned_around_the_same_set_needs_the_larger_batch():
    turned = rlvar.report_pair(rollouts(1, effect=0.5, shift=1.0), rollouts())
    assert re.match(r"With RLOO, A needs [\d.]+ times as large a batch as B for", turned.verdict[0])


def test_rewards_say_which_is_higher_and_by_how_much(clear):
    gain = clear.pair.reward_difference
    assert gain.low > 0
    assert any(
        text.startswith(f"The mean reward of B is {number(gain.value)} higher than that of A")
        for text in clear.verdict
    )
    even = rlvar.report_pair(rollouts(), rollouts(2)).verdict
    assert any(text.startswith("The mean rewards are not distinguishable: 0.") for text in even)


def test_what_is_not_settled_is_called_inconclusive():
    found = rlvar.report_pair(rollouts(), rollouts(2))
    assert found.verdict[0].startswith("Inconclusive: with RLOO, ")
    assert "the interval includes 1 (95% interval" in found.verdict[0]


@pytest.mark.parametrize(("b", "whose"), [({"effect": 0.0}, "B"), ({"effect": 3.0}, "either A or B")])
def test_a_signal_that_is_not_resolved_leaves_the_batch_open_or_bounded(b, whose):
    a = rollouts() if whose == "B" else rollouts(prompts=12, sizes=2, effect=0.1)
    b = {**b, "prompts": 40} if whose == "B" else {"prompts": 12, "sizes": 2, "effect": 0.0}
    found = rlvar.report_pair(a, rollouts(3, **b))
    assert f"these rollouts do not resolve the signal of {whose}" in found.verdict[0]
    assert "noise scale is above" in found.verdict[0] or "not resolved" in found.verdict[0]


def test_the_same_rollouts_are_said_to_be_the_same():
    found = rlvar.report_pair(rollouts(), rollouts(), names=("x", "y"))
    assert found.verdict == [
        "x and y are the same rollouts, to the bit: every ratio is 1 and every difference 0."
    ]
    assert found.notes == []


def test_notes_say_how_the_two_were_matched(clear):
    assert clear.notes[0] == "The 40 groups of A and B are matched by their labels."
    apart = rlvar.report_pair(rollouts(labels=range(40)), rollouts(2, labels=range(40)))
    assert "consecutive numbers" in apart.notes[0]


def test_copies_in_one_set_put_the_numbers_in_question():
    whole = rollouts()
    doubled = whole[np.repeat(np.arange(len(whole)), 2)]
    first = rlvar.report_pair(whole, doubled).verdict[0]
    assert first == "The numbers may not be those of the policies: In B some rollouts look like copies."


def test_dead_groups_are_counted():
    found = rlvar.report_pair(rollouts(), rollouts(4, effect=0.3, shift=2.5))
    dead = [each.sampling.dead_groups for each in found.reports]
    assert dead[1] > 0
    assert any(f"{dead[1]} of 40 in B" in note for note in found.notes)


def test_few_units_and_tails_are_in_the_notes():
    whole = rlvar.datasets.cartpole()
    notes = rlvar.report_pair(whole[:128], whole[128:]).notes
    assert any("Of A: few of 128 rollouts decide" in note for note in notes)


def test_of_a_part_of_the_parameters_all_is_said_of_that_part():
    options = {"scores_of": "the head of A"}
    found = rlvar.report_pair(rollouts(**options), rollouts(1, effect=0.5, **options))
    assert found.verdict[0].startswith("For the head alone: with RLOO, B needs")
    assert any("not of the whole policy" in note for note in found.notes)


def test_of_different_parameters_no_variance_is_compared():
    found = rlvar.report_pair(rollouts(scores_of="all of A"), rollouts(1, scores_of="all of B"))
    assert not any("variance" in text for text in found.verdict)
    assert any("are not compared" in note for note in found.notes)


def test_numbers_of_sentences_and_tables_are_those_of_the_json(clear):
    read = json.loads(json.dumps(clear.to_dict(), allow_nan=False))
    row = next(each for each in read["pair"]["rows"] if each["name"] == "rloo")
    for scale in row["noise_scale"]:
        shown = f"{number(scale['value'])} ({number(scale['low'])} to {number(scale['high'])})"
        assert shown in clear.verdict[0]
        assert shown in clear.text()
    assert read["verdict"] == clear.verdict
    for own, each in zip((0, 1), read["reports"], strict=True):
        alone = next(x for x in each["comparison"]["rows"] if x["name"] == "rloo")["noise_scale"]["value"]
        assert row["noise_scale"][own]["value"] == pytest.approx(8 * alone)  # groups of 8 in rollouts


@pytest.mark.parametrize("names", [("A", "B"), ("runs/long/" * 9, HOSTILE)])
def test_text_has_80_columns_and_nothing_that_steers_the_terminal(names):
    found = rlvar.report_pair(rollouts(), rollouts(1, effect=0.5), names=names)
    text = found.text()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert repr(found) == text
    assert "\x1b[1m" in found.text(colour=True)
    assert "The report on" in found.text(full=True)


def test_the_page_has_the_verdict_linked_to_its_figures_and_escapes_what_users_name(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    pytest.importorskip("jinja2", reason="needs jinja2")
    found = rlvar.report_pair(
        rollouts(), rollouts(1, effect=0.5), names=("old", HOSTILE), sources=("old", HOSTILE)
    )
    found.to_html(tmp_path / "pair.html")
    text = (tmp_path / "pair.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert {"batches", "scales", "variance", "table"} <= set(page.ids)
    words = re.sub(r"\s+", " ", "".join(page.text))
    for sentence in (*found.verdict, *found.notes):
        assert printable(sentence) in words
    assert not math.isnan(found.pair["rloo"].ratio.value)
