"""Robust InfoNCE: a loss between InfoNCE and one that does not mind wrong pairs."""

import torch

from .heads import Heads, Pairs


def robust_infonce(logits, q, share):
    """(B,) losses: -exp(q s) / q + (share * sum of exp)^q / q, of rows with the own pair at i."""
    own = logits.diag()
    return -(q * own).exp() / q + (share * logits.exp().sum(dim=1)) ** q / q


def rince(pairs: Pairs, epochs=10, q=0.5, share=0.01, scale=10.0, rate=3e-3):
    """Train linear heads by RINCE.

    References
    ----------
    Chuang et al. (2022), "Robust Contrastive Learning against Noisy Views", arXiv:2201.04309,
    equation 2; ``q`` and ``share`` (their lambda) as there. The temperature 1 / scale is fixed,
    as in theirs: the loss has no best one.
    """
    torch.manual_seed(pairs.seed)
    heads = Heads(pairs, rate=rate, steps=epochs * (len(pairs.images) // 512))
    for epoch in range(epochs):
        for rows, captions in pairs.batches(epoch):
            logits = scale * heads.similarity(pairs.images[rows], pairs.texts[captions])
            both = robust_infonce(logits, q, share) + robust_infonce(logits.T, q, share)
            heads.step(both.mean() / 2)
    return [heads]
