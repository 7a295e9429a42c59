import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from zslkit.training.trust import clean_probability, pair_losses


def test_pair_losses_are_the_contrastive_loss_of_each_pair():
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(7, 4, generator=generator), dim=-1)
        for _ in range(2)
    )
    logits, own = 20 * images @ texts.T, torch.arange(7)
    expected = (
        torch.nn.functional.cross_entropy(logits, own, reduction="none")
        + torch.nn.functional.cross_entropy(logits.T, own, reduction="none")
    ) / 2
    torch.testing.assert_close(pair_losses(images, texts), expected, rtol=1e-5, atol=1e-5)


def two_groups():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(2, 0.5, 600), rng.normal(6, 1, 400)])


def test_the_group_of_low_loss_is_believed():
    probability = clean_probability(torch.from_numpy(two_groups()))
    assert probability[:600].mean() > 0.97
    assert probability[600:].mean() < 0.03


def test_equals_the_mixture_that_scikit_learn_fits():
    losses = two_groups()[:, None]
    mixture = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=500).fit(losses)
    expected = mixture.predict_proba(losses)[:, mixture.means_.argmin()]
    actual = clean_probability(torch.from_numpy(losses[:, 0]), 500)
    np.testing.assert_allclose(actual.numpy(), expected, atol=0.01)


@pytest.mark.parametrize("losses", [torch.full((5,), 3.0), torch.tensor([1.0, 1.0, 9.0])])
def test_degenerate_losses_give_finite_probabilities(losses):
    probability = clean_probability(losses)
    assert probability.isfinite().all()
    assert ((probability >= 0) & (probability <= 1)).all()
