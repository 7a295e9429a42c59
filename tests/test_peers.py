"""The peers of benchmarks/wrong_captions.py: their formulas written out, and that they learn."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from peers import PEERS, heads

sys.path.pop(0)
decl, l2rm, rince = (sys.modules[f"peers.{name}"] for name in ("decl", "l2rm", "rince"))


@pytest.fixture
def pairs():
    """Pairs of 640 images with two captions each; every third caption is another image's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(640, 24, generator=generator)
    own = images @ torch.randn(24, 16, generator=generator)
    texts = own.repeat_interleave(2, dim=0)
    texts = texts + 0.3 * torch.randn(texts.shape, generator=generator)
    wrong = torch.arange(0, len(texts), 3)
    texts[wrong] = texts[wrong.roll(7)]
    counts = np.full(640, 2)
    unit = (F.normalize(part, dim=-1) for part in (images, texts))
    return heads.Pairs(*unit, np.cumsum(counts) - counts, counts, 0), own


def test_robust_infonce_is_its_formula():
    logits = torch.tensor([[1.0, 0.5], [0.2, 2.0]])
    q, share = 0.4, 0.01
    for row in range(2):
        own, total = logits[row, row].item(), sum(map(math.exp, logits[row].tolist()))
        expected = -math.exp(q * own) / q + (share * total) ** q / q
        assert rince.robust_infonce(logits, q, share)[row].item() == pytest.approx(expected)


def test_evidential_loss_is_squared_error_variance_and_distance_from_the_uniform():
    evidence, labels = torch.tensor([[4.0, 1.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    alpha = (evidence + 1).double()
    dirichlet = torch.distributions.Dirichlet(alpha)
    expected = ((labels - dirichlet.mean) ** 2 + dirichlet.variance).sum().item()
    wrong = torch.distributions.Dirichlet(torch.tensor([[1.0, 2.0, 1.5]]))
    away = torch.distributions.kl_divergence(wrong, torch.distributions.Dirichlet(torch.ones(1, 3)))
    found = decl.evidential(evidence, labels, 0.3).item()
    assert found == pytest.approx(expected + 0.3 * away.item(), rel=1e-5)


def test_hinges_compare_with_the_own_pair_both_ways():
    similarity = torch.tensor([[0.9, 0.8], [0.1, 0.3]])
    image, text = heads.hinges(similarity, 0.2)
    torch.testing.assert_close(image, torch.tensor([[0.0, 0.1], [0.0, 0.0]]))
    torch.testing.assert_close(text, torch.tensor([[0.0, 0.0], [0.7, 0.0]]))


def test_a_partial_plan_carries_its_mass_and_no_row_more_than_its_share():
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    plan = l2rm.partial_plan(similarity, 0.3, 0.5, n_iterations=200)
    assert plan.sum().item() == pytest.approx(0.3)
    assert (plan.sum(dim=1) < 1 / 6 + 1e-4).all()
    assert (plan.sum(dim=0) < 1 / 6 + 1e-4).all()


def test_the_mixture_finds_the_lower_losses():
    losses = torch.cat([torch.full((50,), 0.1), torch.full((30,), 0.9)])
    losses += 0.02 * torch.randn(80, generator=torch.Generator().manual_seed(0))
    clean = heads.clean_probability(losses)
    assert (clean[:50] > 0.9).all()
    assert (clean[50:] < 0.1).all()


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_from_pairs_of_which_a_third_are_wrong(pairs, name):
    data, own = pairs
    found = [each.eval() for each in PEERS[name](data, epochs=40)]
    assert len(found) == (2 if name == "NCR" else 1)
    with torch.no_grad():
        scores = sum(each.similarity(data.images, F.normalize(own, dim=-1)) for each in found)
    ranks = (scores.argsort(dim=1, descending=True) == torch.arange(640)[:, None]).int().argmax(1)
    assert (ranks < 10).float().mean() > 0.1  # by chance 0.016
