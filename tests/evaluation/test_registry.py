import itertools
import json
import re
from pathlib import Path

import pytest

import zslkit as zk
from zslkit.config import RunConfig
from zslkit.evaluation import registry
from zslkit.evaluation.registry import Metric, metric_facts, metric_label, register_metric
from zslkit.report.comparison import compare, comparison_tables
from zslkit.report.results import record
from zslkit.report.tables import estimate_row, flat

ROOT = Path(__file__).parents[2]
LEAKAGE = "share of test images like a decoded training image"
HIT = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 80, "chance": 0.05}


@pytest.fixture
def fresh_registry(monkeypatch):
    """Let a test register what later tests do not see."""
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    metric_facts.cache_clear()
    yield
    metric_facts.cache_clear()


def seeds(folder, values, name):
    for seed, value in enumerate(values):
        record({name: value}, RunConfig(seed=seed), folder / f"seed-{seed}")
    return folder


def test_more_leakage_is_worse(tmp_path):
    few = seeds(tmp_path / "few", (0.01, 0.02, 0.01), LEAKAGE)
    many = seeds(tmp_path / "many", (0.31, 0.32, 0.31), LEAKAGE)
    verdict = "worse than chance would explain"
    assert compare(few, many)["metrics"][LEAKAGE]["verdict"] == verdict
    verdict = "better than chance would explain"
    assert compare(many, few)["metrics"][LEAKAGE]["verdict"] == verdict
    row = comparison_tables(compare(few, many))["Metrics"][1]
    assert row[3] == "+30.0 points (+30.0 to +30.0)"


def test_a_rise_that_is_neither_good_nor_bad_is_called_higher(tmp_path):
    a = seeds(tmp_path / "a", (1.0, 1.1), "modality_gap")
    b = seeds(tmp_path / "b", (2.0, 2.1), "modality_gap")
    verdict = "higher than chance would explain"
    assert compare(a, b)["metrics"]["modality_gap"]["verdict"] == verdict


def test_average_precision_is_written_in_percent():
    name = "label spaces / openimages / mean average precision"
    assert estimate_row(name, {"value": 0.413, "classes": 12, "n": 900}) == [
        name, "41.3%", "", "900", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "unit", "direction"),
    [
        ("retrieval / text_to_image / recall@10", "text→image recall@10", "fraction", "higher"),
        ("retrieval text_to_image recall@10", "text→image recall@10", "fraction", "higher"),
        ("retrieval / rsum", "rSum (of 600)", "", "higher"),
        ("all / zeroshot hit@1 / InfoNCE @ 0", "zero-shot hit@1", "fraction", "higher"),
        ("per class hit@1 / loss", "hit@1", "fraction", "higher"),  # a class of that name
        ("held-out recall@1", "recall@1", "fraction", "higher"),
        ("certainty / calibration error", "calibration error", "fraction", "lower"),
        ("duplicates / from train to test / near", "duplicates from train to test: near",
         "count", "lower"),
        ("train_seconds", "training time", "s", "lower"),
        ("target_entropy / uniform", "target entropy", "nats", "neither"),
        ("recall ratio", "recall ratio", "", "neither"),
        ("shareholders", "shareholders", "", "neither"),
    ],
)  # fmt: skip
def test_a_metric_is_found_by_its_place_in_the_name(name, words, unit, direction):
    facts = metric_facts(name)
    assert (facts.words, facts.unit, facts.direction) == (words, unit, direction)


def test_differences_of_a_metric_are_points_and_what_is_kept_is_a_share():
    facts = metric_facts("retrieval text_to_image recall@10 / differences / 0 / SigLIP")
    assert (facts.write(-0.036), facts.axis) == ("-3.6 points", "text→image recall@10 (points)")
    assert metric_facts("hit@1 / kept / 0.5 / transport").write(0.75) == "75.0%"
    assert metric_facts("train_seconds / kept / 0.5 / transport").write(0.75) == "75.0%"
    assert metric_facts("train_seconds / differences / 0 / SigLIP").write(2.0) == "+2 s"


def test_numbers_are_written_by_their_unit():
    assert metric_facts("cost / images / a / parameters").write(3504872) == "3,504,872"
    assert metric_facts("parameters").write(2.5) == "2.5"
    assert metric_facts("loss").write(1.23456) == "1.235 nats"
    assert metric_facts("loss").write_change(-0.5) == "-0.5 nats"
    assert metric_facts("loss").axis == "loss (nats)"
    assert (metric_facts("loss").factor, metric_facts("hit@1").factor) == (1, 100)
    assert metric_facts("parameters").axis == "parameters"


def test_labels_keep_what_stands_around_the_metric():
    assert metric_label("retrieval / text_to_image / recall@1") == "text→image recall@1"
    assert metric_label("templates / none (1) / hit@1") == "templates / none (1) / hit@1"
    assert metric_label("sphere / captions / modality_gap") == "sphere / captions / modality gap"
    assert metric_label("something / new") == "something / new"


def test_a_metric_is_added_from_outside(tmp_path, fresh_registry):
    zk.register_metric(r"rank of the truth@(\d+)", r"median rank, \1 classes", "ranks", "lower")
    name = "zeroshot / rank of the truth@20"
    a = record({"zeroshot": {"rank of the truth@20": 3.0}}, None, tmp_path / "a").parent
    seeds(tmp_path / "b", (9.0, 9.5, 9.0), name)
    seeds(tmp_path / "c", (4.0, 4.5, 4.0), name)
    found = compare(tmp_path / "b", tmp_path / "c")
    assert found["metrics"][name]["verdict"] == "better than chance would explain"
    row = comparison_tables(found)["Metrics"][1]
    assert row[0] == "zeroshot / median rank, 20 classes"
    assert row[3] == "-5 ranks (-5 to -5)"
    ((name, numbers),) = flat(json.loads((a / "results.json").read_text())["metrics"])
    assert estimate_row(name, numbers)[1] == "3 ranks"
    assert zk.metric_facts(name).axis == "median rank, 20 classes (ranks)"


def test_a_cell_may_run_twice_and_change_its_words(fresh_registry):
    register_metric("regret", "regret", "fraction", "lower")
    assert metric_facts("regret").direction == "lower"
    register_metric("regret", "joy", "fraction", "higher", ".2%")
    assert metric_facts("x / regret").write(0.5) == "50.00%"
    assert register_metric("ece", "calibration error", "fraction", "lower").pattern == "ece"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("ece", "mine"), r"pattern='ece' is the library's own: calibration error"),
        (("a(", "a"), r"pattern='a\(' is no regular expression: missing \)"),
        (("a(b)", r"\2"), r"words='.*2': pattern='a\(b\)' has no group 2"),
        (("a", "a", "", "up"), "direction='up' must be one of higher, lower, neither"),
        (("a", "a", "", "lower", ".3q"), r"form='.3q' formats no number; give one such as \.3f"),
    ],
)
def test_facts_that_cannot_be_are_refused(given, message, fresh_registry):
    with pytest.raises(ValueError, match=message):
        register_metric(*given)


def test_the_rows_of_the_library_pass_its_own_checks():
    for metric in registry._OWN.values():
        again = Metric(*(getattr(metric, name) for name in Metric.__dataclass_fields__))
        values = [getattr(again, name) for name in ("pattern", "words", "unit", "direction")]
        assert register_metric(*values) == metric


def test_committed_results_hold_no_metric_that_nobody_knows():
    known = ("summary",)  # of notebook 04: the name of the metric stands in "extra"
    names = {
        name
        for path in ROOT.glob("reports/**/results.json")
        for name, _ in flat(json.loads(path.read_text("utf-8"))["metrics"])
    }
    unknown = sorted(n for n in names if not registry._find(n) and n.split(" / ")[0] not in known)
    assert unknown == []


def test_the_words_of_figures_are_those_of_the_registry():
    text = (ROOT / "zslkit" / "plots" / "training.py").read_text("utf-8")
    for name in ("target_entropy", "loss", "self_mass", "target_agreement"):
        assert f'"{metric_facts(name).axis}"' in text


def test_no_name_is_tested_for_being_a_rate():
    files = itertools.chain.from_iterable(
        (ROOT / "zslkit" / family).glob("*.py") for family in ("report", "plots", "evaluation")
    )
    for path in files:
        assert not re.search(r"is_rate|hit\|recall", path.read_text("utf-8")), path
