"""Which captions to believe, each judged by a fit that has not seen its image.

Dimensions: N = images, M = captions, D = embedding, Q = shares tried. No clean pairing and no
noise mask is used.
"""

import torch
from torch import Tensor

from zslkit.data.closed_form import Moments, Spectra

_PENALTIES = 3.0, 1.0, 0.9  # image, text, power; between 1 and 3 the judgement hardly differs
_MOST = 16384  # candidates that a loss is taken against


def held_out_trust(
    images: Tensor, texts: Tensor, owner: Tensor, n_folds: int = 3, rounds: int = 2
) -> Tensor:
    """Judge captions by canonical correlations that were fitted without them.

    Parameters
    ----------
    images, texts : Tensor of shape (N, F) and (M, G)
        Features of frozen towers.
    owner : Tensor of shape (M,), int64
        Row of each caption's image, rising.
    n_folds : int
        Every image is judged by a fit of the other folds; all captions of an image are in one.
    rounds : int
        From the second on, the fits weigh captions by the round before.

    Returns
    -------
    Tensor of shape (M,), float32
        Probability that each caption is right.

    Raises
    ------
    ValueError
        For fewer than two folds, or fewer images than folds.

    References
    ----------
    Huang et al. (2021), "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS,
    section 3.2: two networks that divide the data for each other. Here the judge is a closed form.
    """
    if not 2 <= n_folds <= len(images):
        raise ValueError(f"n_folds={n_folds} must be between 2 and the {len(images)} images")
    # contiguous runs: their captions are runs too, and nothing is copied
    edges = torch.linspace(0, len(images), n_folds + 1).long()
    places = torch.searchsorted(owner, edges)
    folds = [
        (images[a:b], texts[c:d], owner[c:d] - a, slice(c, d))
        for a, b, c, d in zip(edges, edges[1:], places, places[1:], strict=False)
    ]
    trust = torch.ones(len(texts))
    for _ in range(rounds):
        sums = [Moments(images.shape[1], texts.shape[1]).add(v, t, own, trust[captions])
                for v, t, own, captions in folds]  # fmt: skip
        whole = sum(sums[1:], sums[0])
        losses, mismatched = torch.zeros(2, len(texts))
        for part, (v, t, own, captions) in zip(sums, folds, strict=True):
            maps = Spectra(whole - part).cca(*_PENALTIES)
            found = caption_losses(maps.project_image(v), maps.project_text(t), own)
            losses[captions], mismatched[captions] = found
        trust = believe_captions(losses, mismatched, owner, len(images))
    return trust


def caption_losses(
    images: Tensor, texts: Tensor, owner: Tensor, scale: float = 20.0, most: int = _MOST
) -> tuple[Tensor, Tensor]:
    """Contrastive loss of each caption with its image, and with another one, on purpose.

    Parameters
    ----------
    images, texts : Tensor of shape (N, D) and (M, D)
        Unit length.
    owner : Tensor of shape (M,), int64
    scale : float
        Multiplies similarities; 1 / temperature.
    most : int
        Candidates on either side besides the own; of more, as many are taken evenly.

    Returns
    -------
    losses, mismatched : Tensor of shape (M,), float
        Means of both directions, in nats. N x M similarities are never held at once.
    """

    def log_normalisers(queries: Tensor, candidates: Tensor) -> Tensor:
        some = candidates[:: -(-len(candidates) // most)]
        blocks = queries.split(max(1, 2**22 // len(some)))
        return torch.cat([(scale * block @ some.T).logsumexp(dim=1) for block in blocks])

    per_caption, per_image = log_normalisers(texts, images), log_normalisers(images, texts)

    def loss(partner: Tensor) -> Tensor:
        own = scale * (images.index_select(0, partner) * texts).sum(dim=1)
        # the pair may not be among the candidates taken: the loss stays above 0 all the same
        both = torch.logaddexp(per_caption, own) + torch.logaddexp(per_image[partner], own)
        return both / 2 - own

    return loss(owner), loss((owner + len(images) // 2) % len(images))


def believe_captions(
    losses: Tensor, mismatched: Tensor, owner: Tensor, n_images: int, n_iterations: int = 40
) -> Tensor:
    """Probability that each caption is right, by what wrong ones are known to cost.

    Two groups of losses, a Gaussian each: the wrong one is known from captions that were put to
    another image on purpose, so that clean captions are not split in two. How many of an
    image's captions are right differs between images, in a way that is itself estimated: where
    captions were swapped image by image, all or none, where single ones were shuffled, any share.
    So an image's other captions count for as much as they tell.

    Parameters
    ----------
    losses, mismatched : Tensor of shape (M,), float
        Of :func:`caption_losses`.
    owner : Tensor of shape (M,), int64
        Image of each.
    n_images : int
        N.

    Returns
    -------
    Tensor of shape (M,), float32
        In [0, 1].

    References
    ----------
    Huang et al. (2021), section 3.2, for the mixture, there of two free groups; Kiefer and
    Wolfowitz (1956), "Consistency of the maximum likelihood estimator in the presence of
    infinitely many incidental parameters", for the distribution of shares over images, here on a
    grid.
    """
    likelihood = two_groups(losses, mismatched, n_iterations)
    shares = torch.linspace(0.02, 0.98, 13, dtype=likelihood.dtype, device=losses.device)
    logs = torch.stack([shares.log(), (1 - shares).log()])
    right = likelihood[:, :1] + logs[0]
    per_caption = torch.logaddexp(right, likelihood[:, 1:] + logs[1])
    per_image = per_caption.new_zeros(n_images, len(shares)).index_add_(0, owner, per_caption)
    weights = torch.full_like(shares, 1 / len(shares))
    for _ in range(n_iterations):
        membership = (per_image + weights.log()).softmax(dim=1)
        weights = membership.mean(dim=0).clamp_min(1e-12)
    return (membership[owner] * (right - per_caption).exp()).sum(dim=1).clamp(0, 1).float()


def two_groups(losses: Tensor, mismatched: Tensor, n_iterations: int = 40) -> Tensor:
    """Fit the group of right captions beside the known one of wrong captions.

    By expectation maximisation, started at the first decile, so that equal losses give equal
    results on every call. Beyond both means the likelihoods are those at the means: a loss that
    no group explains says no more than a typical one.

    Returns
    -------
    Tensor of shape (M, 2), float64
        Log likelihood of each loss as a right and as a wrong caption's.
    """
    x, wrong = losses.double(), mismatched.double()
    ordered = x.sort().values  # torch.quantile refuses more than 16 million
    means = torch.stack([ordered[len(x) // 10], wrong.mean()])
    variances = torch.stack([x.var(correction=0), wrong.var(correction=0)]) + 1e-4
    shares = torch.full_like(means, 0.5)
    for _ in range(n_iterations):
        log_likelihood = _normal(x, means, variances)
        right = (shares.log() + log_likelihood).softmax(dim=1)[:, 0]
        mass = right.sum().clamp_min(1e-8)
        means[0] = (right * x).sum() / mass
        variances[0] = (right * (x - means[0]) ** 2).sum() / mass + 1e-4
        shares[0] = (mass / len(x)).clamp(1e-6, 1 - 1e-6)
        shares[1] = 1 - shares[0]
    low, high = means.sort().values
    return _normal(x.clamp(low, high), means, variances)


def _normal(x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    return -0.5 * (variances.log() + (x[:, None] - means) ** 2 / variances)
