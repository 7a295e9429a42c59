"""Findings say what the numbers say, by hand-made numbers on either side of each line."""

import math

import pytest

from zslkit.report.findings import calibration_words, compared_words, soft_label_words, verdict


def rows(mass, entropy):
    early = {"epoch": 0, "self_mass": 1.0, "target_entropy": 0.0}
    return [early, {"epoch": 1, "self_mass": mass, "target_entropy": entropy}, {"epoch": 1}]


def test_nearly_uniform_labels_are_a_finding():
    words = soft_label_words(rows(0.053, 4.2), 128)
    assert words.startswith("The soft labels were nearly uniform: 5.3% of the mass on the own")
    assert "batch of 128 (uniform: 0.8%), entropy 4.20 of at most 4.85 nats" in words
    assert f"{math.exp(4.2):.0f} captions that fit alike" in words


def test_soft_labels_in_between_and_one_hot():
    assert "stood between one-hot and uniform" in soft_label_words(rows(0.5, 1.5), 128)
    assert "nearly one-hot" in soft_label_words(rows(0.97, 0.1), 128)
    assert soft_label_words([{"epoch": 0, "loss": 1.0}], 128) == ""


def test_a_scale_that_makes_calibration_worse_is_explained():
    def words(errors, losses):
        pair = ("learned", "fitted")
        errors, losses = (dict(zip(pair, x, strict=True)) for x in (errors, losses))
        return calibration_words(errors, losses, {"learned": 0.4, "fitted": 0.5}, 0.45)

    worse = words((0.063, 0.085), (1.5, 1.4))
    assert "makes calibration worse: calibration error 6.3 → 8.5 points" in worse
    assert "log loss 1.500 → 1.400 nats: it was fitted to the log loss" in worse
    assert "it states 50.0% on average (before: 40.0%) and is right in 45.0%" in worse
    assert "does not even carry over" in words((0.063, 0.085), (1.4, 1.5))
    assert "more honest: calibration error 8.5 → 6.3" in words((0.085, 0.063), (1.5, 1.4))
    assert calibration_words({"learned": 0.1}, {"learned": 1.0}, {"learned": 0.5}, 0.5) == ""


def gap(value, half, n=5):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def test_a_verdict_needs_seeds_and_knows_which_way_is_better():
    assert verdict(gap(0.1, 0.05), "hit@1") == "better"
    assert verdict(gap(-0.1, 0.05), "hit@1") == "worse"
    assert verdict(gap(-0.1, 0.05), "loss") == "better"
    assert verdict(gap(0.1, 0.2), "hit@1") == "undecided"
    assert verdict(gap(0.1, 0.05, n=2), "hit@1") == "too few seeds"


def test_the_comparison_that_is_decided_most_clearly_leads():
    found = compared_words(
        {"a": gap(0.3, 0.4), "b": gap(0.1, 0.02), "c": gap(-0.2, 0.05)}, "hit@1", "InfoNCE"
    )
    assert found["sentence"] == (
        "Decided over 5 seeds: c is worse than InfoNCE, -20.0 points in hit@1; of 3 comparisons "
        "1 better, 1 worse, 1 undecided."
    )
    assert (found["metric"], found["value"], found["over"]) == (
        *("hit@1 / differences", -0.2), "5 seeds, paired"
    )  # fmt: skip
    assert found["low"] == pytest.approx(-0.25)


def test_without_a_decision_the_largest_difference_is_named():
    found = compared_words({"a": gap(0.1, 0.4), "b": gap(-0.2, 0.3)}, "hit@1", "InfoNCE")
    assert found["sentence"].startswith("Undecided over 5 seeds: no difference to InfoNCE in hit@1")
    assert found["sentence"].endswith("the largest is -20.0 points, by b.")
    few = compared_words({"a": gap(0.1, 0.05, n=2)}, "hit@1", "InfoNCE")
    assert few["sentence"].startswith("2 seeds cannot decide: the largest difference to InfoNCE is")
    assert "low" not in few


def test_nothing_compared_is_refused():
    with pytest.raises(ValueError, match="differences is empty: nothing was compared with InfoNCE"):
        compared_words({}, "hit@1", "InfoNCE")
