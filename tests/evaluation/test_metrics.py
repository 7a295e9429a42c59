"""Metrics against loops over plain numbers, and intervals against what they promise."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zslkit.evaluation.intervals import (
    bootstrap_interval,
    estimate,
    paired_difference,
    seed_interval,
)
from zslkit.evaluation.metrics import (
    average_precision,
    confusion_matrix,
    flat_hit_at_k,
    harmonic_mean,
    hits_at_k,
    mean_average_precision,
    per_class_hit,
    per_frequency,
    recall_sum,
    reliability,
    retrieval_ranks,
    retrieval_recall,
)
from zslkit.zeroshot.ranking import similarity_blocks

RANKED = [[2, 0, 1], [0, 1, 2], [1, 2, 0], [2, 1, 0]]
TRUE = [0, {1, 2}, [1], ()]


def test_hits_by_hand():
    assert hits_at_k(RANKED, TRUE, 1).tolist() == [False, False, True, False]
    assert hits_at_k(RANKED, TRUE, 2).tolist() == [True, True, True, False]
    assert flat_hit_at_k(torch.tensor(RANKED), TRUE, (1, 2, 3)) == {1: 0.25, 2: 0.75, 3: 0.75}


def test_true_classes_from_python_numpy_and_torch_agree():
    for truth in ([0, 1, 1, 2], np.array([0, 1, 1, 2]), torch.tensor([0, 1, 1, 2])):
        assert flat_hit_at_k(np.array(RANKED), truth, [1]) == {1: 0.5}
    assert flat_hit_at_k(RANKED, torch.tensor([[0], [1], [1], [2]]), [1]) == {1: 0.5}


def test_hit_at_k_equals_a_double_loop():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(12) for _ in range(50)])
    truth = [set(rng.choice(12, size=rng.integers(0, 4), replace=False).tolist()) for _ in ranked]
    for k in range(1, 13):
        n_hits = 0
        for row, classes in zip(ranked.tolist(), truth, strict=True):
            n_hits += any(row[place] in classes for place in range(k))
        assert flat_hit_at_k(ranked, truth, [k])[k] == pytest.approx(n_hits / 50)


def test_perfect_ranking_gives_one_and_hits_never_fall_with_k():
    assert flat_hit_at_k([[3, 1], [1, 0]], [3, 1], (1, 2)) == {1: 1.0, 2: 1.0}
    values = list(flat_hit_at_k(RANKED, TRUE, (1, 2, 3)).values())
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("ranked", "truth", "k", "message"),
    [
        (RANKED, TRUE, 4, "k=4 must be between 1 and the 3 ranked"),
        (RANKED, TRUE, 0, "k=0 must be between"),
        (RANKED, TRUE[:2], 1, "4 ranked images and 2 true classes"),
        (np.zeros((0, 3), int), [], 1, "0 ranked images"),
    ],
)
def test_wrong_rankings_are_refused(ranked, truth, k, message):
    with pytest.raises(ValueError, match=message):
        flat_hit_at_k(ranked, truth, [k])


def test_per_class_asks_for_that_class_itself():
    ranked = [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    truth = [0, {0, 1}, {0, 1}]
    assert per_class_hit(ranked, truth, 1) == {0: pytest.approx(1 / 3), 1: 0.5}
    assert per_class_hit(ranked, truth, 2) == {0: 1.0, 1: 0.5}


def ranks_in_python(scores, right):
    """Place of the first right column in each row: higher scores first, then lower index."""
    places = []
    for row, wanted in zip(scores.tolist(), right, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        places.append(next(place for place, i in enumerate(order) if i in wanted))
    return places


@pytest.mark.parametrize("max_scores", [1, 20, 2**22])
@pytest.mark.parametrize("ties", [False, True])
def test_retrieval_equals_sorting_in_python(monkeypatch, max_scores, ties):
    blocks = similarity_blocks
    monkeypatch.setattr(
        "zslkit.evaluation.metrics.similarity_blocks", lambda q, c: blocks(q, c, max_scores)
    )
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 3, generator=generator) for n in (6, 14))
    if ties:  # whole numbers: exact products, many of them equal
        images, texts = images.round().clamp(-1, 1), texts.round().clamp(-1, 1)
    owner = [0, 0, 1, 1, 1, 2, 2, 2, 2, 4, 4, 5, 5, 0]  # image 3 has no text
    ranks = retrieval_ranks(images, texts, owner)
    assert ranks["text_to_image"].tolist() == ranks_in_python(
        texts @ images.T, [{image} for image in owner]
    )
    asked = [0, 1, 2, 4, 5]
    assert ranks["image_to_text"].tolist() == ranks_in_python(
        images[asked] @ texts.T, [{t for t, o in enumerate(owner) if o == i} for i in asked]
    )
    recall = retrieval_recall(images, texts, owner, ks=(1, 3))
    assert recall["text_to_image"][3] == pytest.approx((ranks["text_to_image"] < 3).mean())
    assert recall["image_to_text"][1] == pytest.approx((ranks["image_to_text"] < 1).mean())


def test_perfect_pairs_have_full_recall():
    unit = F.normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    recall = retrieval_recall(unit, unit, range(12))
    assert recall == {way: {1: 1.0, 5: 1.0, 10: 1.0} for way in recall}
    assert set(recall) == {"text_to_image", "image_to_text"}


def test_a_constant_model_scores_chance_not_perfection():
    same = torch.full((20, 4), 0.5)
    for ways in retrieval_recall(same, same, range(20)).values():
        assert ways == {1: 1 / 20, 5: 5 / 20, 10: 10 / 20}


def test_wrong_retrieval_input_is_refused():
    unit = torch.eye(4)
    with pytest.raises(ValueError, match=r"ks=\(1, 5, 10\) must be between 1 and the 4"):
        retrieval_recall(unit, unit, range(4))
    with pytest.raises(ValueError, match=r"ks=\(0,\) must be between 1"):
        retrieval_recall(unit, unit, range(4), ks=(0,))
    for owner in ([0, 1, 2], [0, 1, 2, 4], [0, 1, 2, -1]):
        with pytest.raises(ValueError, match="image_of_text must hold 4 numbers below 4"):
            retrieval_ranks(unit, unit, owner)


def test_bootstrap_finds_the_binomial_interval():
    hits = np.arange(400) < 120
    low, high = bootstrap_interval(hits)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.01)
    assert bootstrap_interval(hits) == (low, high)
    assert bootstrap_interval(hits, seed=1) != (low, high)
    narrow = bootstrap_interval(hits, level=0.5)
    assert low < narrow[0] < 0.3 < narrow[1] < high


def test_bootstrap_equals_every_resample_written_out():
    values = [0.0, 1.0, 5.0]
    means = [sum(draw) / 3 for draw in itertools.product(values, repeat=3)]
    expected = np.quantile(means, [0.1, 0.9])
    assert bootstrap_interval(values, level=0.8, n_resamples=20_000) == pytest.approx(expected)


def test_bootstrap_covers_the_truth_as_often_as_promised():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(rng.random(100) < 0.4, n_resamples=400, seed=seed)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_bootstrap_in_small_steps_and_of_one_item():
    hits = np.random.default_rng(0).random(2**20) < 0.5  # more than two resamples at once
    low, high = bootstrap_interval(hits, n_resamples=5)
    assert abs(low - 0.5) < 0.01
    assert abs(high - 0.5) < 0.01
    assert bootstrap_interval([True]) == (1.0, 1.0)


def test_items_of_one_group_are_not_independent():
    photos = np.random.default_rng(0).random(200) < 0.5
    captions, groups = np.repeat(photos, 5), np.repeat(np.arange(200), 5)
    assert bootstrap_interval(captions, groups=groups) == bootstrap_interval(photos)
    grouped, naive = estimate(captions, groups=groups), estimate(captions)
    ratio = (grouped["high"] - grouped["low"]) / (naive["high"] - naive["low"])
    assert ratio == pytest.approx(math.sqrt(5), rel=0.15)


def test_a_group_counts_by_its_items():
    """Drawn twice of 2 groups: 1, 1/5 or 0; with means of means the middle would be 1/2."""
    hits, groups = [1, 0, 0, 0, 0], [0, 1, 1, 1, 1]
    assert bootstrap_interval(hits, level=0.4, groups=groups) == pytest.approx((0.2, 0.2))
    assert estimate(hits, groups=groups)["value"] == pytest.approx(0.2)


@pytest.mark.parametrize(("items", "level"), [([], 0.95), ([[1.0]], 0.95), ([1.0], 1.0)])
def test_wrong_bootstrap_input_is_refused(items, level):
    with pytest.raises(ValueError, match="need items"):
        bootstrap_interval(items, level=level)


def test_estimate_is_ready_for_a_results_file():
    result = estimate(torch.tensor([True, False, True, True]), chance=0.25)
    assert result["value"] == 0.75
    assert result["low"] <= 0.75 <= result["high"]
    assert (result["n"], result["chance"]) == (4, 0.25)


@pytest.mark.parametrize("n", [2, 3, 5, 11, 12, 20, 60])
def test_seed_interval_is_that_of_a_t_test(n):
    from scipy import stats

    values = np.random.default_rng(n).normal(size=n).tolist()
    result = seed_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (result["low"], result["high"]) == pytest.approx(tuple(expected), rel=1e-9)
    assert result["n"] == n


def test_seed_interval_by_hand():
    result = seed_interval([1.0, 3.0])  # mean 2, standard error 1
    assert result == {
        "value": 2,
        "low": pytest.approx(2 - math.tan(0.475 * math.pi)),  # t(1) is Cauchy's
        "high": pytest.approx(2 + math.tan(0.475 * math.pi)),
        "n": 2,
    }


def test_pairing_removes_what_the_seeds_share():
    a, b = [0.30, 0.50, 0.70], [0.28, 0.49, 0.67]
    result = paired_difference(a, b)
    assert result["value"] == pytest.approx(0.02)
    assert result["low"] < 0 < result["high"] < 0.1


def test_wrong_seeds_are_refused():
    with pytest.raises(ValueError, match="at least two, got 1"):
        seed_interval([0.5])
    with pytest.raises(ValueError, match="equal lengths, got 2 and 1"):
        paired_difference([1, 2], [1])


def test_confusion_counts_by_hand():
    assert confusion_matrix([0, 1, 1, 2], [0, 0, 1, 1], 3).tolist() == [
        [1, 1, 0],
        [0, 1, 1],
        [0, 0, 0],
    ]


def test_reliability_by_hand():
    found = reliability([0.05, 0.95, 1.0, 0.91], [False, True, True, False], n_bins=10)
    assert found["bins"] == [
        {"confidence": 0.05, "accuracy": 0.0, "n": 1},
        {"confidence": pytest.approx(2.86 / 3), "accuracy": pytest.approx(2 / 3), "n": 3},
    ]
    assert found["ece"] == pytest.approx((0.05 + 3 * (2.86 / 3 - 2 / 3)) / 4)


def test_a_model_that_is_as_sure_as_right_is_calibrated():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0, 1, 200_000)
    assert reliability(confidences, rng.uniform(size=200_000) < confidences)["ece"] < 0.005


@pytest.mark.parametrize("confidences", [[0.5], [0.5, 1.5], [0.5, np.nan]])
def test_confidences_are_probabilities_one_for_each_answer(confidences):
    with pytest.raises(ValueError, match=r"as many confidences in \[0, 1\] as answers"):
        reliability(confidences, [True, False])


def verified_labels(n_labels, n_images=200, n_classes=30, seed=0):
    """Images, classes and truths of distinct labels, one class in six without any positive."""
    rng = np.random.default_rng(seed)
    places = rng.choice(n_images * n_classes, n_labels, replace=False)
    images, classes = np.divmod(places, n_classes)
    return images, classes, (rng.random(n_labels) < 0.3) & (classes % 6 > 0)


def test_average_precision_by_hand():
    scores = [0.9, 0.8, 0.7, 0.6, 5.0, 1.0, 0.0]
    truths = [True, False, True, False, False, True, False]
    found = average_precision([0, 1, 2, 3, 0, 1, 2], [4, 4, 4, 4, 2, 2, 9], scores, truths)
    assert found == {2: 1 / 2, 4: pytest.approx((1 + 2 / 3) / 2)}  # class 9 has no positive
    value = mean_average_precision([0, 1, 2, 3, 0, 1, 2], [4, 4, 4, 4, 2, 2, 9], scores, truths)
    assert value == pytest.approx((1 / 2 + 5 / 6) / 2)


@pytest.mark.parametrize("scores", ["distinct", "tied", "infinite"])
def test_average_precision_equals_that_of_scikit_learn(scores):
    reference = pytest.importorskip("sklearn.metrics").average_precision_score
    images, classes, truths = verified_labels(2500)
    values = np.random.default_rng(1).normal(size=2500)
    if scores == "tied":
        values = values.round()
    if scores == "infinite":
        values[values < -1] = -9.0
    # scikit-learn takes no infinity
    given = np.where(values == -9.0, -math.inf, values)
    found = average_precision(images, classes, given, truths)
    expected = {
        label: reference(truths[classes == label], values[classes == label])
        for label in np.unique(classes[truths])
    }
    assert found == pytest.approx(expected)
    assert 0 not in found
    assert list(found) == sorted(found)


def test_the_order_of_labels_does_not_matter_even_where_scores_are_equal():
    labels = *verified_labels(900), np.random.default_rng(2).integers(0, 3, 900)
    shuffled = np.random.default_rng(3).permutation(900)
    (images, classes, truths, scores), again = labels, [part[shuffled] for part in labels]
    assert average_precision(images, classes, scores, truths) == average_precision(
        again[0], again[1], again[3], again[2]
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (([0, 1], [0, 0], [0.5], [True, False]), r"for each label, got .*\(1,\)"),
        (([], [], [], []), "for each label"),
        (([0, 1], [0, 0], [0.5, math.nan], [True, False]), "1 of 2 scores are NaN"),
        (([3, 1, 3], [5, 5, 5], [1, 2, 3], [True] * 3), "image 3 is .* more than once for class 5"),
        (([0, 1], [0, 1], [1, 2], [False, False]), "none of 2 labels is positive"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(*labels)


def test_hits_by_how_often_training_captions_named_the_class():
    counts = [0, 9, 10, 99, 100, 5000, 7]
    hits = [True, False, False, True, True, True, True]
    found = per_frequency(hits, [0, 1, 2, 3, 4, 5, 1], counts)
    means = {name: (group["value"], group["n"]) for name, group in found.items()}
    assert means == {"0": (1.0, 1), "1–9": (0.5, 2), "10–99": (0.5, 2), "100+": (1.0, 2)}
    assert found["1–9"] == estimate([False, True])
    coarse = per_frequency(hits, [0, 1, 2, 3, 4, 5, 1], counts, edges=[3, 6000])
    assert {name: group["n"] for name, group in coarse.items()} == {"0–2": 1, "3–5999": 6}
    assert per_frequency(hits[:1], [1], counts, edges=[9]).keys() == {"9+"}
    assert per_frequency(hits[:1], [0], counts, edges=[1, 2]).keys() == {"0"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([True], [0, 1], [5, 5]), r"as many hits as true classes, got \(1,\) and \(2,\)"),
        (([True], [2], [5, 5]), "below 2, the number of training_counts"),
        (([True], [-1], [5, 5]), "below 2"),
        (([True], [0], [5, 5], (0, 10)), r"edges=\(0, 10\) must rise, from at least 1"),
        (([True], [0], [5, 5], (10, 1)), r"edges=\(10, 1\) must rise"),
    ],
)
def test_wrong_frequencies_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        per_frequency(*given)


def test_harmonic_mean_by_hand():
    assert harmonic_mean(0.6, 0.3) == pytest.approx(0.4)
    assert harmonic_mean(0.6, 0.0) == harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.7, 0.7) == pytest.approx(0.7)


@pytest.mark.parametrize("pair", [(0.5, 50), (-0.1, 0.5), (math.nan, 0.5)])
def test_percentages_have_no_harmonic_mean_here(pair):
    with pytest.raises(ValueError, match=r"seen=.* and unseen=.* must be fractions in \[0, 1\]"):
        harmonic_mean(*pair)


def test_many_hits_have_the_interval_that_drawing_each_gives():
    hits = np.random.default_rng(3).random(60_000) < 0.2
    together = bootstrap_interval(hits)
    each = bootstrap_interval(hits, groups=np.arange(len(hits)))
    assert together == pytest.approx(each, abs=2e-4)
    assert together != each
    halves = bootstrap_interval(hits / 2)  # no counts: drawn each by each
    assert halves == pytest.approx([value / 2 for value in each])


def test_recall_sum_by_hand():
    ranks = {"text_to_image": np.array([0, 4, 5, 30]), "image_to_text": np.array([0, 9])}
    assert recall_sum(ranks) == pytest.approx(25 + 50 + 75 + 50 + 50 + 100)
    assert recall_sum(ranks, ks=(6,)) == pytest.approx(75 + 50)
