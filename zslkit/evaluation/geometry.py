"""How embeddings lie on the sphere, before and after training, and what towers cost.

Dimensions: N = rows or images, M = texts, P = pairs, D = embedding, K = neighbours.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zslkit.data.words import words
from zslkit.evaluation.intervals import estimate
from zslkit.zeroshot.ranking import similarity_blocks


def nearest_neighbours(embeddings: Tensor, k: int) -> Tensor:
    """Find the k other rows that are nearest to each of (N, D) rows by cosine, nearest first.

    Returns int64 (N, k); among equals the lowest row leads. A ValueError refuses k outside
    1..N - 1.
    """
    if not 1 <= k < len(embeddings):
        raise ValueError(f"k={k} must be between 1 and the {len(embeddings) - 1} other rows")
    unit, found = F.normalize(embeddings.float(), dim=-1), []
    for start, scores in similarity_blocks(unit, unit):
        scores.diagonal(start).fill_(-math.inf)  # nobody is a neighbour of oneself
        found.append(scores.sort(dim=1, descending=True, stable=True).indices[:, :k])
    return torch.cat(found)


def neighbour_precision(embeddings: Tensor, labels: Any, k: int) -> np.ndarray:
    """Give for each row the share of its k nearest others that have its label, float (N,).

    For k = 1 the mean is the leave-one-out accuracy of the nearest-neighbour rule (Cover and
    Hart, 1967). A row whose label no other row has is a miss, so that N never changes silently.
    A ValueError refuses labels of another number than rows.
    """
    labels = torch.as_tensor(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"got {len(embeddings)} rows and labels of shape {tuple(labels.shape)}")
    same = labels[nearest_neighbours(embeddings, k)] == labels[:, None]
    return same.double().mean(dim=1).numpy()


def neighbour_chance(labels: Any) -> float:
    """Give the mean of :func:`neighbour_precision` if neighbours were drawn at random."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))


def caption_agreement(
    embeddings: Tensor, captions: Sequence[Sequence[str]], seed: int = 0
) -> tuple[str, dict[str, float]]:
    """Measure whether the nearest other caption is about the same thing.

    Parameters
    ----------
    embeddings : Tensor of shape (M, D)
        All captions, image after image.
    captions : sequence of sequences of str
        The captions of each image.
    seed : int
        Draws the partners of the chance level of shared words.

    Returns
    -------
    str, dict
        ``same_image_recall@1``: the share of captions whose nearest other describes the same
        image, resampled by image. Where each image has one caption no such truth exists; then
        ``shared_words``: words that two neighbours share / words that either has (Jaccard 1901).
    """
    owner = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    if len(owner) > len(captions):
        hits = neighbour_precision(embeddings, owner, 1)
        return "same_image_recall@1", estimate(hits, owner, chance=neighbour_chance(owner))
    bags = [set(words(group[0])) for group in captions]
    shuffled = np.random.default_rng(seed).permutation(len(bags))
    strangers = zip(shuffled, np.roll(shuffled, 1), strict=True)  # one cycle: nobody meets oneself
    chance = float(np.mean([_overlap(bags[i], bags[j]) for i, j in strangers]))
    nearest = nearest_neighbours(embeddings, 1)[:, 0].tolist()
    shared = [_overlap(own, bags[other]) for own, other in zip(bags, nearest, strict=True)]
    return "shared_words", estimate(shared, chance=chance)


def alignment(images: Tensor, texts: Tensor, alpha: float = 2) -> float:
    """Average ‖v - t‖^alpha over the rows of (P, D) and (P, D), pairs; 0 is perfect.

    Wang and Isola (2020), arXiv:2005.10242, section 4.1. For unit vectors and alpha = 2 this is
    2 - 2 · the mean cosine of the pairs.
    """
    return (images.double() - texts.double()).norm(dim=1).pow(alpha).mean().item()


def uniformity(embeddings: Tensor, t: float = 2) -> float:
    """Give log of the mean of exp(-t ‖x - y‖²) over all pairs of (N, D) unit rows.

    Wang and Isola (2020), arXiv:2005.10242, section 4.1: 0 where all rows agree, lower the more
    evenly they cover the sphere, at least -4t. A ValueError refuses fewer than two rows.
    """
    total, n = 0.0, len(embeddings)
    if n < 2:
        raise ValueError(f"uniformity is of two embeddings or more, got {n}")
    for start, scores in similarity_blocks(embeddings, embeddings):
        scores.diagonal(start).fill_(-math.inf)  # a row and itself are no pair
        total += (2 * t * (scores.double() - 1)).exp().sum().item()  # ‖x - y‖² = 2 - 2 cos
    return math.log(total / (n * (n - 1)))


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Give the distance between the centroids of (N, D) images and (M, D) texts, from 0 to 2.

    Liang et al. (2022), "Mind the Gap", arXiv:2203.02053, section 4.2.
    """
    return (images.double().mean(dim=0) - texts.double().mean(dim=0)).norm().item()


def describe(images: Tensor, texts: Tensor, pairs: Any) -> dict[str, Any]:
    """Put how images and texts lie on the sphere into numbers.

    Parameters
    ----------
    images, texts : Tensor of shape (N, D) and (M, D)
        Unit length.
    pairs : array of shape (P, 2), int
        Row of the image and row of the text; no pair twice.

    Returns
    -------
    dict
        ``modality_gap``, ``pair_cosine`` (with its interval, resampled by image),
        ``other_cosine`` of all N · M - P combinations that are no pair, ``alignment``,
        ``image_uniformity`` and ``text_uniformity``.

    Raises
    ------
    ValueError
        If every image is paired with every text.
    """
    image_rows, text_rows = np.asarray(pairs).T
    left, right = images[image_rows], texts[text_rows]
    cosines = (left.double() * right.double()).sum(dim=1)
    everything = images.double().sum(dim=0) @ texts.double().sum(dim=0)
    others = len(images) * len(texts) - len(cosines)
    if others == 0:
        raise ValueError("every image is paired with every text: there is nothing to tell apart")
    return {
        "modality_gap": modality_gap(images, texts),
        "pair_cosine": estimate(cosines, groups=image_rows),
        "other_cosine": ((everything - cosines.sum()) / others).item(),
        "alignment": alignment(left, right),
        "image_uniformity": uniformity(images),
        "text_uniformity": uniformity(texts),
    }


def layout(embeddings: Tensor, seed: int) -> np.ndarray:
    """Lay (N, D) embeddings out on a plane, float32 (N, 2): neighbours by cosine stay neighbours.

    UMAP (McInnes et al., 2018, arXiv:1802.03426) from the principal components, 15 neighbours.
    Distances between far points, axes and orientation mean nothing. A ValueError refuses fewer
    than four rows.
    """
    if len(embeddings) < 4:
        raise ValueError(f"a map needs at least four embeddings, got {len(embeddings)}")
    with warnings.catch_warnings():  # a part of umap that nothing here uses
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP

    mapper = UMAP(
        n_neighbors=min(15, len(embeddings) - 1),
        metric="cosine",
        init="pca",
        random_state=seed,
        n_jobs=1,  # with a seed UMAP is serial
    )
    return mapper.fit_transform(embeddings.float().numpy())


def _overlap(own: set[str], others: set[str]) -> float:
    return len(own & others) / max(1, len(own | others))
