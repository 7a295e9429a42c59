import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn.linear_model import Ridge

from zslkit.data import closed_form
from zslkit.data.closed_form import Moments, Spectra


@pytest.fixture
def pairs():
    """Unit features of 60 images with one to three captions each, that go together."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.repeat_interleave(torch.arange(60), torch.arange(60) % 3 + 1)
    shared = torch.randn(60, 3, generator=generator)
    maps = torch.randn(3, 7, generator=generator), torch.randn(3, 5, generator=generator)
    images = shared @ maps[0] + torch.randn(60, 7, generator=generator)
    texts = shared[owner] @ maps[1] + torch.randn(len(owner), 5, generator=generator)
    unit = torch.nn.functional.normalize
    return unit(images.double(), dim=1), unit(texts.double(), dim=1), owner


def spread(pairs):
    """The same as plain rows of numpy, one for each caption."""
    images, texts, owner = pairs
    return images[owner].double().numpy(), texts.double().numpy()


def test_moments_are_those_of_the_pairs_written_out(pairs):
    x, y = spread(pairs)
    weights = torch.rand(len(y), generator=torch.Generator().manual_seed(1))
    found, w = Moments(7, 5).add(*pairs, weights), weights.double().numpy()
    np.testing.assert_allclose(found.weight, w.sum())
    np.testing.assert_allclose(found.image, w @ x)
    np.testing.assert_allclose(found.text, w @ y)
    np.testing.assert_allclose(found.image_image, np.einsum("m,mi,mj", w, x, x))
    np.testing.assert_allclose(found.text_text, np.einsum("m,mi,mj", w, y, y))
    np.testing.assert_allclose(found.image_text, np.einsum("m,mi,mj", w, x, y))


def test_blocks_and_parts_equal_the_whole(pairs, monkeypatch):
    images, texts, owner = pairs
    whole = Moments(7, 5).add(*pairs)
    monkeypatch.setattr(closed_form, "_BLOCK", 7)
    blockwise = Moments(7, 5).add(*pairs)
    cut = int(torch.searchsorted(owner, 25))
    first = Moments(7, 5).add(images[:25], texts[:cut], owner[:cut])
    second = Moments(7, 5).add(images[25:], texts[cut:], owner[cut:] - 25)
    for name, value in vars(whole).items():
        for other in (blockwise, first + second):
            torch.testing.assert_close(vars(other)[name], value)
        torch.testing.assert_close(vars(whole - first)[name], vars(second)[name])


def test_a_weight_of_zero_takes_a_caption_out(pairs):
    images, texts, owner = pairs
    kept = torch.arange(len(texts)) % 4 > 0
    weighted = Moments(7, 5).add(*pairs, kept.float())
    fewer = Moments(7, 5).add(images, texts[kept], owner[kept])
    torch.testing.assert_close(weighted.image_text, fewer.image_text)


def test_features_are_brought_to_unit_length(pairs):
    images, texts, owner = pairs
    torch.testing.assert_close(
        Moments(7, 5).add(3 * images, 0.5 * texts, owner).image_text,
        Moments(7, 5).add(*pairs).image_text,
    )


@pytest.mark.parametrize("penalty", [1e-4, 0.3, 10.0])
def test_ridge_is_that_of_scikit_learn(pairs, penalty):
    x, y = spread(pairs)
    variance = x.var(axis=0).mean()
    reference = Ridge(alpha=penalty * len(x) * variance).fit(x, y)
    maps = Spectra(Moments(7, 5).add(*pairs)).ridge(penalty)
    # both sides live in the basis of the text's principal axes, and centred
    basis = maps.text_weight.numpy()
    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(basis.T @ maps.image_weight.numpy(), reference.coef_, atol=1e-8)
    predicted = maps.image_weight.numpy() @ x.T + maps.image_bias.numpy()[:, None]
    expected = basis @ (reference.predict(x) - y.mean(axis=0)).T
    np.testing.assert_allclose(predicted, expected, atol=1e-8)


def test_ridge_on_whitened_texts_is_that_of_scikit_learn(pairs):
    x, y = spread(pairs)
    covariance = np.cov(y.T, bias=True)
    values, vectors = np.linalg.eigh(covariance + 0.2 * np.trace(covariance) / 5 * np.eye(5))
    white = (y - y.mean(axis=0)) @ vectors / np.sqrt(values)
    reference = Ridge(alpha=0.5 * len(x) * x.var(axis=0).mean()).fit(x, white)
    maps = Spectra(Moments(7, 5).add(*pairs)).ridge(0.5, 0.2)
    images, texts, _ = pairs
    expected = torch.nn.functional.cosine_similarity(
        torch.from_numpy(reference.predict(images.double().numpy()))[:, None],
        torch.from_numpy(white)[None],
        dim=-1,
    )
    actual = maps.project_image(images) @ maps.project_text(texts).T
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=0)


def test_canonical_directions_solve_the_generalised_eigenproblem(pairs):
    x, y = spread(pairs)
    penalty, text_penalty = 0.1, 0.3
    joint = np.cov(np.hstack([x, y]).T, bias=True)
    cross = joint[:7, 7:]
    inner = joint[:7, :7] + penalty * np.trace(joint[:7, :7]) / 7 * np.eye(7)
    outer = joint[7:, 7:] + text_penalty * np.trace(joint[7:, 7:]) / 5 * np.eye(5)
    values, vectors = eigh(cross @ np.linalg.solve(outer, cross.T), inner)
    maps = Spectra(Moments(7, 5).add(*pairs)).cca(penalty, text_penalty, power=0)
    correlations = np.sqrt(values[::-1][:5])
    weighted = Spectra(Moments(7, 5).add(*pairs)).cca(penalty, text_penalty, power=1)
    ratio = weighted.image_weight.norm(dim=1) / maps.image_weight.norm(dim=1)
    np.testing.assert_allclose(ratio, correlations, atol=1e-8)
    for direction, expected in zip(maps.image_weight.numpy(), vectors.T[::-1], strict=False):
        assert abs(direction @ inner @ expected) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        maps.text_weight.numpy() @ outer @ maps.text_weight.numpy().T, np.eye(5), atol=1e-8
    )


def test_fewer_directions_are_the_first_of_all(pairs):
    spectra = Spectra(Moments(7, 5).add(*pairs))
    torch.testing.assert_close(
        spectra.cca(1, 1, k=2).image_weight, spectra.cca(1, 1).image_weight[:2]
    )


def test_own_captions_lie_nearer_than_others(pairs):
    images, texts, owner = pairs
    maps = Spectra(Moments(7, 5).add(*pairs)).cca(0.1, 0.1)
    scores = maps.project_text(texts) @ maps.project_image(images).T
    own = scores.gather(1, owner[:, None])
    assert (scores > own).float().mean() < 0.2
    torch.testing.assert_close(maps.project_image(images).norm(dim=1), torch.ones(60))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, t, o, w: (v[:, :6], t, o, w), r"must have the shapes .*, got .*\(60, 6\)"),
        (lambda v, t, o, w: (v, t[1:], o, w), r"must have the shapes"),
        (lambda v, t, o, w: (v, t, o.flip(0), w), "owner must hold rows of the 60 images in"),
        (lambda v, t, o, w: (v, t, o + 1, w), "owner must hold rows of the 60 images"),
        (lambda v, t, o, w: (v, t, o, w - 2), "weights must be numbers from 0 up"),
        (lambda v, t, o, w: (v, t, o, w * torch.nan), "weights must be numbers from 0 up"),
    ],
)
def test_what_does_not_fit_is_refused(pairs, change, message):
    with pytest.raises(ValueError, match=message):
        Moments(7, 5).add(*change(*pairs, torch.ones(len(pairs[1]))))


def test_nothing_to_fit_is_said(pairs):
    with pytest.raises(ValueError, match="the pairs weigh 0 in all: there is nothing to fit"):
        Spectra(Moments(7, 5).add(*pairs, torch.zeros(len(pairs[1]))))
    images, texts, owner = pairs
    with pytest.raises(ValueError, match="all text features are equal"):
        Spectra(Moments(7, 5).add(images, texts[:1].expand_as(texts), owner))


@pytest.mark.parametrize(
    ("penalties", "name"), [((0, 1), "penalty=0"), ((1, -1), "text_penalty=-1")]
)
def test_penalties_must_be_above_zero(pairs, penalties, name):
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        Spectra(Moments(7, 5).add(*pairs)).cca(*penalties)
