"""One objective: contrastive plus distillation towards one of four kinds of soft targets.

Dimensions: B = queries in this process, N = queries in all processes, D = embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zslkit.config import ObjectiveSettings
from zslkit.losses import contrastive_loss, distillation_loss, sigmoid_loss
from zslkit.targets import (
    fuse_similarities,
    label_smoothing_targets,
    progressive_targets,
    target_agreement,
    target_statistics,
    teacher_targets,
    transport_targets,
)
from zslkit.training import dist

_AGREEMENT_ROWS = 64  # enough to see whether targets are inverted, cheap at any batch size


class Embedded(NamedTuple):
    """Unit embeddings of a batch of pairs, (B, D) each."""

    image: Tensor
    text: Tensor


def training_loss(
    student: Embedded,
    teacher: Embedded | None,
    logit_scale: Tensor,
    distillation_scale: Tensor,
    config: ObjectiveSettings,
    progress: float = 0.0,
    trust: Tensor | None = None,
    logit_bias: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Weigh the contrastive and the distillation term of one batch.

    ``loss = w * contrastive + (1 - w) * distillation`` with ``w = contrastive_weight``, each
    averaged over both directions; only the contrastive term when there are no soft targets or
    the teacher is not ready yet.

    Parameters
    ----------
    student : Embedded
        With gradients; other processes' rows are gathered here.
    teacher : Embedded or None
        Of the same pairs, without gradients.
    logit_scale, distillation_scale : Tensor of shape ()
        Learned scales of the two terms.
    progress : float
        Share of the training done, in [0, 1], for progressive targets.
    trust : Tensor of shape (B,), float, optional
        Probability that each pair's caption is right; weighs its rows.
    logit_bias : Tensor of shape (), optional
        Of the sigmoid contrastive loss.

    Returns
    -------
    loss : Tensor of shape (), float
        In nats.
    terms : dict of str to float
        ``contrastive_loss``, and with soft targets ``distillation_loss``, ``self_mass``,
        ``target_entropy`` and, from a teacher, ``target_agreement``.

    References
    ----------
    Cheng et al. (2021), arXiv:2104.08945; Wu et al. (2021), OTTER, arXiv:2112.09445.
    """
    offset = dist.rank() * len(student.image)
    similarity_v = student.image @ dist.gather(student.text).T
    alone = dist.world_size() == 1  # then one product serves both directions
    similarity_t = similarity_v.T if alone else student.text @ dist.gather(student.image).T
    # mean 1 over all processes: few trusted pairs do not make a small step
    weights = None if trust is None else trust / dist.gather(trust).mean().clamp_min(1e-6)
    if config.contrastive_loss == "sigmoid":
        contrastive = sigmoid_loss(logit_scale * similarity_v + logit_bias, offset, weights)
    else:
        contrastive = contrastive_loss(
            logit_scale * similarity_v, logit_scale * similarity_t, offset, weights
        )
    terms = {"contrastive_loss": contrastive.item()}
    targets = soft_targets(len(similarity_v), similarity_v.shape[1], teacher, config, progress)
    if targets is None:
        return contrastive, terms
    targets_v, targets_t = (t.to(similarity_v.device) for t in targets)
    distillation = (
        distillation_loss(distillation_scale * similarity_v, targets_v, weights)
        + distillation_loss(distillation_scale * similarity_t, targets_t, weights)
    ) / 2
    terms |= {"distillation_loss": distillation.item(), **target_statistics(targets_v, offset)}
    if teacher is not None:
        some = slice(_AGREEMENT_ROWS)
        guide = teacher.image[some] @ dist.gather(teacher.text).T
        terms["target_agreement"] = target_agreement(targets_v[some], guide, offset)
    weight = config.contrastive_weight
    return weight * contrastive + (1 - weight) * distillation, terms


@torch.no_grad()
def soft_targets(
    n_queries: int,
    n_candidates: int,
    teacher: Embedded | None,
    config: ObjectiveSettings,
    progress: float,
) -> tuple[Tensor, Tensor] | None:
    """Make the soft targets of both directions, (B, N) each; None when there are none."""
    offset = dist.rank() * n_queries
    kind = config.soft_targets
    if kind == "label_smoothing":
        targets = label_smoothing_targets(n_queries, n_candidates, config.label_smoothing, offset)
        return targets, targets
    if kind == "none" or teacher is None:
        return None
    image, text = dist.gather(teacher.image), dist.gather(teacher.text)
    weights = config.image_similarity_weight, config.text_similarity_weight
    trusted = config.trusted_start + (config.trusted_end - config.trusted_start) * progress
    intra_modal = (image @ image.T, text @ text.T) if any(weights) else None
    both = []
    # Transport and trust couple all rows: every process solves the whole and takes its part.
    for cross in (cross_modal := image @ text.T, cross_modal.T):
        similarity = fuse_similarities(cross, *intra_modal, *weights) if intra_modal else cross
        if kind == "transport":
            targets = transport_targets(similarity, config.epsilon, config.sinkhorn_iterations)
        elif kind == "teacher":
            targets = teacher_targets(similarity, config.teacher_temperature)
        else:
            targets = progressive_targets(similarity, config.teacher_temperature, trusted)
        both.append(targets[offset : offset + n_queries])
    return tuple(both)
