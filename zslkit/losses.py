"""Training objective: pure functions of tensors.

Dimensions: B = queries in this process, N = candidates scored (all processes' queries),
D = embedding. The positive of row i is column ``offset + i``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zslkit.data.kinds import contrastive


def positive_columns(n_queries: int, offset: int, device: torch.device | None = None) -> Tensor:
    """Give the candidate column of each query's own pair, (B,) int64."""
    return torch.arange(offset, offset + n_queries, device=device)


@contrastive("softmax", r"-\log\,(e^{\alpha s_{ii}} / \sum_j e^{\alpha s_{ij}})",
             words="InfoNCE", of_guessing=math.log)  # fmt: skip
def contrastive_loss(
    logits_per_image: Tensor,
    logits_per_text: Tensor | None = None,
    offset: int = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE, averaged over both directions.

    Parameters
    ----------
    logits_per_image : Tensor of shape (B, N), float
        Image-to-text cosine similarities already multiplied by ``logit_scale``.
    logits_per_text : Tensor of shape (B, N), float, optional
        Text-to-image; the transpose of ``logits_per_image`` when not given.
    offset : int
        Column of row 0's own pair: rank x B with several processes.
    weights : Tensor of shape (B,), float, optional
        Weight of each pair, with mean 1 over all processes.

    Returns
    -------
    Tensor of shape (), float
        Mean over the batch and the two directions, in nats.

    Raises
    ------
    ValueError
        If the two shapes differ, or a row's own pair lies outside the columns.

    References
    ----------
    Radford et al. (2021), arXiv:2103.00020, figure 3.
    """
    if logits_per_text is None:
        logits_per_text = logits_per_image.T
    _require_one_shape(logits_per_image=logits_per_image, logits_per_text=logits_per_text)
    n_queries, n_candidates = logits_per_image.shape
    if not 0 <= offset <= n_candidates - n_queries:
        raise ValueError(
            f"offset={offset} puts a pair outside the {n_candidates} candidates; with "
            f"{n_queries} queries it must be in [0, {n_candidates - n_queries}]"
        )
    positives = positive_columns(n_queries, offset, logits_per_image.device)
    image_to_text, text_to_image = (
        _weighted_mean(F.cross_entropy(logits, positives, reduction="none"), weights)
        for logits in (logits_per_image, logits_per_text)
    )
    return (image_to_text + text_to_image) / 2


@contrastive("sigmoid", r"\sum_j \log\,(1 + e^{(1 - 2 [i = j]) (\alpha s_{ij} + \beta)})",
             words="SigLIP", learned_bias=True)  # fmt: skip
def sigmoid_loss(
    logits_per_image: Tensor, offset: int = 0, weights: Tensor | None = None
) -> Tensor:
    """SigLIP: every image-caption combination is a yes-or-no question of its own.

    Parameters
    ----------
    logits_per_image : Tensor of shape (B, N), float
        ``logit_scale`` x cosine similarity + ``logit_bias``.
    offset, weights
        As in :func:`contrastive_loss`.

    Returns
    -------
    Tensor of shape (), float
        Sum over the candidates, mean over the batch, in nats.

    References
    ----------
    Zhai et al. (2023), "Sigmoid Loss for Language Image Pre-Training", arXiv:2303.15343,
    equation 1.
    """
    positives = positive_columns(len(logits_per_image), offset, logits_per_image.device)
    signs = torch.full_like(logits_per_image, -1.0).scatter_(1, positives[:, None], 1.0)
    rows = F.softplus(-signs * logits_per_image).sum(dim=1)  # -log sigmoid(x) = softplus(-x)
    return _weighted_mean(rows, weights)


def distillation_loss(
    student_logits: Tensor, soft_targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the student's prediction against the teacher's soft targets.

    Equal to the Kullback-Leibler divergence up to the targets' entropy, a constant.

    Parameters
    ----------
    student_logits : Tensor of shape (B, N), float
        Cosine similarities already multiplied by the student's distillation scale.
    soft_targets : Tensor of shape (B, N), float
        Rows summing to 1. Treated as constants: no gradient reaches the teacher.
    weights : Tensor of shape (B,), float, optional
        Weight of each row, with mean 1 over all processes.

    Returns
    -------
    Tensor of shape (), float
        Mean over the batch, in nats.

    Raises
    ------
    ValueError
        If the two shapes differ.

    References
    ----------
    Hinton, Vinyals and Dean (2015), arXiv:1503.02531, section 2; Cheng et al. (2021),
    arXiv:2104.08945.
    """
    _require_one_shape(student_logits=student_logits, soft_targets=soft_targets)
    rows = F.cross_entropy(student_logits, soft_targets.detach(), reduction="none")
    return _weighted_mean(rows, weights)


def _weighted_mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    return rows.mean() if weights is None else (weights * rows).mean()


def _require_one_shape(**tensors: Tensor) -> None:
    names, shapes = [*tensors], [tuple(tensor.shape) for tensor in tensors.values()]
    if len({*shapes}) > 1:
        raise ValueError("{} and {} must have one shape, got {} and {}".format(*names, *shapes))
