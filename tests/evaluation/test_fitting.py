import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zslkit as zk
from zslkit.data.caption_trust import held_out_trust
from zslkit.data.closed_form import Moments, Spectra
from zslkit.evaluation.beside import closed_form_beside
from zslkit.evaluation.fitting import GRIDS, Features, fit_closed_form, fit_projections
from zslkit.evaluation.metrics import recall_sum, retrieval_ranks
from zslkit.training.batches import TrainingData


def made(n, seed, noise=0.3):
    """Features of images and two captions each, that share four directions."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.Generator().manual_seed(9)
    owner, shared = torch.arange(n).repeat_interleave(2), torch.randn(n, 4, generator=generator)
    images = shared @ torch.randn(4, 12, generator=maps)
    texts = shared[owner] @ torch.randn(4, 6, generator=maps)
    images += noise * torch.randn(n, 12, generator=generator)
    texts += noise * torch.randn(2 * n, 6, generator=generator)
    return Features(images, texts, owner)


@pytest.mark.parametrize("kind", ["ridge", "cca"])
def test_the_best_of_the_grid_on_dev_is_fitted(kind):
    train, dev = made(300, 0), made(60, 1)
    found = fit_closed_form(*train, kind, dev=dev)
    assert {name: found.settings[name] in grid for name, grid in GRIDS[kind].items()} == {
        name: True for name in GRIDS[kind]
    }
    expected = getattr(Spectra(Moments(12, 6).add(*train)), kind)(**found.settings)
    torch.testing.assert_close(found.maps.image_weight, expected.image_weight)
    ranks = retrieval_ranks(
        expected.project_image(dev.images), expected.project_text(dev.texts), dev.owner
    )
    assert found.dev_score == recall_sum(ranks) > 300
    assert found.trust is None
    # no neighbour in the grid is better
    for name, values in GRIDS[kind].items():
        for value in values if name == [*GRIDS[kind]][-1] else ():
            other = getattr(Spectra(Moments(12, 6).add(*train)), kind)(
                **found.settings | {name: value}
            )
            ranks = retrieval_ranks(
                other.project_image(dev.images), other.project_text(dev.texts), dev.owner
            )
            assert recall_sum(ranks) <= found.dev_score


def test_without_dev_a_fifth_is_held_out_and_then_used():
    train = made(300, 0)
    found = fit_closed_form(*train, "cca", k=3)
    expected = Spectra(Moments(12, 6).add(*train)).cca(**found.settings, k=3)
    torch.testing.assert_close(found.maps.text_weight, expected.text_weight)
    assert found.maps.image_bias.shape == (3,)


def test_filtering_weighs_captions_and_helps_where_many_are_wrong():
    train, dev = made(400, 0), made(100, 1)
    wrong = np.random.default_rng(0).permutation(800)[:400]
    train.texts[wrong] = train.texts[np.roll(wrong, 1)]
    plain, filtered = (fit_closed_form(*train, "cca", dev=dev, filtered=f) for f in (False, True))
    torch.testing.assert_close(filtered.trust, held_out_trust(*train))
    assert filtered.dev_score > plain.dev_score


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='pls' must be one of ridge, cca"):
        fit_closed_form(*made(10, 0), "pls")


@pytest.fixture
def frozen(tiny_settings, tmp_path):
    """Settings of a run with frozen towers; tiny has no dev split."""
    changes = {"image_tower": "frozen", "text_tower": "frozen", "output_dir": str(tmp_path / "run")}
    return {**tiny_settings, **changes, "soft_targets": "none"}


@pytest.mark.parametrize("kind", ["ridge", "cca"])
def test_a_closed_form_is_a_run_like_any_other(frozen, kind):
    wide = {"embedding_dim": 128} if kind == "ridge" else {}
    config = zk.RunConfig(**{**frozen, **wide}, fit=kind)
    run = zk.train(config)
    assert run.history == []
    again = zk.load_run(config.output_dir)
    assert again.config.fit == kind
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    metrics = zk.evaluate(again.model, config)
    assert metrics == zk.evaluate(run.model, config)
    # what the projections give is what the maps give
    data = TrainingData(run.model, config, torch.device("cpu"))
    features = Features(*data.features_of(run.model)[:3])
    found = fit_closed_form(*features, kind, k=config.embedding_dim)
    with torch.no_grad():
        torch.testing.assert_close(
            run.model.project_image(features.images) @ run.model.project_text(features.texts).T,
            found.maps.project_image(features.images) @ found.maps.project_text(features.texts).T,
            atol=1e-4,
            rtol=0,
        )


def test_a_training_starts_from_a_closed_form(frozen, tmp_path):
    fitted = zk.train(zk.RunConfig(**frozen, fit="cca")).model
    started = {**frozen, "init": "cca", "max_steps": 1, "warmup_steps": 0}
    one = zk.train(zk.RunConfig(**{**started, "output_dir": str(tmp_path / "one")})).model
    random = zk.train(
        zk.RunConfig(**{**started, "init": "random", "output_dir": str(tmp_path / "random")})
    ).model
    weights = [m.image_projection[-1].weight for m in (fitted, one, random)]
    assert 0 < (weights[0] - weights[1]).abs().max() < 0.1
    assert (weights[0] - weights[2]).abs().max() > 0.1


def test_dev_pairs_are_read_where_the_manifest_has_them(frozen, tmp_path):
    manifest = json.loads(Path(frozen["manifest"]).read_text())
    manifest["splits"]["dev"] = {"scenes": "dev", "n": 24}
    path = tmp_path / "with-dev.json"
    path.write_text(json.dumps(manifest))
    config = zk.RunConfig(**{**frozen, "manifest": str(path)}, fit="cca")
    model = zk.build_dual_encoder(config)
    data = TrainingData(model, config, torch.device("cpu"))
    chosen = fit_projections(model, data, config)
    other = config.model_copy(update={"dev_split": "none"})
    assert chosen.dev_score != fit_projections(model, data, other).dev_score


@pytest.mark.parametrize("field", ["fit", "init"])
def test_projections_that_are_not_linear_are_refused(field):
    message = f"{field}='cca' fits linear maps; with projection='mlp' take init='random'"
    with pytest.raises(ValueError, match=message):
        zk.RunConfig(projection="mlp", **{field: "cca"})


def test_projections_that_cannot_hold_it_are_refused(frozen):
    with pytest.raises(ValueError, match="embedding_dim=16 must be at least .* for ridge"):
        zk.train(zk.RunConfig(**frozen, fit="ridge"))


@pytest.mark.parametrize("judge", ["teacher", "held_out"])
def test_trust_is_per_caption(frozen, judge):
    config = zk.RunConfig(**frozen, pair_trust=True, trust_judge=judge)
    assert config.needs_teacher == (judge == "teacher")
    model = zk.build_dual_encoder(config)
    data = TrainingData(model, config, torch.device("cpu"))
    trust = data.estimate_trust(model)
    assert trust.shape == (sum(len(captions) for captions in data.pairs.captions),)
    for _, batch in data.stream(0, 3):
        for row, caption in zip(batch.rows, batch.captions, strict=True):
            assert data.first_caption[row] <= caption
            assert caption < data.first_caption[row] + data.captions_of[row]


def test_a_start_from_a_filtered_fit_brings_its_trust(frozen):
    noise = {"caption_noise": 0.5, "caption_noise_kind": "caption"}
    config = zk.RunConfig(**frozen, **noise, init="cca", pair_trust=True, trust_judge="held_out")
    model = zk.build_dual_encoder(config)
    data = TrainingData(model, config, torch.device("cpu"))
    trust = fit_projections(model, data, config).trust
    # the towers are frozen: nothing has changed
    torch.testing.assert_close(trust, data.estimate_trust(model))
    run = zk.train(config)
    assert 0 < run.history[0]["mean_trust"] < 1


def test_a_training_on_frozen_towers_shows_the_closed_form_beside_it(frozen):
    config = zk.RunConfig(**frozen, image_dropout=0.2, max_steps=1)
    run = zk.train(config)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    beside = closed_form_beside(run.model, config)
    fitted = config.model_copy(update={"fit": "cca"})
    assert beside == {"closed_form": zk.evaluate(zk.train(fitted).model, fitted)}
    assert all(torch.equal(before[name], t) for name, t in run.model.state_dict().items())
    # how captions are weighed is the run's, too
    noisy = {"caption_noise": 0.5, "caption_noise_kind": "caption"}
    plain, weighed = (
        closed_form_beside(run.model, zk.RunConfig(**frozen, **noisy, pair_trust=trust,
                                                   trust_judge="held_out"))
        for trust in (False, True)
    )  # fmt: skip
    assert plain != weighed
    assert closed_form_beside(run.model, fitted) == {}
    trains = config.model_copy(update={"text_tower": "train"})
    assert closed_form_beside(run.model, trains) == {}


def test_recall_sum_adds_both_ways_in_percent():
    ranks = {"text_to_image": np.array([0, 4, 9, 30]), "image_to_text": np.array([0, 2])}
    assert recall_sum(ranks) == pytest.approx(25 + 50 + 75 + 50 + 100 + 100)


def test_weights_that_are_known_take_the_place_of_filtering():
    train, dev = made(200, 0), made(50, 1)
    weights = (torch.arange(400) % 3 > 0).float()
    found = fit_closed_form(*train, "cca", dev=dev, filtered=True, trust=weights)
    expected = Spectra(Moments(12, 6).add(*train, weights)).cca(**found.settings)
    torch.testing.assert_close(found.maps.image_weight, expected.image_weight)
    assert found.trust is weights
