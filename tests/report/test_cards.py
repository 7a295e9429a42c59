"""Run cards say what a run was; two runs are told apart by more than their seeds explain."""

import json
import math
from dataclasses import asdict

import pytest
from scipy import stats

from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.data.files import write_json
from zslkit.evaluation.intervals import seed_interval
from zslkit.report.cards import card, card_markdown, load_results, read_run, write_card
from zslkit.report.comparison import compare, comparison_tables, facts
from zslkit.report.provenance import provenance
from zslkit.report.results import record
from zslkit.report.tables import estimate_row
from zslkit.trainer import train

HIT = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 80, "chance": 0.05}
RECORD = {
    **{"steps": 3, "total_steps": 4, "interrupted": True, "train_seconds": 1234.5},
    **{"seconds_per_step": 0.5, "images_per_second": 256.0, "pairs": 4096},
    **{"swapped_captions": 12, "unreadable_images": ["x.jpg"]},
    "peak_memory_mib": {"resident": 1024},
}


def run_of(**changes):
    return provenance(RunConfig(**changes)) | {"record": RECORD}


@pytest.fixture(scope="module")
def trained(tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    return train(RunConfig(**tiny_settings, output_dir=str(folder), max_steps=2))


def test_training_leaves_one_record_and_a_card(trained):
    stored = read_run(trained.run_dir)
    assert stored["record"] == asdict(trained.facts)
    assert trained.facts == load_run(trained.run_dir).facts
    assert stored.keys() >= {"config", "seed", "manifest_checksum", "code", "versions", "machine"}
    assert "metrics" not in stored
    step = trained.facts.seconds_per_step
    assert 2 * step == pytest.approx(trained.facts.train_seconds, abs=0.02)
    assert trained.facts.images_per_second * step == pytest.approx(8, rel=0.01)  # a batch
    assert trained.facts.peak_memory_mib["resident"] > 100
    assert "| steps | 2 of 2 complete |" in (trained.run_dir / "card.md").read_text("utf-8")


def test_metrics_and_advice_join_the_card_of_their_run(trained):
    record({"hit@1": HIT}, trained.config, trained.run_dir, extra={"advice": ["Try | more."]})
    stored = read_run(trained.run_dir)
    assert stored["metrics"] == {"hit@1": HIT}
    assert stored["record"] == asdict(trained.facts) | {"advice": ["Try | more."]}
    text = (trained.run_dir / "card.md").read_text("utf-8")
    assert "| hit@1 | 50.0% | 40.0% to 60.0% | 80 | 5.0% |" in text
    assert "\n- Try \\| more.\n" in text


def test_elsewhere_no_card_is_written(tmp_path):
    record({"hit@1": HIT}, RunConfig(), tmp_path)
    assert read_run(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_card_names_what_differs_from_the_defaults_and_nothing_else():
    tables = card(run_of(epochs=2, soft_targets="none", output_dir="reports/x", max_pairs=5))
    assert tables["Settings"][1:] == [
        ["max_pairs", "5", "null"],
        ["soft_targets", "none", "teacher"],
        ["epochs", "2", "16"],
    ]
    training = dict(tables["Training"][1:])
    assert training["pairs"] == "4,096 of toy / train"
    assert training["steps"] == "3 of 4 interrupted"
    assert training["time"] == "1,234.5 s: 0.5 s a step, 256 images/s"
    assert training["peak memory"] == "1,024 MiB resident"
    assert (training["swapped captions"], training["unreadable images"]) == ("12", "1")
    assert {"Advice", "Results"}.isdisjoint(tables)
    assert "Settings" not in card(run_of())


def test_a_card_says_what_the_run_came_from():
    run = run_of()
    run["code"] = {"version": "9", "sha256": "a" * 64, "commit": "b" * 40, "dirty": True}
    origin = dict(card(run)["Origin"][1:])
    assert origin["code"] == f"zslkit 9, commit {'b' * 12} with changes, sources {'a' * 12}"
    assert f"torch {run['versions']['torch']}" in origin["packages"]
    run["code"] |= {"commit": None, "dirty": None}
    assert dict(card(run)["Origin"][1:])["code"].startswith("zslkit 9, no git commit, sources")


def test_marks_in_names_are_no_markdown():
    run = run_of(manifest="toy", train_split="a|b <i>$x$")
    assert "4,096 of toy / a\\|b \\<i\\>\\$x\\$ |" in card_markdown(run)


def test_a_card_keeps_folders_outside_the_project_private(tmp_path):
    write_card(tmp_path, run_of(output_dir=str(tmp_path), data_root=str(tmp_path)))
    assert str(tmp_path) not in (tmp_path / "run.json").read_text()
    assert (tmp_path / "card.md").read_text("utf-8").startswith(f"# Run card: …/{tmp_path.name}\n")


def test_rates_are_shown_in_percent_and_other_numbers_are_not():
    assert estimate_row("hit@1", HIT) == ["hit@1", "50.0%", "40.0% to 60.0%", "80", "5.0%"]
    assert estimate_row("recall ratio", {"value": 0.9}) == ["recall ratio", "0.9", "", "", ""]
    assert estimate_row("loss", {"value": 1.23456})[1] == "1.235 nats"


def sweep(folder, values, metric="hit@1", **changes):
    """Write results for each seed as a sweep does; give the folder of the variant."""
    for seed, value in values.items():
        record({metric: value}, RunConfig(seed=seed, **changes), folder / f"seed-{seed}")
    return folder


def test_shared_seeds_are_compared_in_pairs(tmp_path):
    a = sweep(tmp_path / "a", {0: 0.5, 1: 0.6, 2: 0.7}, soft_targets="none")
    b = sweep(tmp_path / "b", {0: 0.55, 1: 0.66, 2: 0.74, 9: 0.1})
    found = compare(a, b)
    assert found["sides"] == [(a, [0, 1, 2]), (b, [0, 1, 2, 9])]
    assert found["config"] == {"soft_targets": ("none", "teacher")}
    assert found["facts"] == {}
    hit = found["metrics"]["hit@1"]
    expected = stats.ttest_rel([0.55, 0.66, 0.74], [0.5, 0.6, 0.7]).confidence_interval()
    assert hit["difference"]["value"] == pytest.approx(0.05)
    assert hit["difference"]["low"] == pytest.approx(expected.low, abs=1e-5)
    assert hit["difference"]["high"] == pytest.approx(expected.high, abs=1e-5)
    assert hit["basis"] == "paired over 3 shared seeds"
    assert hit["verdict"] == "better than chance would explain"
    assert hit["first"] == seed_interval([0.5, 0.6, 0.7])
    assert compare(b, a)["metrics"]["hit@1"]["verdict"] == "worse than chance would explain"
    assert compare(a, a)["metrics"]["hit@1"]["verdict"] == "equal"


def test_what_the_seeds_explain_is_not_decided(tmp_path):
    a = sweep(tmp_path / "a", {0: 0.5, 1: 0.7})
    b = sweep(tmp_path / "b", {0: 0.6, 1: 0.69})
    assert compare(a, b)["metrics"]["hit@1"]["verdict"] == "not decided"


def test_two_samples_of_seeds_combine_their_intervals(tmp_path):
    a = sweep(tmp_path / "a", {0: 1.0, 1: 1.2}, "loss")
    b = sweep(tmp_path / "b", {2: 9.0, 3: 9.3, 4: 9.6}, "loss")
    found = compare(a, b)["metrics"]["loss"]
    half = math.hypot(
        *(stats.t.ppf(0.975, n - 1) * s / math.sqrt(n) for n, s in ((2, 0.2 / 2**0.5), (3, 0.3)))
    )
    assert found["basis"] == "two samples of 2 and 3 seeds"
    assert found["difference"]["value"] == pytest.approx(8.2)
    assert found["difference"]["high"] - 8.2 == pytest.approx(half, rel=1e-4)
    assert 8.2 - found["difference"]["low"] == pytest.approx(half, rel=1e-4)
    assert found["verdict"] == "worse than chance would explain"


def test_one_seed_cannot_tell_but_its_siblings_can(tmp_path):
    a, b = (sweep(tmp_path / name, {0: HIT | {"value": v}, 1: HIT | {"value": v}})
            for name, v in (("a", 0.5), ("b", 0.55)))  # fmt: skip
    alone = record({"hit@1": HIT}, RunConfig(), tmp_path / "alone").parent
    found = compare(alone, b / "seed-0")["metrics"]["hit@1"]
    assert (found["basis"], found["verdict"]) == ("one seed cannot tell", "not decided")
    assert found["first"] == HIT
    assert found["difference"].keys() == {"value"}
    whole = compare(a / "seed-0", b / "seed-1")
    assert whole["sides"] == [(a, [0, 1]), (b, [0, 1])]
    assert whole["metrics"]["hit@1"]["basis"] == "paired over 2 shared seeds"
    two_of_one_set = compare(a / "seed-0", a / "seed-1")
    assert two_of_one_set["sides"] == [(a / "seed-0", [0]), (a / "seed-1", [1])]
    assert two_of_one_set["metrics"]["hit@1"]["basis"] == "one seed cannot tell"


def test_data_code_packages_and_machine_are_compared(tmp_path):
    a, b = (record({"loss": 1.0}, RunConfig(), tmp_path / name).parent for name in "ab")
    results = load_results(b)
    results["code"]["sha256"], results["machine"]["threads"] = "0" * 64, 99
    results["versions"]["torch"], results["manifest_checksum"] = "0.1", "1" * 64
    del results["machine"]["cpu_capability"]  # of an earlier version of zslkit
    write_json(b / "results.json", results)
    found = compare(a, b)["facts"]
    assert found.keys() == {
        *("manifest", "code sha256", "package torch", "machine threads"),
        "machine cpu_capability",
    }
    assert found["machine threads"][1] == "99"
    assert facts({"manifest_checksum": None}) == {"manifest": None}


def test_a_comparison_is_worded_as_tables(tmp_path):
    a = sweep(tmp_path / "a", {0: 0.5, 1: 0.5}, soft_targets="none")
    b = sweep(tmp_path / "b", {0: 0.55, 1: 0.55})
    extra = load_results(b / "seed-0")
    extra["metrics"]["self_mass"] = 0.5
    write_json(b / "seed-0" / "results.json", extra)
    tables = comparison_tables(compare(a, b))
    assert tables == {
        "Settings": [["setting", "first", "second"], ["soft_targets", "none", "teacher"]],
        "Metrics": [
            ["metric", "first", "second", "second - first", "verdict"],
            [
                *("hit@1", "50.0% (50.0% to 50.0%)", "55.0% (55.0% to 55.0%)"),
                "+5.0 points (+5.0 to +5.0)",
                "better than chance would explain, paired over 2 shared seeds",
            ],
        ],
        "Only on one side": [["metric"], ["mass on the own pair"]],
    }


def test_folders_without_results_are_named(tmp_path):
    run = record({"loss": 1.0}, RunConfig(), tmp_path / "run").parent
    with pytest.raises(FileNotFoundError, match=r"empty': no results.json here and no seed-\*"):
        compare(run, tmp_path / "empty")


def test_runs_that_share_no_metric_cannot_be_compared(tmp_path):
    a, b = (record({name: 1.0}, RunConfig(), tmp_path / name).parent for name in ("loss", "hit"))
    with pytest.raises(ValueError, match=r"share no metric: \['loss'\] and \['hit'\]"):
        compare(a, b)


def test_results_are_plain_json(tmp_path):
    path = record({"loss": 1.0}, RunConfig(), tmp_path)
    assert load_results(path) == load_results(tmp_path) == json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"soft_targets": "none"}, "InfoNCE"),
        ({"soft_targets": "none", "contrastive_loss": "sigmoid"}, "SigLIP"),
        (
            {"soft_targets": "label_smoothing"},
            "0.5 InfoNCE, the rest towards label smoothing targets",
        ),
        (
            {"pair_trust": True},
            "0.5 InfoNCE, the rest towards teacher targets, pairs weighed by the teacher's trust",
        ),
        (
            {"soft_targets": "none", "pair_trust": True, "trust_judge": "held_out"},
            "InfoNCE, pairs weighed by fits that never saw them",
        ),
        ({"fit": "cca"}, "cca in closed form"),
        (
            {"fit": "ridge", "pair_trust": True},
            "ridge in closed form, captions weighed by fits that never saw them",
        ),
        ({"soft_targets": "none", "init": "cca"}, "InfoNCE, started from cca"),
    ],
)
def test_a_card_says_what_the_objective_was(settings, words):
    training = dict(card(run_of(**settings))["Training"][1:])
    assert training["objective"] == words
