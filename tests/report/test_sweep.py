import json
import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

import zslkit.report.sweep
import zslkit.trainer
from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.report.sweep import (
    MEASURED,
    OBJECTIVES,
    check_metric,
    read_objectives,
    run_sweep,
    summarise,
    summarise_noise,
    with_caption_noise,
)
from zslkit.trainer import train

sweep = partial(run_sweep, jobs=1)  # in this process: faster, and open to monkeypatch
VARIANTS = {"InfoNCE": {"soft_targets": "none"}, "warm": {"teacher_temperature": 0.5}}


@pytest.fixture
def base(tiny_settings, tmp_path):
    return RunConfig(**tiny_settings, max_steps=2, output_dir=str(tmp_path / "sweep"))


def test_one_tidy_row_per_run_and_metric(base):
    table = sweep(base, VARIANTS, [0, 1])
    assert set(table["variant"]) == set(VARIANTS)
    hits = table[table["metric"] == "zeroshot hit@1"]
    assert len(hits) == 4
    assert hits["value"].between(0, 1).all()
    entropies = table[table["metric"] == "target_entropy"]
    assert set(entropies["variant"]) == {"warm"}


def test_goes_on_where_it_was_and_measures_changed_runs_anew(base, monkeypatch):
    first = sweep(base, VARIANTS, [0, 1])
    trained = []
    measure = zslkit.report.sweep._measure
    monkeypatch.setattr(
        zslkit.report.sweep, "_measure", lambda config: trained.append(config) or measure(config)
    )
    pd.testing.assert_frame_equal(sweep(base, VARIANTS, [0, 1]), first)
    assert trained == []
    sweep(base, {**VARIANTS, "warm": {"teacher_temperature": 0.4}}, [0, 1, 2])
    assert [(c.soft_targets, c.seed) for c in trained] == [
        ("none", 2), ("teacher", 0), ("teacher", 1), ("teacher", 2),
    ]  # fmt: skip
    monkeypatch.setattr("zslkit.report.provenance.SOURCES", "other code")
    sweep(base, VARIANTS, [0, 1])
    assert len(trained) == 4 + 4


@pytest.mark.parametrize("seeds", [[0], [3, 3]])
def test_one_seed_is_refused_before_training(base, seeds, tmp_path):
    with pytest.raises(ValueError, match=r"seeds=.*at least two different ones"):
        sweep(base, VARIANTS, seeds)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_valid_configuration(name):
    RunConfig.preset("laptop", **OBJECTIVES[name])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"fields": {"soft_target": "none"}, "source": "x"},
         r"mine.json: fields=.*soft_target='none': no such field of RunConfig; .*soft_targets"),
        ({"fields": {}}, r"mine.json: source=.*Field required"),
        ({"fields": {}, "source": "x", "by": "y"}, r"by='y': no such key"),
    ],
)  # fmt: skip
def test_named_objectives_that_cannot_be_are_refused(facts, message, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"mine": facts}))
    with pytest.raises(ValueError, match=message):
        read_objectives(tmp_path / "mine.json")


def test_objectives_of_ones_own_are_read(tmp_path):
    own = {"sharp": {"fields": {"teacher_temperature": 0.01}, "source": "ours"}}
    (tmp_path / "mine.json").write_text(json.dumps(own))
    assert read_objectives(tmp_path / "mine.json") == {"sharp": {"teacher_temperature": 0.01}}


def test_noise_crosses_objectives_and_teachers_learn_from_the_same_captions():
    variants = with_caption_noise(["InfoNCE", "fixed teacher"], [0, 0.5])
    assert list(variants) == [
        "InfoNCE @ 0", "fixed teacher @ 0", "InfoNCE @ 0.5", "fixed teacher @ 0.5"
    ]  # fmt: skip
    assert variants["InfoNCE @ 0.5"] == {"soft_targets": "none", "caption_noise": 0.5}
    assert variants["fixed teacher @ 0.5"]["teacher_run"] == "InfoNCE @ 0.5"
    with pytest.raises(ValueError, match="objectives='InfoNEC': unknown; did you mean InfoNCE"):
        with_caption_noise(["InfoNEC"], [0])


def test_a_fixed_teacher_is_the_finished_run_of_its_seed(base):
    students = {"KD": {"teacher": "frozen", "teacher_run": "InfoNCE"}, **VARIANTS}
    sweep(base, students, [0, 1])
    for seed in (0, 1):
        teacher = load_run(f"{base.output_dir}/InfoNCE/seed-{seed}").model.state_dict()
        student = load_run(f"{base.output_dir}/KD/seed-{seed}").teacher.model.state_dict()
        assert all(torch.equal(teacher[name], student[name]) for name in teacher)


def test_the_number_of_jobs_does_not_change_a_figure(base, tmp_path):
    alone = sweep(base, VARIANTS, [0, 1])
    elsewhere = base.model_copy(update={"output_dir": str(tmp_path / "both")})
    both = run_sweep(elsewhere, VARIANTS, [0, 1], jobs=2)
    same = alone["metric"] != "train_seconds"
    pd.testing.assert_frame_equal(both[same], alone[same])
    written = pd.read_csv(tmp_path / "both" / "runs.csv")
    pd.testing.assert_frame_equal(written, both.reset_index(drop=True), rtol=1e-12)
    assert list(written) == [
        "variant", "soft_targets", "teacher_temperature", "seed", "metric", "value"
    ]  # fmt: skip


def test_a_failing_run_loses_no_other(base):
    wrong = {**VARIANTS, "broken": {"test_split": "tset"}}
    with pytest.raises(RuntimeError, match=r"2 of 6 runs failed.*broken, seed 0: split='tset'"):
        sweep(base, wrong, [0, 1])
    assert len(list(Path(base.output_dir).glob("*/seed-*/results.json"))) == 4


def test_an_interrupted_run_is_not_taken_for_a_finished_one(base, monkeypatch):
    first = sweep(base, VARIANTS, [0, 1])
    folder = Path(base.output_dir) / "warm" / "seed-1"
    (folder / "results.json").unlink()
    whole = load_run(folder).model.state_dict()
    latest = max((folder / "checkpoints").iterdir())
    shutil.rmtree(latest)

    def cut(config, callbacks=()):
        return train(config, [*callbacks, lambda run, row: signal.raise_signal(signal.SIGINT)])

    monkeypatch.setattr(zslkit.trainer, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        sweep(base, VARIANTS, [0, 1])
    monkeypatch.undo()
    assert not (folder / "results.json").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000001"]
    again = sweep(base, VARIANTS, [0, 1])
    assert len(load_run(folder).history) == 2  # the second step only
    assert all(
        torch.equal(whole[name], t) for name, t in load_run(folder).model.state_dict().items()
    )
    same = first["metric"] != "train_seconds"
    pd.testing.assert_frame_equal(again[same], first[same])


def test_summary_by_hand():
    rows = [("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.5), ("b", 1, 0.9)]
    table = pd.DataFrame([dict(variant=v, seed=s, metric="m", value=x) for v, s, x in rows])
    summary = summarise(table, "m", baseline="a")
    assert summary["a"]["value"] == pytest.approx(0.2)
    # t quantile for one degree of freedom times the deviation over the root of two
    assert summary["a"]["high"] - 0.2 == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert summary["b - a"]["value"] == pytest.approx(0.5)
    assert summary["b - a"]["high"] - 0.5 == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert summary["b / a"] == {"value": pytest.approx(3.5), "n": 2}


def test_noise_summary_by_hand():
    values = {
        "a @ 0": (0.4, 0.6),
        "b @ 0": (0.5, 0.7),
        "a @ 0.5": (0.1, 0.3),
        "b @ 0.5": (0.4, 0.7),
    }
    table = pd.DataFrame(
        [
            dict(variant=v, caption_noise=float(v.split()[-1]), seed=s, metric="m", value=x)
            for v, scores in values.items()
            for s, x in enumerate(scores)
        ]
    )
    found = summarise_noise(table, "m", baseline="a")
    assert found["scores"]["0.5"]["b"]["value"] == pytest.approx(0.55)
    assert found["differences"]["0.5"].keys() == {"b"}
    assert found["differences"]["0"]["b"]["value"] == pytest.approx(0.1)
    # b is the best on clean captions: 0.1 / 0.5 and 0.3 / 0.7
    assert found["kept"]["0.5"]["a"]["value"] == pytest.approx((0.1 / 0.5 + 0.3 / 0.7) / 2)
    assert found["kept"]["0"]["b"]["value"] == 1
    assert summarise_noise(table[table["caption_noise"] > 0], "m", None)["kept"] == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(seeds=["a", "b"]), "seed='a': Input should be a valid integer"),
        (dict(jobs=0), "jobs=0 must be a number of processes"),
        (dict(jobs="two"), "jobs='two' must be a number of processes"),
        (dict(variants={"x": {"epocs": 1}}), "epocs=1: no such parameter; did you mean epochs"),
    ],
)
def test_what_is_out_of_question_is_refused_before_training(base, call, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(base, **{"variants": VARIANTS, "seeds": [0, 1], **call})
    assert not Path(base.output_dir).exists()


@pytest.mark.parametrize("share", [1.5, -0.1, "half"])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="caption_noises=.*: shares are numbers between 0 and 1"):
        with_caption_noise(["InfoNCE"], [share])


def test_a_metric_that_was_not_measured_is_named_with_its_neighbours():
    table = pd.DataFrame(
        [dict(variant="a", seed=s, metric="zeroshot hit@1", value=0.5) for s in (0, 1)]
    )
    with pytest.raises(ValueError, match="metric='hit@1' was not measured; .*zeroshot hit@1"):
        summarise(table, "hit@1")


def measured_or_killed(config):
    """Take the place of a training: one run's process is always killed, the others arrive."""
    if config.soft_targets == "none" and config.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"metrics": {"train_seconds": float(config.seed)}}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_killed_process_loses_its_own_run_only(base, monkeypatch):
    """One kill used to break the pool and lose every run that had not ended."""
    fork = multiprocessing.get_context("fork")  # quick, and harmless: nothing is computed
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)
    monkeypatch.setattr(zslkit.report.sweep, "_measure", measured_or_killed)
    arrived = []
    measured = zslkit.report.sweep._run_all

    def noted(*given):
        arrived.append(measured(*given))
        return arrived[-1]

    monkeypatch.setattr(zslkit.report.sweep, "_run_all", noted)
    message = "1 of 6 runs failed, the others are kept: InfoNCE, seed 1: its process was killed"
    with pytest.raises(RuntimeError, match=message):
        run_sweep(base, VARIANTS, [0, 1, 2], jobs=2)
    assert sorted(arrived[0][0]) == [
        ("InfoNCE", 0), ("InfoNCE", 2), ("warm", 0), ("warm", 1), ("warm", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "changes", "message"),
    [
        ("zeroshot hits@1", {}, "metric='zeroshot hits@1' is nothing that runs .*zeroshot hit@1"),
        ("zeroshot hit@1", {"zeroshot_manifest": None}, "is nothing that runs measure"),
    ],
)
def test_a_metric_that_no_run_will_have_is_refused_before_training(base, metric, changes, message):
    with pytest.raises(ValueError, match=message):
        check_metric(metric, base.model_copy(update=changes))


def test_what_runs_measure_is_what_is_listed(base):
    table = sweep(base, {"warm": {"teacher_temperature": 0.5}}, [0, 1])
    assert {*table["metric"]} == {*MEASURED}
    assert [check_metric(name, base) for name in MEASURED] == [*MEASURED]
