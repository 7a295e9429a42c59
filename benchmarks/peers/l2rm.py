"""Learning to rematch: mismatched captions get new images by partial optimal transport."""

import torch
import torch.nn.functional as F

from .heads import Heads, Pairs, clean_probability, hinges, pair_losses


def partial_plan(similarity, mass, epsilon, n_iterations=20):
    """(B, B) plan that carries ``mass`` in all, at most 1 / B a row and a column.

    Bregman projections in turns, Benamou et al. (2015), arXiv:1412.5154, section 5.
    """
    plan = (similarity / epsilon).softmax(dim=1).clamp_min(1e-30)
    plan = plan * (mass / plan.sum())
    most = 1 / len(plan)
    for _ in range(n_iterations):
        plan = plan * (most / plan.sum(dim=1, keepdim=True)).clamp_max(1)
        plan = plan * (most / plan.sum(dim=0, keepdim=True)).clamp_max(1)
        plan = plan * (mass / plan.sum())
    return plan


def l2rm(pairs: Pairs, epochs=10, warmup=3, margin=0.2, mass=0.3, epsilon=0.05, scale=20.0,
         rate=3e-3):  # fmt: skip
    """Train linear heads by L2RM.

    After the warm-up, pairs are split by their loss as in NCR. Those held to be right are learnt
    by cross-entropy; the captions of the others are spread over the batch's images by a partial
    transport plan in which their own image is forbidden, and that plan is the target of its rows.

    References
    ----------
    Han et al. (2024), "Learning to Rematch Mismatched Pairs for Robust Cross-Modal Retrieval",
    CVPR, arXiv:2403.05105, sections 3.2 to 3.4. Departures: linear heads instead of SGRAF; the
    cost is one minus the similarity, not learnt by a network of its own.
    """
    torch.manual_seed(pairs.seed)
    heads = Heads(pairs, rate=rate, steps=epochs * (len(pairs.images) // 512))
    for epoch in range(epochs):
        if epoch >= warmup:
            clean = clean_probability(pair_losses(heads, pairs, margin))
        for rows, captions in pairs.batches(epoch):
            s = heads.similarity(pairs.images[rows], pairs.texts[captions])
            if epoch < warmup:
                a, b = hinges(s, margin)
                heads.step((a.mean(dim=1) + b.mean(dim=1)).sum())
                continue
            right = clean[captions] > 0.5
            own, logits = torch.arange(len(s)), scale * s
            loss = (F.cross_entropy(logits[right], own[right], reduction="sum")
                    + F.cross_entropy(logits.T[right], own[right], reduction="sum"))  # fmt: skip
            if (n := int((~right).sum())) > 1:
                wrong = s[~right][:, ~right]
                with torch.no_grad():
                    forbidden = torch.eye(n, dtype=torch.bool)
                    plan = partial_plan(wrong.masked_fill(forbidden, -1.0), mass, epsilon)
                for target, side in ((plan, wrong), (plan.T, wrong.T)):
                    loss = loss - n * (target * (scale * side).log_softmax(dim=1)).sum()
            heads.step(loss / (2 * len(s)))
    return [heads]
