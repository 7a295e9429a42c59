"""Protocols against loops, grids and other solvers of the same problem."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zslkit.evaluation import protocols
from zslkit.evaluation.metrics import reliability
from zslkit.evaluation.protocols import (
    STRENGTHS,
    few_shot_episodes,
    fit_temperature,
    linear_probe,
    risk_coverage,
)
from zslkit.zeroshot.ranking import ClassBank, class_probabilities, rank_classes

pytest.importorskip("sklearn", reason="scikit-learn comes with the notebooks extra")


def clusters(n_images, spread=0.25, n_classes=6, dim=16, seed=0):
    """Unit vectors around one centre for each class, the centres, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(n_classes, dim, generator=generator), dim=-1)
    labels = torch.arange(n_images) % n_classes
    noise = spread * torch.randn(n_images, dim, generator=generator)
    return F.normalize(centres[labels] + noise, dim=-1), centres, labels


# linear probe


def probe(strengths=STRENGTHS, seed=0, spread=0.4):
    x, _, y = clusters(300, spread)
    return linear_probe(x[:120], y[:120], x[120:], y[120:], strengths, seed)


@pytest.mark.parametrize("strength", [0.1, 30.0])
def test_a_probe_minimises_the_regularised_loss(strength):
    """The same problem by another solver: torch's L-BFGS in double precision."""
    x, _, y = clusters(300, 0.4)
    weight = torch.zeros(6, 16, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(6, dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        logits = x[:120].double() @ weight.T + bias
        value = F.cross_entropy(logits, y[:120], reduction="sum")
        value = value + strength / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    answers = (x[120:].double() @ weight.T + bias).argmax(dim=1)
    assert probe([strength]).hits.tolist() == (answers == y[120:]).tolist()


def test_the_strength_is_the_best_on_held_out_images():
    found = probe()
    assert list(found.held_out) == sorted(STRENGTHS, reverse=True)
    best = max(found.held_out.values())
    assert found.strength == max(s for s, value in found.held_out.items() if value == best)
    assert 0.5 < found.hits.mean() < 1
    assert found.hits.shape == (180,)
    assert found.hits.mean() > probe([min(STRENGTHS)]).hits.mean()


def test_the_seed_draws_the_held_out_images():
    first, again, other = (probe(seed=seed).held_out for seed in (0, 0, 1))
    assert first == again != other


def test_two_images_of_each_class_are_enough_and_numpy_will_do():
    x, _, y = (part.numpy() for part in clusters(24, 0.01))
    assert linear_probe(x[:12], y[:12], x[12:], y[12:]).hits.all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 1], "2 classes, the smallest with 1 image"),
        ([0, 0, 0], "hold 1 classes"),
    ],
)
def test_a_probe_needs_two_classes_with_two_images(labels, message):
    with pytest.raises(ValueError, match=f"train_labels.* {message}"):
        linear_probe(np.eye(3), labels, np.eye(3), labels)


# episodes


@pytest.mark.parametrize("name", ["nearest_prototype", "logistic_regression"])
def test_episodes_equal_a_loop_over_classifiers_of_scikit_learn(name):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid

    kinds = {"nearest_prototype": NearestCentroid, "logistic_regression": LogisticRegression}
    x, _, y = (part.numpy() for part in clusters(120, 0.3))
    rng, accuracies = np.random.default_rng(5), []
    for _ in range(20):
        support, queries = [], []
        for label in rng.choice(np.arange(6), 3, replace=False):
            rows = rng.choice(np.flatnonzero(y == label), 2 + 4, replace=False)
            support += rows[:2].tolist()
            queries += rows[2:].tolist()
        accuracies.append(kinds[name]().fit(x[support], y[support]).score(x[queries], y[queries]))
    found = few_shot_episodes(x, y, 3, 2, 4, 20, seed=5)[name]
    assert found["value"] == pytest.approx(np.mean(accuracies))
    half = 2.093 * np.std(accuracies, ddof=1) / math.sqrt(20)  # Student's t, 19 degrees
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-3)
    assert found["n"] == 20


def test_clear_classes_are_told_apart_and_noise_is_not():
    x, _, y = clusters(120, 0.01)
    clear = few_shot_episodes(x, y, n_episodes=10, n_query=5)
    assert clear.keys() == {"nearest_prototype", "logistic_regression"}
    assert all(found["value"] == 1.0 for found in clear.values())
    noise = F.normalize(torch.randn(120, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    # each episode takes all images of its classes: a support image among the queries would show
    for found in few_shot_episodes(noise, y, 4, 5, 15, 200).values():
        assert found["value"] == pytest.approx(1 / 4, abs=0.03)


@pytest.mark.parametrize("change", [{"n_way": 3}, {"k_shot": 5}, {"n_query": 9}, {"seed": 1}])
def test_every_setting_of_an_episode_matters(change):
    x, _, y = clusters(120, 0.4)
    base = {"n_way": 5, "k_shot": 1, "n_query": 5, "n_episodes": 20}
    same, again, other = (few_shot_episodes(x, y, **base | with_) for with_ in ({}, {}, change))
    assert same == again
    assert all(same[name]["value"] != other[name]["value"] for name in same)


def test_small_classes_are_left_out_and_too_few_are_named():
    x, _, y = clusters(66, 0.01)
    rare = torch.where(torch.arange(66) < 60, y, 6 + torch.arange(66))  # six of a single image
    assert few_shot_episodes(x, rare, n_query=9, n_episodes=3)["nearest_prototype"]["value"] == 1
    with pytest.raises(ValueError, match=r"6 of 12 classes have the .* = 10 images .* n_way=7"):
        few_shot_episodes(x, rare, n_way=7, n_query=9)


@pytest.mark.parametrize("change", [{"n_way": 1}, {"k_shot": 0}, {"n_query": 0}, {"n_episodes": 1}])
def test_episodes_without_content_are_refused(change):
    (name, value), (x, _, y) = *change.items(), clusters(60)
    with pytest.raises(ValueError, match=f"{name}={value}.* at least"):
        few_shot_episodes(x, y, **change)


# calibration


def bank_of(centres):
    return ClassBank(centres, tuple(f"class {number}" for number in range(len(centres))))


@pytest.mark.parametrize("spread", [0.3, 0.6])
@pytest.mark.parametrize("max_scores", [40, 2**22])
def test_the_scale_is_that_of_a_fine_grid(monkeypatch, spread, max_scores):
    blocks = protocols.similarity_blocks
    monkeypatch.setattr(protocols, "similarity_blocks", lambda q, c: blocks(q, c, max_scores))
    images, centres, labels = clusters(200, spread)
    similarities = images.double() @ centres.double().T
    grid = np.arange(0.01, 60, 0.01)
    losses = [F.cross_entropy(scale * similarities, labels).item() for scale in grid]
    found = fit_temperature(images, bank_of(centres), labels)
    assert found == pytest.approx(grid[np.argmin(losses)], abs=0.011)


def test_a_fitted_scale_makes_probabilities_mean_what_they_say():
    images, centres, _ = clusters(4000, 0.5)
    bank = bank_of(centres)
    shares = (8 * images @ centres.T).softmax(dim=1)
    labels = shares.multinomial(1, generator=torch.Generator().manual_seed(3))[:, 0].numpy()
    scale = fit_temperature(images, bank, labels)
    assert scale == pytest.approx(8, rel=0.1)
    scores, best = rank_classes(images, bank, 1)
    errors = [
        reliability(
            class_probabilities(images, bank, scores, s)[:, 0], best[:, 0].numpy() == labels
        )
        for s in (40, scale)
    ]
    assert errors[1]["ece"] < 0.03 < errors[0]["ece"]


def test_without_a_best_scale_none_is_given():
    images, centres, labels = clusters(60, 0.01)
    bank = bank_of(centres)
    with pytest.raises(ValueError, match="these 60 images: the likelihood rises all the way"):
        fit_temperature(images, bank, labels)
    with pytest.raises(ValueError, match="the likelihood falls all the way"):
        fit_temperature(-images, bank, labels)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 6], [0, -1, 2], [[0, 1, 2]]])
def test_labels_are_classes_of_the_bank(labels):
    images, centres, _ = clusters(3)
    with pytest.raises(ValueError, match="labels must be 3 numbers below 6"):
        fit_temperature(images, bank_of(centres), labels)


# abstention


def test_risk_and_coverage_by_hand():
    found = risk_coverage([0.9, 0.5, 0.7, 0.5], [True, False, True, True])
    assert found.coverage.tolist() == [0.25, 0.5, 1.0]
    assert found.risk.tolist() == [0, 0, 0.25]
    assert found.area == (0 + 0 + 2 * 0.25) / 4


def test_risk_equals_a_loop_over_thresholds():
    rng = np.random.default_rng(0)
    confidences, correct = rng.integers(0, 9, 60) / 10, rng.random(60) < 0.7
    found, shuffled = risk_coverage(confidences, correct), rng.permutation(60)
    expected = []
    for threshold in sorted(set(confidences.tolist()), reverse=True):
        answered = [right for c, right in zip(confidences, correct, strict=True) if c >= threshold]
        expected.append((len(answered) / 60, 1 - sum(answered) / len(answered)))
    np.testing.assert_allclose(np.stack([found.coverage, found.risk], axis=1), expected)
    again = risk_coverage(torch.tensor(confidences)[shuffled], torch.tensor(correct)[shuffled])
    assert found.area == pytest.approx(again.area)


def test_knowing_what_one_knows_halves_the_area():
    rng = np.random.default_rng(1)
    correct = rng.random(20_000) < 0.5
    blind = risk_coverage(rng.random(20_000), correct)
    knowing = risk_coverage(correct + rng.random(20_000), correct)
    assert blind.area == pytest.approx(0.5, abs=0.02)
    # wrong answers only below coverage 1/2: the integral of (c - 1/2) / c from there to 1
    assert knowing.area == pytest.approx(0.5 - math.log(2) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("confidences", "correct"), [([], []), ([0.5], [True, False]), ([0.5, math.nan], [True, False])]
)
def test_wrong_confidences_are_refused(confidences, correct):
    with pytest.raises(ValueError, match="need a confidence for each answer and no NaN"):
        risk_coverage(confidences, correct)
