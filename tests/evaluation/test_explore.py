"""One photo and one batch asked by hand: nothing twice, and maps that agree with the formula."""

import math
import re

import pandas as pd
import pytest
import torch
from torch import nn

from zslkit.config import RunConfig
from zslkit.data.cache import tower_features
from zslkit.data.images import BrokenImageError
from zslkit.data.pairs import open_pairs
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.explore import Namer, embed_batch, overview, target_table, teacher_of
from zslkit.kernels import numbers
from zslkit.targets import target_statistics
from zslkit.trainer import train
from zslkit.zeroshot.class_bank import build_class_bank
from zslkit.zeroshot.ranking import class_probabilities, rank_classes


@pytest.fixture(scope="module")
def config(tiny_settings):
    return RunConfig(**tiny_settings)


@pytest.fixture
def model(config):
    return build_dual_encoder(config)


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 40, 50), generator=generator, dtype=torch.uint8)


def test_a_full_memory_of_prompts_is_emptied_without_a_change(model, monkeypatch):
    monkeypatch.setattr("zslkit.evaluation.explore._MAX_PROMPTS", 3)
    namer = Namer(model)
    first = namer.encode_text(["a", "b"])
    namer.encode_text(["c", "d"])
    torch.testing.assert_close(namer.encode_text(["b", "a"]), first.flip(0))
    assert len(namer._prompts) <= 3


def test_a_bank_that_is_stopped_keeps_what_it_has_embedded(model, pixels):
    class Stop(Exception):
        pass

    def stop(known):
        if known >= 256:
            raise Stop

    namer, names = Namer(model), [f"thing {number}" for number in range(600)]
    namer.tell = stop
    image = namer.encode_image("x", pixels)
    with pytest.raises(Stop):
        namer.predict(image, names, ["{}"], 1)
    asked = []
    namer.tell = asked.append
    assert len(namer.predict(image, names, ["{}"], 2)) == 2
    assert asked == [256, 512]


def test_what_is_known_is_ranked_as_if_it_were_new(model, pixels):
    namer, names, templates = Namer(model), ["cat", "dog", "owl"], ["a {}.", "the {}"]
    image = namer.encode_image("x", pixels)
    namer.predict(image, ["owl", "ant"], templates, 2)
    fresh = Namer(model)
    expected = fresh.predict(fresh.encode_image("x", pixels), names, templates, 2)
    pd.testing.assert_frame_equal(namer.predict(image, names, templates, 2), expected)
    bank = build_class_bank(model, names, templates)
    scores, _ = rank_classes(image[None], bank, 2)
    shares = class_probabilities(image[None], bank, scores, model.logit_scale)
    assert expected["probability"].tolist() == pytest.approx(shares[0].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("names", "templates", "words"),
    [
        ([], ["{}"], "must not be empty"),
        (["cat"], [], "must not be empty"),
        (["cat", "cat"], ["{}"], "1 class names occur more than once: cat"),
        (["cat"], ["a"], "templates without {}"),
    ],
)
def test_what_is_wrong_with_classes_is_said_also_of_known_ones(
    model, pixels, names, templates, words
):
    namer = Namer(model)
    image = namer.encode_image("x", pixels)
    namer.predict(image, ["cat"], ["{}"], 1)
    with pytest.raises(ValueError, match=re.escape(words)):
        namer.predict(image, names, templates, 1)


def test_a_set_of_templates_is_forgotten_when_three_others_have_come(model, pixels):
    namer = Namer(model)
    image = namer.encode_image("x", pixels)
    for text in ("a {}", "b {}", "c {}", "d {}", "e {}"):
        namer.predict(image, ["cat"], [text], 1)
    assert list(namer._classes) == [("b {}",), ("c {}",), ("d {}",), ("e {}",)]


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_light_is_grad_cam_written_out(config, pixels, mode):
    """For a tower that averages its last map, the weights are those of the averages."""
    settings = {"image_tower": mode, "image_size": 96}  # a last map of 3 x 3
    model = build_dual_encoder(config.model_copy(update=settings)).eval()
    namer = Namer(model)
    view, heat = namer.light(pixels, "red star", ["a {}"])
    seen = model.image_tower.normalise(view[None])
    activations = model.image_tower.net.forward_features(seen).detach()
    averages = activations.mean(dim=(2, 3)).requires_grad_()
    similarity = model.project_image(averages)[0] @ namer.encode_text(["a red star"])[0]
    (weights,) = torch.autograd.grad(similarity, averages)
    assert activations.shape[2:] == (3, 3)
    coarse = (weights[0, :, None, None] * activations[0]).sum(dim=0).relu()
    expected = nn.functional.interpolate(coarse[None, None], size=heat.shape, mode="bilinear")[0, 0]
    torch.testing.assert_close(heat, expected / expected.max(), rtol=1e-3, atol=1e-4)
    assert heat.max() == 1
    assert view.shape == (3, 96, 96)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())


class Tokens(nn.Module):
    """A tower that cuts an image into patches and forgets where they were."""

    name, feature_dim = "tokens", 8

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)

    def normalise(self, pixels):
        return pixels.float() / 255

    def forward(self, pixels):
        return self.norm(self.patches(pixels).flatten(2).transpose(1, 2)).mean(dim=1)


def test_a_tower_of_tokens_says_that_it_has_no_map(model, config, pixels):
    model.image_tower = Tokens()
    model.image_projection = nn.Linear(8, config.embedding_dim)
    with pytest.raises(ValueError, match="tokens has no spatial map"):
        Namer(model).light(pixels, "x", ["{}"])


def test_a_frozen_teacher_is_found_before_any_training(config, tmp_path):
    earlier = train(config.model_copy(update={"max_steps": 2, "output_dir": str(tmp_path)}))
    asked = config.model_copy(update={"teacher": "frozen", "teacher_run": str(tmp_path)})
    model, words = teacher_of(asked)
    assert words == ""
    torch.testing.assert_close(model.state_dict(), earlier.model.state_dict())


def test_a_batch_is_embedded_row_by_row(model, config):
    pairs = open_pairs(config.manifest, "train")
    rows, images, embedded = embed_batch(model.eval(), pairs, [4, 1, 4, 2])
    assert rows == [4, 1, 2]
    assert torch.equal(images[1], pairs[1].pixels)
    with torch.no_grad():
        alone = model.encode_text([pairs.captions[1][0]])[0]
        view = model.image_transform(train=False)(pairs[1].pixels)
        photo = model.encode_image(view[None])[0]
    torch.testing.assert_close(embedded.text[1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedded.image[1], photo, rtol=1e-4, atol=1e-5)


def test_images_whose_features_are_kept_pass_no_tower(model, config, tmp_path, monkeypatch):
    frozen = {"image_tower": "frozen", "cache_dir": str(tmp_path)}
    config, pairs = config.model_copy(update=frozen), open_pairs(config.manifest, "train")
    rows, images, expected = embed_batch(model.eval(), pairs, [9, 1, 4, 2], config)
    assert not list(tmp_path.iterdir())  # four of 32 are no reason to embed all
    tower_features(model, pairs, config, "images")
    monkeypatch.setattr(model.image_tower, "forward", None)
    again, looked_at, found = embed_batch(model, pairs, [9, 1, 9, 4, 2], config)
    assert again == rows == [9, 1, 4, 2]
    assert all(map(torch.equal, images, looked_at))
    torch.testing.assert_close(found.image, expected.image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.text, expected.text)
    read = pairs.read_pixels

    def lost(row):
        if row == 1:
            raise BrokenImageError("gone since")
        return read(row)

    monkeypatch.setattr(pairs, "read_pixels", lost)
    assert embed_batch(model, pairs, [9, 1, 4], config)[0] == [9, 4]
    bank = build_class_bank(model, ["red star", "blue moon"], ["{}"])
    assert len(overview(model, {"train": pairs}, bank, 16, config)[0]) == 16
    with pytest.raises(TypeError):  # the tower that is no more
        overview(model, {"train": pairs}, bank, 16)


def test_one_image_is_no_batch(model, config):
    pairs = open_pairs(config.manifest, "train")
    with pytest.raises(ValueError, match=r"rows=\[0, 0\]: soft targets need two readable images"):
        embed_batch(model.eval(), pairs, [0, 0])


def test_an_overview_says_what_is_known_of_each_image(model, config):
    train_pairs = open_pairs(config.manifest, "train", caption_noise=0.5)
    sets = {"noisy": train_pairs, "test": open_pairs(config.manifest, "test", max_pairs=3)}
    bank = build_class_bank(model.eval(), sets["test"].class_names[:20], ["{}"])
    embeddings, table, thumbnails = overview(model, sets, bank, most=16)
    assert table["split"].tolist() == ["noisy"] * 16 + ["test"] * 3
    assert table["key"].tolist() == [*train_pairs.keys[::2], *sets["test"].keys]
    assert len(embeddings) == len(thumbnails) == 19
    _, _, expected = embed_batch(model, train_pairs, [0, 2, 4])
    torch.testing.assert_close(embeddings[:3], expected.image, rtol=1e-4, atol=1e-5)
    own = (expected.image * expected.text).sum(dim=1)
    assert table["similarity"][:3].tolist() == pytest.approx(own.tolist(), abs=1e-5)
    assert (table["captions"][:16] == "swapped").tolist() == train_pairs.swapped[::2].tolist()
    best = rank_classes(embeddings, bank, 1)[1][:, 0]
    for row, place in zip(table.to_dict("records"), best.tolist(), strict=True):
        assert row["named"] == bank.class_names[place]
        known = row["class"] in bank.class_names
        right = "right" if row["named"] == row["class"] else "wrong"
        assert row["answer"] == (right if known else "unknown")
    assert {"unknown", "wrong"} <= set(table["answer"])


def test_targets_in_words():
    targets = torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.7, 0.1], [0.0, 0.0, 1.0]])
    table = target_table(targets, ["a", "b", "c"], n_others=2)
    assert table["self_mass"].tolist() == pytest.approx([0.5, 0.7, 1.0])
    middle = -(0.2 * math.log(0.2) + 0.7 * math.log(0.7) + 0.1 * math.log(0.1))
    assert table["target_entropy"].tolist() == pytest.approx([math.log(2), middle, 0.0])
    assert table["others"][0] == [("c", 0.5)]
    assert [text for text, _ in table["others"][1]] == ["a", "c"]
    assert table["others"][2] == []
    mean = table[["self_mass", "target_entropy"]].mean().to_dict()
    assert mean == pytest.approx(numbers(target_statistics(targets)))
