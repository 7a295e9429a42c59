"""Rank classes for images, block by block; the N x C scores are never kept.

Dimensions: N = images, C = classes, D = embedding.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zslkit.data.showing import one_line, some, table


class ClassBank(NamedTuple):
    """One unit vector for each class: ``embeddings`` is (C, D), float32, in CPU memory."""

    embeddings: Tensor
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return one_line("ClassBank", self._facts())

    def _repr_html_(self) -> str:
        return table("ClassBank", self._facts())

    def _facts(self) -> dict[str, object]:
        facts = {"classes": len(self.class_names), "dimensions": self.embeddings.shape[1]}
        return facts | {"class_names": some(self.class_names)}


def rank_classes(image_embeddings: Tensor, bank: ClassBank, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best classes of each (N, D) image, exactly and without keeping N x C scores.

    Returns similarities and class numbers, both (N, k), best first. Among equal scores the
    lowest class number comes first. A ValueError refuses k outside 1..C, NaN and infinity.
    """
    return rank_and_total(image_embeddings, bank, k)[:2]


def rank_and_total(
    image_embeddings: Tensor, bank: ClassBank, k: int, logit_scale: Any = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rank like :func:`rank_classes`; in the same pass find what turns scores into probabilities.

    The third answer, (N,), is the logarithm of the softmax's denominator over all C classes:
    ``exp(logit_scale * scores - totals[:, None])`` are probabilities. None without a scale.
    """
    if not 1 <= k <= len(bank.class_names):
        raise ValueError(f"k={k} must be between 1 and the {len(bank.class_names)} classes")
    scores, indices, totals = [], [], []
    for _, block in similarity_blocks(image_embeddings, bank.embeddings):
        best = _top_k(block, k)
        scores.append(best[0])
        indices.append(best[1])
        if logit_scale is not None:  # in place: the block is not needed again
            totals.append(block.mul_(torch.as_tensor(logit_scale).detach().to(block)).logsumexp(1))
    return torch.cat(scores), torch.cat(indices), torch.cat(totals) if totals else None


def class_probabilities(
    image_embeddings: Tensor, bank: ClassBank, scores: Tensor, logit_scale: Any
) -> Tensor:
    """Turn similarities that :func:`rank_classes` found, (N, k), into a softmax over all classes.

    They are what the model was trained to say, at its own ``logit_scale``; whether 0.9 means
    nine in ten is for :func:`zslkit.evaluation.metrics.reliability` to tell.
    """
    scale = torch.as_tensor(logit_scale).detach().to(scores)
    blocks = similarity_blocks(image_embeddings.to(scores.device), bank.embeddings)
    totals = torch.cat([(scale * block).logsumexp(dim=1) for _, block in blocks])
    return (scale * scores - totals[:, None]).exp()


def similarity_blocks(
    queries: Tensor, candidates: Tensor, max_scores: int = 2**22
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, float32 scores of a few queries against all candidates), in row order.

    Every block is written over the one before: memory that is asked for anew each time would
    cost as much again as the product.
    """
    queries = queries.detach().float()
    columns = candidates.detach().to(queries).T
    # a sum is finite if all its terms are, and needs no memory
    if not (queries.sum().isfinite() and columns.sum().isfinite()):
        raise ValueError("embeddings contain NaN or infinity")
    step = max(1, max_scores // columns.shape[1])
    scores = queries.new_empty(min(step, len(queries)), columns.shape[1])
    for start in range(0, max(1, len(queries)), step):
        rows = queries[start : start + step]
        yield start, torch.mm(rows, columns, out=scores[: len(rows)])


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best, indices = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # torch.topk returns any of several equal scores: put those it chose in order ...
    indices = indices[:, :k].sort(dim=1).values
    order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True).indices
    indices = indices.gather(1, order)
    # ... and choose anew in the rare rows where a tie reaches beyond k.
    if (tied := best[:, k - 1] == best[:, -1]).any() and k < scores.shape[1]:
        indices[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, indices), indices
