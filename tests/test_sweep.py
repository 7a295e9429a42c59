import pandas as pd
import pytest

import zslkit.sweep
from zslkit.config import RunConfig
from zslkit.sweep import OBJECTIVES, run_sweep, summarise

VARIANTS = {"InfoNCE": {"soft_targets": "none"}, "warm": {"teacher_temperature": 0.5}}


@pytest.fixture
def base(tiny_settings, tmp_path):
    return RunConfig(**tiny_settings, max_steps=2, output_dir=str(tmp_path / "sweep"))


def test_one_tidy_row_per_run_and_metric(base):
    table = run_sweep(base, VARIANTS, [0, 1])
    assert set(table["variant"]) == set(VARIANTS)
    hits = table[table["metric"] == "zeroshot hit@1"]
    assert len(hits) == 4
    assert hits["value"].between(0, 1).all()
    entropies = table[table["metric"] == "target_entropy"]
    assert set(entropies["variant"]) == {"warm"}


def test_goes_on_where_it_was_and_measures_changed_runs_anew(base, monkeypatch):
    first = run_sweep(base, VARIANTS, [0, 1])
    trained = []
    measure = zslkit.sweep._measure
    monkeypatch.setattr(
        zslkit.sweep, "_measure", lambda config: trained.append(config) or measure(config)
    )
    pd.testing.assert_frame_equal(run_sweep(base, VARIANTS, [0, 1]), first)
    assert trained == []
    run_sweep(base, {**VARIANTS, "warm": {"teacher_temperature": 0.4}}, [0, 1, 2])
    assert [(c.soft_targets, c.seed) for c in trained] == [
        ("none", 2), ("teacher", 0), ("teacher", 1), ("teacher", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [[0], [3, 3]])
def test_one_seed_is_refused_before_training(base, seeds, tmp_path):
    with pytest.raises(ValueError, match=r"seeds=.*at least two different ones"):
        run_sweep(base, VARIANTS, seeds)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_valid_configuration(name):
    RunConfig.preset("laptop", **OBJECTIVES[name])


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
