"""Which captions to believe: split pairs on the teacher's loss, noisy against clean.

Dimensions: N = training pairs, D = embedding. No clean pairing and no noise mask is used.
"""

import torch
from torch import Tensor


def pair_losses(image_embeddings: Tensor, text_embeddings: Tensor, scale: float = 20.0) -> Tensor:
    """Contrastive loss of each pair against all others, mean of both directions.

    Parameters
    ----------
    image_embeddings, text_embeddings : Tensor of shape (N, D)
        Unit length; an image's captions are averaged into one vector.
    scale : float
        Multiplies similarities; 1 / temperature.

    Returns
    -------
    Tensor of shape (N,), float
        In nats. N x N similarities are never held at once.
    """
    own = scale * (image_embeddings * text_embeddings).sum(dim=1)

    def log_normalisers(queries: Tensor, candidates: Tensor) -> Tensor:
        blocks = queries.split(max(1, 2**22 // len(candidates)))
        return torch.cat([(scale * block @ candidates.T).logsumexp(dim=1) for block in blocks])

    sides = image_embeddings, text_embeddings
    return (log_normalisers(*sides) + log_normalisers(*sides[::-1])) / 2 - own


def clean_probability(losses: Tensor, n_iterations: int = 40) -> Tensor:
    """Probability that each pair belongs to the component of low loss.

    Fits a mixture of two Gaussians by expectation maximisation, started at the first and last
    decile, so that equal losses give equal results on every call.

    Parameters
    ----------
    losses : Tensor of shape (N,), float

    Returns
    -------
    Tensor of shape (N,), float32
        In [0, 1].

    References
    ----------
    Huang et al. (2021), "Learning with Noisy Correspondence for Cross-modal Matching",
    NeurIPS, section 3.2. Departures: the teacher's loss instead of the student's, against all
    pairs instead of a batch, and captions averaged.
    """
    x = losses.double()
    means = x.quantile(torch.tensor([0.1, 0.9], dtype=x.dtype, device=x.device))
    variances = x.var().clamp_min(1e-8).repeat(2)
    shares = torch.full_like(means, 0.5)
    for _ in range(n_iterations):
        log_likelihood = -0.5 * (variances.log() + (x[:, None] - means) ** 2 / variances)
        membership = (shares.log() + log_likelihood).softmax(dim=1)
        mass = membership.sum(dim=0).clamp_min(1e-8)
        means = (membership * x[:, None]).sum(dim=0) / mass
        variances = (membership * (x[:, None] - means) ** 2).sum(dim=0) / mass + 1e-4
        shares = mass / mass.sum()
    return membership[:, means.argmin()].float()
