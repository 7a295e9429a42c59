"""Neighbours, gaps and maps against hand-computed values; the cost of towers by counting."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from zslkit.config import RunConfig
from zslkit.data.cache import tower_features
from zslkit.data.named import labelled_images
from zslkit.data.pairs import open_pairs
from zslkit.data.weights import fingerprint
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.evaluator import rank_labelled_images
from zslkit.evaluation.explore import thumbnail
from zslkit.evaluation.geometry import (
    alignment,
    caption_agreement,
    describe,
    layout,
    modality_gap,
    nearest_neighbours,
    neighbour_chance,
    neighbour_precision,
    uniformity,
)
from zslkit.evaluation.towers import (
    activation_bytes,
    build_towers,
    measure_cache,
    tower_facts,
)
from zslkit.zeroshot.ranking import similarity_blocks


def angles(*degrees):
    """Unit vectors on a circle."""
    turn = torch.tensor(degrees).deg2rad()
    return torch.stack([turn.cos(), turn.sin()], dim=1)


def sphere(n, dim=8, seed=0):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


class Perceptron(nn.Module):
    """Four numbers in, two out, one hidden layer of eight, and a buffer of three."""

    feature_dim = 2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.register_buffer("extra", torch.zeros(3))

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def config(tiny_settings):
    return RunConfig(**tiny_settings)


# neighbours


def test_neighbours_on_a_circle():
    # at 0, 10, 25, 180 and 200 degrees; lengths do not matter
    rows = angles(0.0, 10.0, 25.0, 180.0, 200.0) * torch.tensor([[1.0], [5.0], [0.1], [2.0], [3.0]])
    assert nearest_neighbours(rows, 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 0]]


def test_neighbours_agree_with_a_full_sort_over_several_blocks(monkeypatch):
    rows = sphere(50)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    expected = cosines.argsort(dim=1, descending=True)[:, :7]
    blocks = similarity_blocks
    monkeypatch.setattr(
        "zslkit.evaluation.geometry.similarity_blocks", lambda a, b: blocks(a, b, max_scores=150)
    )
    assert torch.equal(nearest_neighbours(rows, 7), expected)


def test_among_equal_neighbours_the_lowest_row_leads():
    rows = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert nearest_neighbours(rows, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("k", [0, 3])
def test_as_many_neighbours_as_there_are_others(k):
    with pytest.raises(ValueError, match=f"k={k} must be between 1 and the 2 other rows"):
        nearest_neighbours(sphere(3), k)


def test_precision_counts_neighbours_of_the_same_label():
    rows = angles(0.0, 10.0, 25.0, 180.0, 200.0)
    labels = [0, 0, 1, 1, 2]
    assert neighbour_precision(rows, labels, 1).tolist() == [1, 1, 0, 0, 0]
    assert neighbour_precision(rows, labels, 2).tolist() == [0.5, 0.5, 0, 0.5, 0]


def test_precision_wants_one_label_per_row():
    with pytest.raises(ValueError, match=r"got 3 rows and labels of shape \(2,\)"):
        neighbour_precision(sphere(3), [0, 1], 1)


def test_chance_is_what_random_neighbours_score():
    assert neighbour_chance([0, 0, 1, 1]) == pytest.approx(1 / 3)
    assert neighbour_chance([0, 0, 0, 1]) == pytest.approx(6 / 12)
    labels = np.repeat(np.arange(4), [5, 10, 20, 40])
    scores = [neighbour_precision(sphere(75, seed=s), labels, 10).mean() for s in range(9)]
    assert np.mean(scores) == pytest.approx(neighbour_chance(labels), abs=0.02)


def test_captions_find_their_image():
    # captions 0 and 1 are of one image, 2 and 3 of another, but 3 lies beside the first two
    rows = angles(0.0, 5.0, 270.0, 12.0)
    name, score = caption_agreement(rows, [("a", "b"), ("c", "d")])
    assert name == "same_image_recall@1"
    assert score["value"] == 0.5  # 0 and 1 each other; 2 and 3 the first image's
    assert score["chance"] == pytest.approx(1 / 3)
    assert score["n"] == 4


def test_single_captions_share_words_with_their_neighbour():
    rows = angles(0.0, 5.0, 90.0)
    captions = [("A red dog",), ("a dog!",), ("boats",)]
    name, score = caption_agreement(rows, captions)
    assert name == "shared_words"
    assert score["value"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    # three in a cycle: every pair once, whatever the draw
    assert score["chance"] == pytest.approx((2 / 3) / 3)


# the sphere


def test_alignment_and_uniformity_by_hand():
    images, texts = angles(0.0, 90.0), angles(90.0, 90.0)
    assert alignment(images, texts) == pytest.approx((2 + 0) / 2)
    assert alignment(images, texts, alpha=1) == pytest.approx(math.sqrt(2) / 2)
    rows = angles(0.0, 90.0, 180.0)  # squared distances 2, 4 and 2
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity(rows) == pytest.approx(expected, rel=1e-5)
    assert uniformity(angles(30.0, 30.0)) == pytest.approx(0, abs=1e-6)


def test_uniformity_is_that_of_the_paper():
    rows = sphere(40)
    published = torch.pdist(rows, p=2).pow(2).mul(-3).exp().mean().log()  # its code, appendix A
    assert uniformity(rows, t=3) == pytest.approx(published.item(), rel=1e-5)


def test_one_embedding_is_not_spread():
    with pytest.raises(ValueError, match="two embeddings or more, got 1"):
        uniformity(sphere(1))


def test_the_gap_is_the_distance_of_centroids():
    images, texts = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[-1.0, 0], [-1, 0], [0, 1]])
    # centroids (1/2, 1/2) and (-2/3, 1/3)
    assert modality_gap(images, texts) == pytest.approx(math.hypot(7 / 6, 1 / 6))
    assert modality_gap(images, images) == 0


def test_a_sphere_is_described_as_written_out():
    images, texts = sphere(5), sphere(7, seed=1)
    pairs = [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 6)]
    cosines = images @ texts.T
    own = torch.zeros_like(cosines, dtype=bool)
    for image, text in pairs:
        own[image, text] = True
    found = describe(images, texts, pairs)
    assert found["pair_cosine"]["value"] == pytest.approx(cosines[own].mean().item())
    assert found["pair_cosine"]["low"] < found["pair_cosine"]["high"]
    assert found["other_cosine"] == pytest.approx(cosines[~own].mean().item(), rel=1e-4)
    assert found["alignment"] == pytest.approx(2 - 2 * found["pair_cosine"]["value"])
    assert found["modality_gap"] == modality_gap(images, texts)
    assert found["image_uniformity"] == uniformity(images)
    assert found["text_uniformity"] == uniformity(texts)


def test_a_sphere_without_others_is_refused():
    with pytest.raises(ValueError, match="every image is paired with every text"):
        describe(sphere(2), sphere(1), [(0, 0), (1, 0)])


def test_a_map_keeps_clusters_apart_and_repeats_itself():
    centres = torch.eye(8)[:3].repeat_interleave(20, dim=0)
    rows = F.normalize(centres + 0.1 * sphere(60), dim=1)
    first = layout(rows, seed=3)
    assert first.shape == (60, 2)
    assert np.isfinite(first).all()
    assert np.array_equal(first, layout(rows, seed=3))
    assert not np.array_equal(first, layout(rows, seed=4))
    nearest = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(nearest, np.inf)
    assert (nearest.argmin(axis=1) // 20 == np.arange(60) // 20).all()


@pytest.mark.parametrize("n", [4, 6])
def test_a_map_of_few_embeddings(n):
    assert np.isfinite(layout(sphere(n), seed=0)).all()


def test_a_map_of_too_few_embeddings_is_refused():
    with pytest.raises(ValueError, match="at least four embeddings, got 3"):
        layout(sphere(3), seed=0)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_thumbnails_are_small_jpegs_of_the_same_shape(mode):
    image = Image.new(mode, (200, 100), 200)
    head, data = thumbnail(image, side=50).split(",")
    small = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64"
    assert (small.format, small.size) == ("JPEG", (50, 25))
    assert image.size == (200, 100)


# towers


def test_activations_of_a_perceptron_are_counted_by_hand():
    items = torch.randn(5, 4)
    # kept: the input and the hidden layer, which both the ReLU and the second matrix look at
    assert activation_bytes(Perceptron(), items) == 5 * (4 + 8) * 4
    assert activation_bytes(Perceptron().requires_grad_(False), items) == 5 * 12 * 4


def test_facts_of_a_perceptron():
    facts = tower_facts(Perceptron(), torch.randn(5, 4), repeats=1)
    assert facts.pop("items_per_second") > 0
    assert facts == {
        "parameters": 4 * 8 + 8 + 8 * 2 + 2,
        "feature_dim": 2,
        "weights_mb": pytest.approx((58 + 3) * 4 / 1e6),
        "activation_mb_per_item": pytest.approx(48 / 1e6),
    }


def test_measuring_leaves_the_tower_and_the_random_state_as_they_were(config):
    model = build_dual_encoder(config.model_copy(update={"image_encoder": "timm:test_byobnet"}))
    tower, random = model.image_tower, torch.get_rng_state()
    before = fingerprint(tower)
    tower_facts(tower, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), repeats=1)
    assert fingerprint(tower) == before
    assert tower.training
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_activations_grow_with_the_items(config):
    tower = build_dual_encoder(config).image_tower
    sizes = [
        activation_bytes(tower, torch.zeros(n, 3, 32, 32, dtype=torch.uint8)) for n in (2, 4, 8)
    ]
    # BatchNorm also keeps statistics, whatever the batch
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_peak_on_a_gpu_is_at_least_weights_and_activations():
    facts = tower_facts(Perceptron().cuda(), torch.randn(4096, 4), repeats=1)
    assert facts["peak_mb"] >= facts["weights_mb"] + 4096 * facts["activation_mb_per_item"]


def test_towers_are_those_that_training_starts_with_and_others_beside(config):
    towers = build_towers(config, "image", ["timm:test_vit", config.image_encoder], "none")
    assert list(towers) == [config.image_encoder, "timm:test_vit"]
    own = build_dual_encoder(config).image_tower
    assert fingerprint(towers[config.image_encoder]) == fingerprint(own)
    texts = build_towers(config, "text", [], "none")
    assert list(texts) == ["small"]


def test_an_unknown_tower_is_named(config):
    with pytest.raises(ValueError, match="no such timm encoder; did you mean test_resnet"):
        build_towers(config, "image", ["timm:test_resnt"], "none")


@pytest.mark.parametrize("side", ["image", "text"])
def test_the_cache_is_measured_and_left_for_later_runs(config, tmp_path, monkeypatch, side):
    frozen = {"cache_dir": str(tmp_path / "cache"), "image_tower": "frozen", "text_tower": "frozen"}
    config = config.model_copy(update=frozen)
    pairs = open_pairs(config.manifest, "test")
    items = pairs if side == "image" else [text for group in pairs.captions for text in group]
    model = build_dual_encoder(config)
    tower = getattr(model, f"{side}_tower")
    found, facts = measure_cache(tower, items, config)
    files = sorted(path for path in (tmp_path / "cache").iterdir())
    assert [path.suffix for path in files] == [".json", ".npy"]
    assert facts["megabytes"] * 1e6 == sum(path.stat().st_size for path in files)
    assert facts.keys() == {"cold_seconds", "warm_seconds", "megabytes"}
    monkeypatch.setattr(type(tower), "forward", None)  # a second computation would fail
    assert torch.equal(tower_features(model, items, config, "x").features, found.features)


def test_without_a_cache_folder_nothing_is_left(config, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found, facts = measure_cache(build_dual_encoder(config).text_tower, ["a", "b"], config)
    assert found.features.shape == (2, 128)
    assert facts["megabytes"] > 0
    assert list(tmp_path.iterdir()) == []


# settings


def test_labelled_images_are_those_of_the_evaluation_or_a_draw_of_them(config):
    whole = rank_labelled_images(build_dual_encoder(config), config)
    pairs = labelled_images(config, 1000)
    assert pairs.image_fingerprint == whole.pairs.image_fingerprint
    few = labelled_images(config, 5)
    again = labelled_images(config.model_copy(update={"seed": 9}), 5)
    assert len(few) == len(again) == 5
    assert few.keys.tolist() != again.keys.tolist()


@pytest.fixture
def unlabelled(tmp_path):
    """Write a table of one captioned photo; return its manifest."""
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    (tmp_path / "pairs.csv").write_text("image,caption\n0.png,a photo")
    manifest = {
        **{"name": "mine", "kind": "table", "title": "t", "licence": "x", "how_to_obtain": "x"},
        **{"caption_field": "caption", "splits": {"test": {"table": "pairs.csv"}}},
    }
    (tmp_path / "mine.json").write_text(json.dumps(manifest))
    return str(tmp_path / "mine.json")


def test_labelled_images_are_asked_for(config, unlabelled):
    none = config.model_copy(update={"zeroshot_manifest": None})
    with pytest.raises(ValueError, match="zeroshot_manifest=None: give labelled images"):
        labelled_images(none, 10)
    captioned = config.model_copy(update={"zeroshot_manifest": unlabelled})
    with pytest.raises(ValueError, match="mine.json': its images have no classes"):
        labelled_images(captioned, 10)
