"""Soft targets: row-stochastic matrices that stand in for one-hot labels.

Dimensions: B = queries in this process, N = candidates. The own pair of row i is column
``offset + i``. Everything is float32: ``exp`` at a small epsilon overflows half precision.
"""

import math

import torch
from torch import Tensor

from zslkit.data.kinds import soft_target
from zslkit.losses import positive_columns

soft_target("none", "w = 1", words="")(None)

OWN_PAIR_BELOW = 200.0
"""What :func:`remove_diagonal` takes off; cosines lie within 1."""


def one_hot_targets(n_queries: int, n_candidates: int, offset: int = 0) -> Tensor:
    """Put all mass on the own pair, (B, N)."""
    targets = torch.zeros(n_queries, n_candidates)
    return targets.scatter_(1, positive_columns(n_queries, offset)[:, None], 1.0)


@soft_target("label_smoothing", r"p_{ii} = 1 - \varepsilon,\; p_{ij} = \varepsilon / (N - 1)",
             reads={"smoothing": "label_smoothing"}, softened_by="smoothing")  # fmt: skip
def label_smoothing_targets(
    n_queries: int, n_candidates: int, smoothing: float, offset: int = 0
) -> Tensor:
    """Put 1 - smoothing on the own pair and spread the rest evenly over the others.

    Returns
    -------
    Tensor of shape (B, N), float
        Rows sum to 1. A single candidate keeps all the mass.

    Raises
    ------
    ValueError
        If ``smoothing`` is outside [0, 1).

    References
    ----------
    Szegedy et al. (2016), arXiv:1512.00567, section 7, without mass on the true class: torch's
    ``cross_entropy(label_smoothing=smoothing * N / (N - 1))``. The objective gives it the share
    ``1 - contrastive_weight`` and a scale of its own; with ``contrastive_weight=0`` it is the
    field's, the whole loss.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} must be in [0, 1)")
    one_hot = one_hot_targets(n_queries, n_candidates, offset)
    if n_candidates == 1:
        return one_hot
    return one_hot * (1 - smoothing) + (1 - one_hot) * smoothing / (n_candidates - 1)


def fuse_similarities(
    cross: Tensor,
    image_image: Tensor,
    text_text: Tensor,
    image_weight: float,
    text_weight: float,
    offset: int = 0,
) -> Tensor:
    """Add masked intra-modal similarities to the cross-modal ones.

    An image is as similar to itself as can be; left in, that diagonal makes the targets
    one-hot. The intra-modal terms are therefore zero there.

    Parameters
    ----------
    cross, image_image, text_text : Tensor of shape (B, N), float
        Teacher similarities s_vt (or s_tv), s_vv and s_tt.
    image_weight, text_weight : float
        w_v and w_t.

    Returns
    -------
    Tensor of shape (B, N), float

    References
    ----------
    Wu et al. (2021), OTTER, arXiv:2112.09445, section 3.
    """
    intra_modal = image_weight * image_image.float() + text_weight * text_text.float()
    own_pair = one_hot_targets(*cross.shape, offset).bool().to(cross.device)
    return cross.float() + intra_modal.masked_fill(own_pair, 0.0)


def remove_diagonal(similarity: Tensor) -> Tensor:
    """Put the own pair of each row of a square matrix far below all others.

    Soft targets then leave it no mass at all, and say only which other captions could fit; that
    the own one does is left to the contrastive term.

    References
    ----------
    Wu et al. (2021), OTTER, ``--remove_diag`` of train_OTTER.sh: 100 is taken off the diagonal of
    either intra-modal similarity.
    """
    return similarity - OWN_PAIR_BELOW * torch.eye(len(similarity), device=similarity.device)


@soft_target("teacher", r"p_{ij} = e^{s_{ij} / \tau} / \sum_k e^{s_{ik} / \tau}",
             reads={"temperature": "teacher_temperature"}, softened_by="temperature")  # fmt: skip
def teacher_targets(similarity: Tensor, temperature: float) -> Tensor:
    """Turn teacher similarities into probabilities: softmax(similarity / temperature).

    Parameters
    ----------
    similarity : Tensor of shape (B, N), float
        A score: larger means a better match.
    temperature : float
        The soft-label temperature; towards 0 one-hot, towards infinity uniform.

    Raises
    ------
    ValueError
        If ``temperature`` is not positive.

    References
    ----------
    Cheng et al. (2021), arXiv:2104.08945.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0")
    return (similarity.float() / temperature).softmax(dim=-1)


def sinkhorn(similarity: Tensor, epsilon: float, n_iterations: int) -> Tensor:
    """Entropic optimal transport plan with uniform marginals, iterated in the log domain.

    Maximises <plan, similarity> + epsilon * entropy(plan). Each iteration fits the rows, then
    the columns, so that column sums are exact and row sums converge.

    Parameters
    ----------
    similarity : Tensor of shape (B, N), float
        A score, not a cost.
    epsilon : float
        Entropic regularisation in units of similarity.
    n_iterations : int
        At least 1.

    Returns
    -------
    Tensor of shape (B, N), float
        Non-negative, sums to 1; columns sum to 1 / N, rows to nearly 1 / B.

    Raises
    ------
    ValueError
        If ``epsilon`` or ``n_iterations`` is not positive.

    References
    ----------
    Cuturi (2013), arXiv:1306.0895, algorithm 1, with exp and sums replaced by logsumexp:
    in float32 exp(similarity / epsilon) overflows above 88.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon} must be above 0")
    if n_iterations < 1:
        raise ValueError(f"n_iterations={n_iterations} must be at least 1")
    log_plan = similarity.float() / epsilon
    n_queries, n_candidates = similarity.shape
    for _ in range(n_iterations):
        log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True) - math.log(n_queries)
        log_plan = log_plan - log_plan.logsumexp(dim=0, keepdim=True) - math.log(n_candidates)
    return log_plan.exp()


@soft_target("transport", r"p = N \arg\max_{P 1 = P^\top 1 = 1 / N} P \cdot s + \epsilon H(P)",
             reads={"n_iterations": "sinkhorn_iterations"}, softened_by="epsilon")  # fmt: skip
def transport_targets(similarity: Tensor, epsilon: float = 0.15, n_iterations: int = 5) -> Tensor:
    """Optimal-transport plan with each row scaled to sum to 1, (B, N).

    References
    ----------
    Wu et al. (2021), OTTER, arXiv:2112.09445, section 3.
    """
    plan = sinkhorn(similarity, epsilon, n_iterations)
    return plan / plan.sum(dim=1, keepdim=True).clamp_min(torch.finfo(plan.dtype).tiny)


@soft_target("progressive", r"p_{ij} = [i = j] \text{ if trusted, else } \sigma_j(s_{ij} / \tau)",
             reads={"temperature": "teacher_temperature"}, softened_by="temperature",
             begins_one_hot=True)  # fmt: skip
def progressive_targets(
    similarity: Tensor, temperature: float, trusted_share: float, offset: int = 0
) -> Tensor:
    """One-hot for the pairs the teacher trusts most, teacher targets for the rest.

    Parameters
    ----------
    similarity : Tensor of shape (B, N), float
    temperature : float
        Of the soft part.
    trusted_share : float
        Share of the B pairs kept one-hot, rounded; trust is the teacher's own-pair mass.

    Raises
    ------
    ValueError
        If ``trusted_share`` is outside [0, 1].

    References
    ----------
    Andonian, Chen and Hamid (2022), arXiv:2204.04588, section 3. Departure: they split a batch
    at random; here the teacher's own-pair probability decides, so that swapped captions go soft
    first.
    """
    if not 0 <= trusted_share <= 1:
        raise ValueError(f"trusted_share={trusted_share} must be in [0, 1]")
    soft = teacher_targets(similarity, temperature)
    one_hot = one_hot_targets(*soft.shape, offset).to(soft.device)
    trust = (soft * one_hot).sum(dim=1)
    n_trusted = round(trusted_share * len(soft))
    trusted = torch.zeros_like(trust, dtype=torch.bool)
    trusted[trust.argsort(descending=True, stable=True)[:n_trusted]] = True
    return torch.where(trusted[:, None], one_hot, soft)


def target_statistics(targets: Tensor, offset: int = 0) -> dict[str, Tensor]:
    """Mean own-pair mass and mean entropy (nats) of soft targets, on their device.

    Mass 1 and entropy 0 are one-hot labels; mass 1 / N and entropy log N are no labels at all.
    """
    columns = positive_columns(len(targets), offset, targets.device)
    self_mass = targets.gather(1, columns[:, None]).mean()
    entropy = -torch.xlogy(targets, targets).sum(dim=1).mean()
    return {"self_mass": self_mass, "target_entropy": entropy}


def target_agreement(targets: Tensor, similarity: Tensor, offset: int = 0) -> Tensor:
    """Correlate soft targets with the teacher's similarity, the own pair left out.

    Parameters
    ----------
    targets, similarity : Tensor of shape (B, N), float
        Soft targets and the teacher's cross-modal similarities of the same rows.

    Returns
    -------
    Tensor of shape (), float
        Pearson correlation of log targets and similarity, in [-1, 1], mean over the rows. 1 for
        plain teacher targets; below 0 a cost stands where a score was expected; rows whose
        targets do not vary count as 0.
    """
    columns = positive_columns(len(targets), offset, targets.device)[:, None]
    # the own pair counts 0 instead of being cut out: a mask as index would wait for the device
    others = torch.ones_like(targets).scatter_(1, columns, 0.0)
    sides = targets.float().clamp_min(1e-30).log(), similarity.float()
    count = max(1, targets.shape[1] - 1)
    means = [(x * others).sum(dim=1, keepdim=True) / count for x in sides]
    a, b = (((x - mean) * others) for x, mean in zip(sides, means, strict=True))
    return torch.cosine_similarity(a, b).mean()
