import math

import pytest

from zslkit.config import RunConfig
from zslkit.data.words import duplicate_share
from zslkit.training.coach import advise

CONFIG = RunConfig(batch_size=64, warmup_steps=2)
WELL = {
    "contrastive_loss": 2.0, "logit_scale": 30.0, "self_mass": 0.6, "target_entropy": 1.0,
    "target_agreement": 0.9,
}  # fmt: skip


def history(n_epochs=1, **changes):
    return [
        {"step": 4 * epoch + step, "epoch": epoch, **WELL, **changes}
        for epoch in range(n_epochs)
        for step in range(3, 7)
    ]


def test_a_healthy_run_needs_no_advice():
    assert advise(history(3), CONFIG) == {}
    assert advise([], CONFIG) == {}


@pytest.mark.parametrize(
    ("changes", "settings", "kind", "words"),
    [
        ({"target_entropy": 0.01}, {}, "one-hot targets", "raise teacher_temperature (now 0.1)"),
        (
            {"target_entropy": 0.01},
            {"soft_targets": "transport"},
            "one-hot targets",
            "raise epsilon",
        ),
        (
            {"target_entropy": 4.15},
            {"epochs": 1},
            "uniform targets",
            "entropy 4.15 of at most 4.16 nats",
        ),
        ({"target_agreement": -0.2}, {}, "inverted targets", "correlation -0.20"),
        ({"contrastive_loss": 4.15}, {}, "nothing learnt", "guessing among 64 costs (4.16)"),
        ({"logit_scale": 99.9}, {}, "saturated scale", "upper limit, 100"),
    ],
)
def test_each_finding_is_named_with_its_figure(changes, settings, kind, words):
    advice = advise(history(**changes), CONFIG.model_copy(update=settings))
    assert advice.keys() == {kind}
    assert words in advice[kind]


def test_what_is_meant_is_not_criticised():
    progressive = CONFIG.model_copy(update={"soft_targets": "progressive"})
    assert advise(history(target_entropy=0.0), progressive) == {}
    fixed = CONFIG.model_copy(update={"learn_logit_scale": False})
    assert advise(history(logit_scale=100.0), fixed) == {}
    sigmoid = CONFIG.model_copy(update={"contrastive_loss": "sigmoid"})
    assert advise(history(contrastive_loss=9.0), sigmoid) == {}
    warming_up = CONFIG.model_copy(update={"warmup_steps": 50})
    assert advise(history(contrastive_loss=4.16), warming_up) == {}


def test_a_young_teacher_may_know_nothing():
    assert advise(history(2, target_entropy=4.15), CONFIG) == {}
    assert "uniform targets" in advise(history(3, target_entropy=4.15), CONFIG)
    smoothed = CONFIG.model_copy(update={"soft_targets": "label_smoothing"})
    assert "uniform targets" in advise(history(1, target_entropy=4.15), smoothed)


def test_only_the_last_epoch_counts():
    rows = history(1, target_entropy=0.0) + history(2)[4:]
    assert advise(rows, CONFIG) == {}


def test_a_run_that_went_on_too_long_is_told_its_best_epoch():
    rows = history(10)
    for row, value in zip(rows[3::4], [0.1, 0.3, 0.5, 0.5, 0.49, 0.48, 0.47, 0.46, 0.45, 0.44],
                          strict=True):  # fmt: skip
        row["held-out recall@10"] = value
    advice = advise(rows, CONFIG)["best epoch long past"]
    assert "50.0% after epoch 3 and is 44.0% after epoch 10" in advice
    assert advise(rows[:16], CONFIG) == {}


def test_duplicates_are_expected_exactly():
    """Against the mean over all batches: four captions, two of them equal, batches of two."""
    assert duplicate_share(["a", "a", "b", "c"], 2) == pytest.approx(1 / 6)
    assert duplicate_share(["a", "a", "b", "c"], 4) == pytest.approx(0.5)
    assert duplicate_share(["a", "b"], 2) == 0
    assert duplicate_share(["a"], 2) == 0
    assert "10% of the pairs" in advise(history(), CONFIG, duplicates=0.1)["duplicate captions"]


def test_limits_are_those_of_the_batch():
    small = CONFIG.model_copy(update={"batch_size": 8, "epochs": 1})
    advice = advise(history(target_entropy=math.log(8)), small)
    assert advice.keys() == {"uniform targets"}
