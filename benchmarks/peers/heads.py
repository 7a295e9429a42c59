"""What the peers share: pairs of features, linear heads with dropout, the optimizer's schedule.

Dimensions: N = images, M = captions, F = image features, G = text features, B = batch.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslkit.data.sampling import caption_choice, epoch_order


class Pairs(NamedTuple):
    """Training features, as zslkit's own objectives see them."""

    images: Tensor
    """(N, F), unit length."""
    texts: Tensor
    """(M, G), unit length."""
    first: np.ndarray
    """(N,) row of each image's first caption."""
    counts: np.ndarray
    """(N,) captions of each image."""
    seed: int

    @property
    def owner(self) -> Tensor:
        """(M,) row of each caption's image."""
        return torch.from_numpy(np.repeat(np.arange(len(self.counts)), self.counts))

    def batches(self, epoch: int, size: int = 512):
        """Yield (rows, captions) of every batch of an epoch: each image with one caption."""
        order = epoch_order(len(self.images), self.seed, epoch)
        for rows in order[: len(order) // size * size].reshape(-1, size):
            chosen = caption_choice(self.counts[rows], self.seed, epoch, rows)
            yield torch.from_numpy(rows), torch.from_numpy(self.first[rows] + chosen)


class Heads(nn.Module):
    """Linear heads of both sides; the dropout is that of the laptop preset."""

    def __init__(self, pairs: Pairs, dim: int = 512, rate: float = 3e-3, steps: int = 110):
        super().__init__()
        widths = pairs.images.shape[1], pairs.texts.shape[1]
        self.image, self.text = (
            nn.Sequential(nn.Dropout(drop), nn.Linear(width, dim))
            for drop, width in zip((0.5, 0.2), widths, strict=True)
        )
        self.optimizer = torch.optim.AdamW(self.parameters(), rate, weight_decay=0.1, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, steps)

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Give the (B, B) cosine similarities."""
        v, t = F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)
        return v @ t.T

    def step(self, loss: Tensor) -> None:
        """Change the weights once, and the rate."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()


def hinges(similarity: Tensor, margin) -> tuple[Tensor, Tensor]:
    """Triplet costs of each negative, from images to texts and back, (B, B), the diagonal 0."""
    own, off = similarity.diag(), 1 - torch.eye(len(similarity))
    margin = torch.as_tensor(margin).expand(len(own))[:, None]
    both = similarity, similarity.T
    return tuple((margin + s - own[:, None]).clamp_min(0) * off for s in both)


@torch.no_grad()
def pair_losses(heads: Heads, pairs: Pairs, margin: float, size: int = 512) -> Tensor:
    """Mean triplet cost of each caption among the captions drawn with it, (M,)."""
    heads.eval()
    losses, order = torch.zeros(len(pairs.texts)), torch.randperm(len(pairs.texts))
    owner = pairs.owner
    for rows in order.split(size):
        found = hinges(heads.similarity(pairs.images[owner[rows]], pairs.texts[rows]), margin)
        losses[rows] = (found[0] + found[1]).mean(dim=1)
    heads.train()
    return losses


def clean_probability(losses: Tensor, n_iterations: int = 30) -> Tensor:
    """Share of the lower of two Gaussians that are fitted to losses scaled to [0, 1]."""
    x = ((losses - losses.min()) / (losses.max() - losses.min())).double()
    means, spread = (
        torch.quantile(x[:: -(-len(x) // 10**6)], torch.tensor([0.1, 0.9]).double()),
        x.var(),
    )
    variances, shares = torch.stack([spread, spread]), torch.full((2,), 0.5, dtype=torch.float64)
    for _ in range(n_iterations):
        logs = shares.log() - 0.5 * (variances.log() + (x[:, None] - means) ** 2 / variances)
        part = logs.softmax(dim=1)
        mass = part.sum(dim=0).clamp_min(1e-8)
        means = (part * x[:, None]).sum(dim=0) / mass
        variances = (part * (x[:, None] - means) ** 2).sum(dim=0) / mass + 5e-4
        shares = mass / len(x)
    return part[:, means.argmin()].float()
