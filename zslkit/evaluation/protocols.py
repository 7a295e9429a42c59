"""What else embeddings can do: probes, episodes, calibration, abstention.

Dimensions: N = images, C = classes, D = embedding. scikit-learn and SciPy, which the notebooks
extra brings, are imported when a protocol needs them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.evaluation.intervals import seed_interval
from zslkit.zeroshot.ranking import ClassBank, similarity_blocks

STRENGTHS = tuple(10.0**power for power in range(-6, 7, 2))
_MAX_SCALE = 1e4  # of fit_temperature


class LinearProbe(NamedTuple):
    """A linear classifier's answers on the test images, and how its strength was chosen."""

    hits: np.ndarray
    """(N,) bool for each test image; :func:`zslkit.evaluation.estimate` gives the interval."""
    strength: float
    """The chosen L2 regularisation."""
    held_out: dict[float, float]
    """Accuracy of each strength on the held-out part of the training images."""


def linear_probe(
    train_embeddings: Any,
    train_labels: Any,
    test_embeddings: Any,
    test_labels: Any,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LinearProbe:
    """Fit logistic regression on frozen embeddings, its strength chosen on held-out images.

    A fifth of the training images, of each class at least one, decides between the strengths; the
    classifier is then fitted to all of them. Among equals the strongest regularisation wins.

    Parameters
    ----------
    train_embeddings, test_embeddings : arrays of shape (N, D)
        Unit vectors.
    train_labels, test_labels : arrays of shape (N,), int
        Classes; at least two training images of each.
    strengths : sequence of float
        Weights of half the squared L2 norm beside the summed loss: scikit-learn's 1 / C.
    seed : int
        Draws the held-out part.

    Returns
    -------
    LinearProbe
        Hits, the chosen strength and the accuracies it was chosen by.

    Raises
    ------
    ValueError
        If a class has a single training image, or there is one class only.

    References
    ----------
    Radford et al. (2021), arXiv:2103.00020, appendix A.3: L-BFGS with up to 1,000 iterations.
    They refine the seven strengths, which are theirs, to eight per decade; we do not.
    """
    from sklearn.model_selection import train_test_split

    x, y = _numpy(train_embeddings), _numpy(train_labels)
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ValueError(
            f"train_labels hold {len(classes)} classes, the smallest with {counts.min()} image(s): "
            "need two classes with two images each"
        )
    n_held_out = max(len(y) // 5, len(classes))
    fit, held = train_test_split(
        np.arange(len(y)), test_size=n_held_out, stratify=y, random_state=seed
    )
    held_out = {
        strength: float((_logistic(x[fit], y[fit], strength).predict(x[held]) == y[held]).mean())
        for strength in sorted(strengths, reverse=True)
    }
    best = max(held_out, key=held_out.get)
    answers = _logistic(x, y, best).predict(_numpy(test_embeddings))
    return LinearProbe(answers == _numpy(test_labels), best, held_out)


def few_shot_episodes(
    embeddings: Any,
    labels: Any,
    n_way: int = 5,
    k_shot: int = 1,
    n_query: int = 15,
    n_episodes: int = 600,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Tell new classes apart from a few images each, in many small random tasks.

    An episode draws ``n_way`` classes, ``k_shot`` images of each to learn from and ``n_query``
    others of each to name.

    Parameters
    ----------
    embeddings : array of shape (N, D)
        Unit vectors.
    labels : array of shape (N,), int
        Classes.

    Returns
    -------
    dict
        ``nearest_prototype`` and ``logistic_regression``: mean accuracy with its 95 % interval
        over episodes, ``n`` of them.

    Raises
    ------
    ValueError
        If fewer than ``n_way`` classes have ``k_shot + n_query`` images, ``n_way`` or
        ``n_episodes`` is below 2, or another count below 1.

    References
    ----------
    Snell et al. (2017), "Prototypical Networks", arXiv:1703.05175, equations 1 and 2 with squared
    Euclidean distance; Rajasegaran et al. (2020), "Self-supervised Knowledge Distillation for
    Few-shot Learning", arXiv:2006.09785, for logistic regression on normalised embeddings.
    """
    if min(n_way, n_episodes) < 2 or min(k_shot, n_query) < 1:
        raise ValueError(
            f"n_way={n_way} and n_episodes={n_episodes} must be at least 2, k_shot={k_shot} and "
            f"n_query={n_query} at least 1"
        )
    x, y = _numpy(embeddings), _numpy(labels)
    classes, counts = np.unique(y, return_counts=True)
    large = classes[counts >= k_shot + n_query]
    if len(large) < n_way:
        raise ValueError(
            f"{len(large)} of {len(classes)} classes have the k_shot + n_query = "
            f"{k_shot + n_query} images of an episode, fewer than n_way={n_way}"
        )
    rng, members = (
        np.random.default_rng(seed),
        {label: np.flatnonzero(y == label) for label in large},
    )
    ways, truth = np.repeat(np.arange(n_way), k_shot), np.repeat(np.arange(n_way), n_query)
    accuracies: dict[str, list[float]] = {"nearest_prototype": [], "logistic_regression": []}
    for _ in range(n_episodes):
        rows = np.stack(
            [
                rng.choice(members[label], k_shot + n_query, replace=False)
                for label in rng.choice(large, n_way, replace=False)
            ]
        )
        support, queries = x[rows[:, :k_shot]], x[rows[:, k_shot:].ravel()]
        prototypes = support.mean(axis=1)
        distances = ((queries[:, None] - prototypes) ** 2).sum(axis=2)
        learned = _logistic(support.reshape(n_way * k_shot, -1), ways, 1.0)
        answers = distances.argmin(axis=1), learned.predict(queries)
        for found, answer in zip(accuracies.values(), answers, strict=True):
            found.append(float((answer == truth).mean()))
    return {name: seed_interval(found) for name, found in accuracies.items()}


def fit_temperature(image_embeddings: Tensor, bank: ClassBank, labels: Any) -> float:
    """Find the ``logit_scale`` whose softmax over all classes fits held-out labels best.

    It minimises the negative log-likelihood, which is convex in the scale, by the root of its
    derivative. Similarities are computed anew for each scale that is tried, so the N x C of them
    are never kept. It changes no ranking; ``metrics.reliability`` says what it gained.

    Parameters
    ----------
    image_embeddings : Tensor of shape (N, D)
        Unit vectors of images that neither training nor the test has seen.
    bank : ClassBank
        C classes.
    labels : array of shape (N,), int
        Class number of each image.

    Returns
    -------
    float
        1 / temperature, for ``class_probabilities``.

    Raises
    ------
    ValueError
        If labels are not N numbers below C, or no scale between 0 and 10,000 is best: images that
        are all named right want an infinite one, similarities that say nothing want 0.

    References
    ----------
    Guo et al. (2017), "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import brentq

    truth = torch.as_tensor(labels, dtype=torch.long, device=image_embeddings.device)
    known = torch.arange(len(bank.class_names), device=truth.device)
    if truth.shape != (len(image_embeddings),) or not torch.isin(truth, known).all():
        raise ValueError(
            f"labels must be {len(image_embeddings)} numbers below {len(known)}, the classes of "
            f"the bank; got {tuple(truth.shape)}"
        )

    def slope(scale: float) -> float:
        """Mean over images of: similarity expected under the softmax, less the true class's."""
        total = 0.0
        for start, scores in similarity_blocks(image_embeddings, bank.embeddings):
            right = scores.gather(1, truth[start : start + len(scores), None])
            expected = ((scale * scores).softmax(dim=1) * scores).sum(dim=1, keepdim=True)
            total += (expected - right).double().sum().item()
        return total / len(truth)

    low, high = slope(0.0), slope(_MAX_SCALE)
    if not low < 0 < high:
        raise ValueError(
            f"no logit_scale between 0 and {_MAX_SCALE:g} is best for these {len(truth)} images: "
            f"the likelihood {'falls' if low >= 0 else 'rises'} all the way"
        )
    return float(brentq(slope, 0.0, _MAX_SCALE, xtol=1e-4, rtol=1e-6))


class RiskCoverage(NamedTuple):
    """How wrong the answers are that a model gives when it may say nothing."""

    coverage: np.ndarray
    """Share of images answered, at each confidence that occurs as the threshold, rising."""
    risk: np.ndarray
    """Share of these answers that are wrong."""
    area: float
    """Area under risk over coverage (AURC): the mean risk over images as thresholds."""


def risk_coverage(confidences: Any, correct: Any) -> RiskCoverage:
    """Let a model answer only above a confidence, and count its errors at each threshold.

    ``confidences`` (N,) floats of any scale, ``correct`` (N,) bool. Images of equal confidence
    are answered together: no threshold parts them. A ValueError refuses none, NaN, and unequal
    lengths.

    References
    ----------
    Geifman and El-Yaniv (2017), "Selective Classification for Deep Neural Networks",
    arXiv:1705.08500, section 2; the area is that of their arXiv:1805.08206.
    """
    confidences, wrong = _numpy(confidences), ~_numpy(correct).astype(bool)
    if confidences.shape != wrong.shape or not wrong.size or np.isnan(confidences).any():
        raise ValueError(
            f"need a confidence for each answer and no NaN, got {confidences.shape} with "
            f"{np.isnan(confidences).sum()} NaN, and {wrong.shape}"
        )
    _, places, counts = np.unique(-confidences, return_inverse=True, return_counts=True)
    answered = counts.cumsum()
    risk = np.bincount(places, weights=wrong).cumsum() / answered
    return RiskCoverage(answered / len(wrong), risk, float((risk * counts).sum() / len(wrong)))


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / strength, max_iter=1000).fit(x, y)


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
