import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from zslkit.data import caption_trust
from zslkit.data.caption_trust import (
    believe_captions,
    caption_losses,
    held_out_trust,
    two_groups,
)


def unit(*shape, seed=0):
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(numbers, dim=-1)


def test_losses_are_the_contrastive_loss_of_each_caption():
    images, texts, owner = unit(4, 6), unit(9, 6, seed=1), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3])
    scores = 20 * texts @ images.T
    own = scores[torch.arange(9), owner]
    # the own caption stands beside all of them, as it may not be among those taken
    expected = (
        torch.cat([scores, own[:, None]], 1).logsumexp(1)
        + torch.cat([scores.T[owner], own[:, None]], 1).logsumexp(1)
    ) / 2 - own
    losses, mismatched = caption_losses(images, texts, owner)
    torch.testing.assert_close(losses, expected)
    elsewhere = caption_losses(images, texts, (owner + 2) % 4)[0]
    torch.testing.assert_close(mismatched, elsewhere)


def test_a_sample_of_candidates_finds_wrong_captions_too():
    images, owner = unit(400, 16), torch.arange(400)
    texts = torch.nn.functional.normalize(images + 0.5 * unit(400, 16, seed=1), dim=-1)
    texts[:200] = texts[:200].roll(1, 0)
    few, all_of_them = (caption_losses(images, texts, owner, most=most)[0] for most in (50, 400))
    assert (few < all_of_them).all()
    assert roc_auc_score(owner < 200, few) > 0.95


def losses_of(wrong):
    """Losses about 2 where captions are right and about 4 where wrong, and 4 on purpose."""
    rng = np.random.default_rng(0)
    losses, mismatched = rng.normal(np.where(wrong, 4, 2), 1), rng.normal(4, 1, len(wrong))
    return torch.from_numpy(losses), torch.from_numpy(mismatched)


def test_captions_swapped_together_are_judged_together():
    owner = torch.arange(400).repeat_interleave(5)
    by_image = np.repeat(np.arange(400) % 2 == 0, 5)
    losses = losses_of(by_image)
    trust = believe_captions(*losses, owner, 400).numpy()
    alone = believe_captions(*losses, torch.arange(2000), 2000).numpy()
    assert roc_auc_score(~by_image, trust) > 0.98 > roc_auc_score(~by_image, alone)


def test_single_captions_are_judged_alone():
    owner = torch.arange(400).repeat_interleave(5)
    single = np.random.default_rng(1).random(2000) < 0.5
    losses = losses_of(single)
    trust = believe_captions(*losses, owner, 400).numpy()
    mean = torch.zeros(400).double().index_add_(0, owner, losses[0])[owner]
    own = roc_auc_score(~single, -losses[0])
    assert roc_auc_score(~single, trust) == pytest.approx(own, abs=0.02)
    assert roc_auc_score(~single, trust) > roc_auc_score(~single, -mean) + 0.15


def test_clean_captions_are_believed():
    owner = torch.arange(400).repeat_interleave(5)
    assert believe_captions(*losses_of(np.zeros(2000, bool)), owner, 400).mean() > 0.95


def test_groups_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(2, 0.5, 600), rng.normal(6, 1, 400)])
    mixture = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=500).fit(losses[:, None])
    expected = mixture.predict_proba(losses[:, None])[:, mixture.means_.argmin()]
    found = two_groups(torch.from_numpy(losses), torch.from_numpy(losses[600:]), 500)
    likelihood = found + torch.tensor([0.6, 0.4]).log()
    np.testing.assert_allclose(likelihood.softmax(dim=1)[:, 0], expected, atol=0.05)


def test_a_loss_beyond_all_groups_says_no_more_than_a_typical_one():
    losses, mismatched = losses_of(np.arange(2000) % 2 == 0)
    found = two_groups(torch.cat([losses, torch.tensor([-50.0, 90.0])]), mismatched)
    ratio = found[:, 0] - found[:, 1]
    assert ratio[-2] == ratio.max()
    assert ratio[-1] == ratio.min()


@pytest.mark.parametrize("losses", [torch.full((5,), 3.0), torch.tensor([1.0, 1.0, 9.0, 9.0, 2.0])])
def test_degenerate_losses_give_probabilities(losses):
    trust = believe_captions(losses, losses, torch.tensor([0, 0, 1, 1, 1]), 2)
    assert ((trust >= 0) & (trust <= 1)).all()


@pytest.mark.parametrize("rounds", [1, 2])
def test_shuffled_captions_are_found_out_of_fold(rounds):
    images, owner = unit(300, 8), torch.arange(300).repeat_interleave(2)
    texts = images[owner] @ unit(8, 8, seed=1) + 0.2 * unit(600, 8, seed=2)
    wrong = np.random.default_rng(0).permutation(600)[:240]
    texts[wrong] = texts[np.roll(wrong, 1)]
    trust = held_out_trust(images, texts, owner, rounds=rounds).numpy()
    right = ~np.isin(np.arange(600), wrong)
    assert roc_auc_score(right, trust) > 0.95
    assert trust[right].mean() > 0.8 > 0.2 > trust[~right].mean()


def test_no_image_has_a_say_in_its_own_judgement(monkeypatch):
    images, owner = unit(30, 4), torch.arange(30)
    texts = images @ unit(4, 4, seed=1) + 0.3 * unit(30, 4, seed=2)
    changed = texts.clone()
    changed[:10] = unit(10, 4, seed=5)  # the captions of the first of three folds
    seen = []

    def watch(projected, *rest):
        seen.append(projected)
        return caption_losses(projected, *rest)

    monkeypatch.setattr(caption_trust, "caption_losses", watch)
    for captions in (texts, changed):
        held_out_trust(images, captions, owner, rounds=1)
    torch.testing.assert_close(seen[0], seen[3])
    assert not torch.allclose(seen[1], seen[4], atol=1e-3)


@pytest.mark.parametrize("n_folds", [1, 31])
def test_folds_must_be_between_two_and_the_images(n_folds):
    with pytest.raises(ValueError, match=f"n_folds={n_folds} must be between 2 and the 30 images"):
        held_out_trust(unit(30, 4), unit(30, 4), torch.arange(30), n_folds)
