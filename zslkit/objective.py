"""One objective: a contrastive loss plus distillation towards soft targets, each of some kind.

Dimensions: B = queries in this process, N = queries in all processes, D = embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zslkit.config import ObjectiveSettings, RunConfig
from zslkit.data.kinds import CONTRASTIVE_LOSSES, SOFT_TARGETS, contrastive, soft_target  # noqa: F401
from zslkit.losses import distillation_loss
from zslkit.targets import (
    fuse_similarities,
    remove_diagonal,
    target_agreement,
    target_statistics,
)
from zslkit.training import dist

for _kinds in (CONTRASTIVE_LOSSES, SOFT_TARGETS):  # one that is not wired everywhere fails here
    _kinds.check(RunConfig.model_fields)
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
) -> tuple[Tensor, dict[str, Tensor]]:
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
    terms : dict of str to Tensor of shape ()
        On the device, without gradients: ``contrastive_loss``, and with soft targets
        ``distillation_loss``, ``self_mass``, ``target_entropy`` and, from a teacher,
        ``target_agreement``.

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
    kind = CONTRASTIVE_LOSSES[config.contrastive_loss]
    logits = [logit_scale * similarity for similarity in (similarity_v, similarity_t)]
    if kind.learned_bias:
        logits = [side + logit_bias for side in logits]
    sides = {"logits_per_image": logits[0], "logits_per_text": logits[1]}
    one_hot_term = kind(config, **sides, offset=offset, weights=weights)
    terms = {"contrastive_loss": one_hot_term.detach()}
    targets = soft_targets(len(similarity_v), similarity_v.shape[1], teacher, config, progress)
    if targets is None:
        return one_hot_term, terms
    targets_v, targets_t = (t.to(similarity_v.device) for t in targets)
    distillation = (
        distillation_loss(distillation_scale * similarity_v, targets_v, weights)
        + distillation_loss(distillation_scale * similarity_t, targets_t, weights)
    ) / 2
    terms |= {"distillation_loss": distillation.detach(), **target_statistics(targets_v, offset)}
    if teacher is not None:
        some = slice(_AGREEMENT_ROWS)
        guide = teacher.image[some] @ dist.gather(teacher.text).T
        terms["target_agreement"] = target_agreement(targets_v[some], guide, offset)
    weight = config.contrastive_weight
    return weight * one_hot_term + (1 - weight) * distillation, terms


@torch.no_grad()
def soft_targets(
    n_queries: int,
    n_candidates: int,
    teacher: Embedded | None,
    config: ObjectiveSettings,
    progress: float,
) -> tuple[Tensor, Tensor] | None:
    """Make the soft targets of both directions, (B, N) each; None when there are none.

    Raises
    ------
    ValueError
        For a kind that is not known, or one of a user's own that gives no soft targets.
    """
    kind, first = SOFT_TARGETS[config.soft_targets], dist.rank() * n_queries
    if kind.function is None or (kind.needs_teacher and teacher is None):
        return None
    trusted = config.trusted_start + (config.trusted_end - config.trusted_start) * progress
    inputs = {"offset": 0, "progress": progress, "trusted_share": trusted}
    inputs |= {"n_queries": n_candidates, "n_candidates": n_candidates}
    # Transport and trust couple all rows: every process solves the whole and takes its part.
    both = _similarities(teacher, config) if kind.needs_teacher else (None, None)
    both = (kind(config, similarity=similarity, **inputs) for similarity in both)
    return tuple(targets[first : first + n_queries] for targets in both)


def _similarities(teacher: Embedded, config: ObjectiveSettings) -> list[Tensor]:
    """Fuse the teacher's similarities of all processes' pairs, (N, N) for either direction."""
    image, text = dist.gather(teacher.image), dist.gather(teacher.text)
    weights = config.image_similarity_weight, config.text_similarity_weight
    both = [cross := image @ text.T, cross.T]
    if any(weights):
        intra_modal = image @ image.T, text @ text.T
        both = [fuse_similarities(cross, *intra_modal, *weights) for cross in both]
    return [remove_diagonal(side) for side in both] if config.remove_diagonal else both
