"""Figures of merit and their uncertainty. N = images, M = texts, D = embedding, K = ranked."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zslkit.evaluation.intervals import estimate
from zslkit.zeroshot.ranking import similarity_blocks

Truth = Sequence[int | Collection[int]]


def hits_at_k(ranked_indices: Any, true_classes: Truth, k: int) -> np.ndarray:
    """Tell for each image whether a true class is among the k best-ranked, bool (N,).

    ``ranked_indices`` (N, K) holds class numbers, best first (``rank_classes`` has broken ties:
    lowest number first); ``true_classes`` N ints or int collections. An image without any true
    class is a miss, so that N never changes silently. A ValueError refuses k outside 1..K.
    """
    ranked = torch.as_tensor(ranked_indices)
    if len(ranked) != len(true_classes) or not len(ranked):
        raise ValueError(f"got {len(ranked)} ranked images and {len(true_classes)} true classes")
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(f"k={k} must be between 1 and the {ranked.shape[1]} ranked classes")
    rows = zip(ranked[:, :k].tolist(), map(_label_set, true_classes), strict=True)
    return np.array([not truth.isdisjoint(row) for row, truth in rows])


def flat_hit_at_k(ranked_indices: Any, true_classes: Truth, ks: Sequence[int]) -> dict[int, float]:
    """Give the fraction of images that :func:`hits_at_k` finds, for each k (Frome et al. 2013)."""
    return {k: float(hits_at_k(ranked_indices, true_classes, k).mean()) for k in ks}


def per_class_hit(ranked_indices: Any, true_classes: Truth, k: int) -> dict[int, float]:
    """Give for each class that occurs the fraction of its images with that class among the k."""
    ranked, rows = torch.as_tensor(ranked_indices), defaultdict(list)
    for row, truth in enumerate(true_classes):
        for label in _label_set(truth):
            rows[label].append(row)
    return {c: float(hits_at_k(ranked[r], [c] * len(r), k).mean()) for c, r in sorted(rows.items())}


def confusion_matrix(predicted: Any, true_classes: Sequence[int], n_classes: int) -> np.ndarray:
    """Count images by true class (rows) and first-ranked class (columns), int (C, C)."""
    places = np.asarray(true_classes) * n_classes + np.asarray(predicted)
    return np.bincount(places, minlength=n_classes**2).reshape(n_classes, n_classes)


def reliability(confidences: Any, correct: Any, n_bins: int = 10) -> dict[str, Any]:
    """Compare what a model says with how often it is right.

    Parameters
    ----------
    confidences : sequence of N floats in [0, 1]
        Probability of the first-ranked class.
    correct : sequence of N bool
        Whether it was a true one.
    n_bins : int
        Bins of equal width.

    Returns
    -------
    dict
        ``ece``, the expected calibration error, and ``bins``: for each that is not empty its
        mean ``confidence``, ``accuracy`` and ``n``.

    Raises
    ------
    ValueError
        If a confidence lies outside [0, 1] or the lengths differ.

    References
    ----------
    Guo et al. (2017), "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3.
    """
    confidences, correct = np.asarray(confidences, float), np.asarray(correct, float)
    if confidences.shape != correct.shape or not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError(
            f"need as many confidences in [0, 1] as answers, got {confidences.shape} between "
            f"{confidences.min():g} and {confidences.max():g}, and {correct.shape}"
        )
    places = np.minimum((confidences * n_bins).astype(int), n_bins - 1)
    bins = [
        {"confidence": float(confidences[inside].mean()), "accuracy": float(correct[inside].mean()),
         "n": int(inside.sum())}
        for inside in (places == place for place in np.unique(places))
    ]  # fmt: skip
    gaps = [bin["n"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins]
    return {"ece": sum(gaps) / len(correct), "bins": bins}


def average_precision(
    image_indices: Any, class_indices: Any, scores: Any, positives: Any
) -> dict[int, float]:
    """Give the average precision of each class over the images where it was verified.

    Labels are sparse, as in Open Images: for most images nobody said whether a class is there,
    and those count neither way. Images of equal score enter together, so their order does not
    matter (as in scikit-learn); classes without any positive image are left out.

    Parameters
    ----------
    image_indices, class_indices : L ints
        What was verified: each pair of image and class once.
    scores : L floats
        Any that rise with the model's belief; compared within a class only.
    positives : L bool
        Whether the class is there.

    Returns
    -------
    dict from class number to float
        In order of the numbers: sum over thresholds of precision times the gain in recall.

    Raises
    ------
    ValueError
        If lengths differ or are 0, a score is NaN, or a pair occurs twice.

    References
    ----------
    Kuznetsova et al. (2020), "The Open Images Dataset V4", arXiv:1811.00982: what is verified,
    and why the rest says nothing.
    """
    images, classes = np.asarray(image_indices, dtype=int), np.asarray(class_indices, dtype=int)
    scores, positives = np.asarray(scores, dtype=float), np.asarray(positives, dtype=bool)
    shapes = {images.shape, classes.shape, scores.shape, positives.shape}
    if shapes != {(len(images),)} or not len(images):
        raise ValueError(
            "need an image, a class, a score and a truth for each label, got "
            f"{images.shape}, {classes.shape}, {scores.shape} and {positives.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {len(scores)} scores are NaN")
    order = np.lexsort((images, classes))
    twice = (np.diff(images[order]) == 0) & (np.diff(classes[order]) == 0)
    if twice.any():
        image, label = images[order][1:][twice][0], classes[order][1:][twice][0]
        raise ValueError(f"image {image} is verified more than once for class {label}")
    order = np.lexsort((-scores, classes))
    classes, scores = classes[order], scores[order]
    found = np.concatenate([[0], np.cumsum(positives[order])])
    new_class = np.append(True, classes[1:] != classes[:-1])
    new_score = new_class | np.append(True, scores[1:] != scores[:-1])
    # a class ends where the next begins, and so does a run of equal scores
    starts, ends = np.flatnonzero(new_class), np.append(np.flatnonzero(new_score)[1:], len(scores))
    owner = np.searchsorted(starts, ends) - 1
    gains = np.diff(found[ends], prepend=0)
    precision = (found[ends] - found[starts[owner]]) / (ends - starts[owner])
    totals = np.bincount(owner, weights=gains)
    sums = np.bincount(owner, weights=gains * precision)
    rows = np.flatnonzero(totals)
    names, values = classes[starts[rows]], sums[rows] / totals[rows]
    return dict(zip(names.tolist(), values.tolist(), strict=True))


def mean_average_precision(
    image_indices: Any, class_indices: Any, scores: Any, positives: Any
) -> float:
    """Average :func:`average_precision` over the classes that have a positive image.

    A ValueError refuses labels among which no class has any.
    """
    found = average_precision(image_indices, class_indices, scores, positives)
    if not found:
        raise ValueError(f"none of {len(scores)} labels is positive: no class has a precision")
    return float(np.mean([*found.values()]))


def per_frequency(
    hits: Any, true_classes: Any, training_counts: Any, edges: Sequence[int] = (1, 10, 100)
) -> dict[str, dict[str, float]]:
    """Estimate the hit rate by how often a class's name occurred in the training captions.

    ``hits`` (N,) bool; ``true_classes`` (N,) class numbers; ``training_counts`` (C,) captions;
    ``edges`` begin a group each: "0", "1–9", "10–99" and "100+", of which those without images
    are left out. A ValueError refuses unequal lengths, and edges that do not rise from 1.
    """
    hits, counts = np.asarray(hits), np.asarray(training_counts)
    truth = np.asarray(true_classes, dtype=int)
    if hits.shape != truth.shape or not np.isin(truth, np.arange(len(counts))).all():
        raise ValueError(
            f"need as many hits as true classes, got {hits.shape} and {truth.shape}, and classes "
            f"below {len(counts)}, the number of training_counts"
        )
    if list(edges) != sorted({*edges}) or edges[0] < 1:
        raise ValueError(f"edges={tuple(edges)} must rise, from at least 1")
    names = [
        f"{low}–{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise([0, *edges])
    ]
    groups = np.searchsorted(edges, counts[truth], side="right")
    names.append(f"{edges[-1]}+")
    return {names[group]: estimate(hits[groups == group]) for group in np.unique(groups)}


def harmonic_mean(seen: float, unseen: float) -> float:
    """Give H = 2 s u / (s + u) of generalised zero-shot learning; 0 if both are.

    ``seen`` and ``unseen`` are mean per-class accuracies when all classes are candidates (Xian et
    al. 2018, arXiv:1707.00600, the equation of H). A ValueError refuses those outside [0, 1].
    """
    if not (0 <= seen <= 1 and 0 <= unseen <= 1):
        raise ValueError(f"seen={seen} and unseen={unseen} must be fractions in [0, 1]")
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def retrieval_ranks(images: Tensor, texts: Tensor, image_of_text: Any) -> dict[str, np.ndarray]:
    """Rank the right answer of each query: 0 is best, the lowest index leads among equals.

    ``images`` (N, D) and ``texts`` (M, D) have unit length, ``image_of_text`` (M,) the row of
    each text's image (a ValueError refuses others). ``text_to_image`` (M,) ranks the text's
    image; ``image_to_text`` the best of an image's texts, for each image that has any.
    """
    owner = torch.as_tensor(image_of_text, device=images.device)
    rows = torch.arange(len(images), device=images.device)
    if owner.shape != (len(texts),) or not torch.isin(owner, rows).all():
        raise ValueError(f"image_of_text must hold {len(texts)} numbers below {len(images)}")
    asked = rows[torch.isin(rows, owner)]
    return {
        "text_to_image": _first_ranks(texts, images, owner, rows),
        "image_to_text": _first_ranks(images[asked], texts, asked, owner),
    }


def retrieval_recall(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Any, ks: Sequence = (1, 5, 10)
) -> dict[str, dict[int, float]]:
    """Give recall@k both ways: the fraction of :func:`retrieval_ranks` below each k.

    A ValueError refuses a k above the number of candidates, where recall is 1 by construction.
    """
    if max(ks) > (smallest := min(len(image_embeddings), len(text_embeddings))) or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)} must be between 1 and the {smallest} candidates")
    ranks = retrieval_ranks(image_embeddings, text_embeddings, image_of_text)
    return {way: {k: float((rank < k).mean()) for k in ks} for way, rank in ranks.items()}


def recall_sum(ranks: Mapping[str, np.ndarray], ks: Sequence[int] = (1, 5, 10)) -> float:
    """Sum recall@k over ``ks`` and both ways of :func:`retrieval_ranks`, in percent.

    The field's rSum, at most 100 per k and way: 600 (Huang et al. 2021, NeurIPS, section 4.2).
    """
    return 100 * sum(float((rank < k).mean()) for rank in ranks.values() for k in ks)


def _first_ranks(queries: Tensor, candidates: Tensor, wanted: Tensor, labels: Tensor) -> np.ndarray:
    """Rank, for each query, the best candidate whose label is the wanted one."""
    ranks, columns = [], torch.arange(len(labels), device=labels.device)
    for start, scores in similarity_blocks(queries.to(labels.device), candidates):
        right = labels == wanted[start : start + len(scores), None]
        best = scores.masked_fill(~right, -math.inf).amax(dim=1, keepdim=True)
        first = (right & (scores == best)).int().argmax(dim=1, keepdim=True)
        ranks.append(((scores > best) | ((scores == best) & (columns < first))).sum(dim=1))
    return torch.cat(ranks).cpu().numpy()


def _label_set(truth: int | Collection[int]) -> set[int]:
    """Read one label or several, from Python, numpy or torch."""
    truth = list(truth) if isinstance(truth, set | frozenset) else truth
    return set(np.asarray(truth, dtype=int).reshape(-1).tolist())
