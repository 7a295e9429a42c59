"""Noisy correspondence rectifier: two networks that divide the data for each other by loss."""

import torch

from .heads import Heads, Pairs, clean_probability, hinges, pair_losses


def predicted(heads, images, texts, margin):
    """(B,) how right a pair looks to one network, in [0, 1], the best tenth of the batch 1."""
    with torch.no_grad():
        a, b = hinges(heads.similarity(images, texts), margin)
        p = (margin - (a.mean(dim=1) + b.mean(dim=1)) / 2).clamp(0, margin)
        best = p.sort().values[-(len(p) // 10 + 1) :].mean()
        return (p / best.clamp_min(1e-8)).clamp(0, 1)


def ncr(pairs: Pairs, epochs=10, warmup=3, margin=0.2, rate=3e-3):
    """Train two pairs of linear heads by NCR; they are joined, as the paper averages them.

    After the warm-up, which averages over all negatives, each network's losses are split by two
    Gaussians; what the *other* network learns from is a triplet with its hardest negatives, whose
    margin grows with a rectified label: of pairs held to be right between 1 and its own
    prediction, of the others the mean prediction of both.

    References
    ----------
    Huang et al. (2021), "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS,
    sections 3.2 to 3.4. Departure: linear heads on frozen features instead of SGRAF.
    """
    torch.manual_seed(pairs.seed)
    steps = epochs * (len(pairs.images) // 512)
    nets = [Heads(pairs, rate=rate, steps=steps) for _ in range(2)]
    for epoch in range(epochs):
        if epoch >= warmup:
            clean = [clean_probability(pair_losses(net, pairs, margin)) for net in nets]
        for rows, captions in pairs.batches(epoch):
            v, t = pairs.images[rows], pairs.texts[captions]
            if epoch < warmup:
                for net in nets:
                    a, b = hinges(net.similarity(v, t), margin)
                    net.step((a.mean(dim=1) + b.mean(dim=1)).sum())
                continue
            guesses = [predicted(net, v, t, margin) for net in nets]
            for number, net in enumerate(nets):
                w = clean[1 - number][captions]  # the other network's judgement
                label = torch.where(
                    w > 0.5, w + (1 - w) * guesses[number], (guesses[0] + guesses[1]) / 2
                )
                a, b = hinges(net.similarity(v, t), margin * (10**label - 1) / 9)
                net.step((a.amax(dim=1) + b.amax(dim=1)).sum())
    return nets
