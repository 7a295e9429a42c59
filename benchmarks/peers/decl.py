"""Deep evidential cross-modal learning: evidence for each match, and a margin to the hard ones."""

import torch

from .heads import Heads, Pairs, hinges


def evidential(evidence, labels, weight):
    """(B,) expected squared error under a Dirichlet of evidence + 1, and its distance to none."""
    alpha = evidence + 1
    total = alpha.sum(dim=1, keepdim=True)
    mean = alpha / total
    error = (labels - mean) ** 2 + mean * (1 - mean) / (total + 1)
    # evidence for the wrong ones should go to zero: divergence from the uniform Dirichlet
    wrong = evidence * (1 - labels) + 1
    s = wrong.sum(dim=1)
    n = torch.tensor(float(alpha.shape[1]))
    divergence = s.lgamma() - n.lgamma() - wrong.lgamma().sum(dim=1)
    divergence = divergence + ((wrong - 1) * (wrong.digamma() - s.digamma()[:, None])).sum(dim=1)
    return error.sum(dim=1) + weight * divergence


def decl(
    pairs: Pairs, epochs=10, warmup=3, tau=0.1, margin=0.2, hardest=10, weight=1e-3, rate=3e-3
):
    """Train linear heads by DECL.

    Evidence is exp(tanh(similarity) / tau) of either direction; the triplet's negatives become
    fewer and harder with every step, from all to ``hardest``; after the warm-up a pair counts as
    right where its own share of the evidence is above the mean of what the captions give.

    References
    ----------
    Qin et al. (2022), "Deep Evidential Learning with Noisy Correspondence for Cross-modal
    Retrieval", ACM Multimedia, sections 3.2 to 3.4. Departures: linear heads instead of SGRAF;
    the two groups of pairs are told apart by a mixture of two Gaussians.
    """
    from .heads import clean_probability

    torch.manual_seed(pairs.seed)
    per_epoch = len(pairs.images) // 512
    heads = Heads(pairs, rate=rate, steps=epochs * per_epoch)
    right, owner = torch.ones(len(pairs.texts)), pairs.owner
    for epoch in range(epochs):
        if epoch >= warmup:
            shares = torch.zeros(len(pairs.texts))
            heads.eval()
            with torch.no_grad():
                for rows in torch.randperm(len(pairs.texts)).split(512):
                    s = heads.similarity(pairs.images[owner[rows]], pairs.texts[rows])
                    e = (s.tanh() / tau).exp()
                    shares[rows] = (2 * e.diag()) / (e + e.T).sum(dim=1)
            heads.train()
            right = (clean_probability(-shares.clamp_min(1e-9).log()) > 0.5).float()
        for number, (rows, captions) in enumerate(pairs.batches(epoch)):
            s = heads.similarity(pairs.images[rows], pairs.texts[captions]).tanh()
            evidence, labels = (s / tau).exp(), torch.diag(right[captions])
            loss = evidential(evidence, labels, weight) + evidential(evidence.T, labels, weight)
            done = (epoch * per_epoch + number) / (epochs * per_epoch)
            n = max(hardest, round((1 - 2 * done) * (len(rows) - 1)))
            hard = sum(side.topk(n, dim=1).values.mean(dim=1) for side in hinges(s, margin))
            heads.step(loss.mean() + (right[captions] * hard).mean())
    return [heads]
