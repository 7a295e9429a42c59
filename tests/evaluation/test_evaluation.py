import json

import numpy as np
import pytest
import torch
from PIL import Image

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.pairs import open_pairs
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.evaluator import (
    evaluate,
    example_targets,
    predictions_of,
    rank_labelled_images,
    right_and_wrong,
)
from zslkit.evaluation.intervals import estimate
from zslkit.evaluation.retrieval import Watch, embed_images, embed_texts, evaluate_retrieval
from zslkit.trainer import train
from zslkit.zeroshot.classifier import ZeroShotClassifier


@pytest.fixture(scope="module")
def config(tiny_settings):
    return RunConfig(**tiny_settings)


@pytest.fixture(scope="module")
def model(config):
    return build_dual_encoder(config).eval()


@pytest.fixture
def photos(tmp_path):
    """Write a table of twelve noisy photos, two captions each, of which one is broken."""
    rng = np.random.default_rng(0)
    rows = ["image,caption"]
    for number in range(12):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows += [f"{number}.png,photo {number}", f"{number}.png,picture number {number}"]
    (tmp_path / "4.png").write_bytes(b"not an image")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    manifest = {
        **{"name": "mine", "kind": "table", "title": "t", "licence": "x", "how_to_obtain": "x"},
        **{"caption_field": "caption", "splits": {"test": {"table": "pairs.csv"}}},
    }
    (tmp_path / "mine.json").write_text(json.dumps(manifest))
    return str(tmp_path / "mine.json")


def encoded_one_by_one(model, pairs, rows):
    transform = model.image_transform(train=False)
    with torch.no_grad():
        images = [model.encode_image(transform(pairs[i].image)[None]) for i in rows]
    return torch.cat(images)


def text_of(model, text):
    with torch.no_grad():
        return model.encode_text([text])[0]


def test_images_are_embedded_as_encode_image_does(model, config):
    pairs = open_pairs(config.manifest, "test")
    images, rows = embed_images(model, pairs, config)
    assert rows.tolist() == list(range(32))
    expected = encoded_one_by_one(model, pairs, rows)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_texts_are_embedded_as_encode_text_does_in_their_order(model, config):
    texts = ["a red square on a green ground", "a star", "two blue circles"]
    expected = torch.stack([text_of(model, text) for text in texts])
    torch.testing.assert_close(embed_texts(model, texts, config), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_off_whatever_mode_the_model_was_in(config):
    dropping = config.model_copy(update={"image_dropout": 0.5, "text_dropout": 0.5})
    model = build_dual_encoder(dropping).train()
    pairs = open_pairs(config.manifest, "test", max_pairs=4)
    first, again = (embed_images(model.train(), pairs, dropping)[0] for _ in range(2))
    assert torch.equal(first, again)
    first, again = (embed_texts(model.train(), ["a star"], dropping) for _ in range(2))
    assert torch.equal(first, again)


def test_only_frozen_towers_are_cached(model, config, tmp_path):
    """A tower that trains is another one after each step: its entries would only pile up."""
    caching = config.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    evaluate(model, caching)
    assert not (tmp_path / "cache").exists()
    evaluate(model, caching.model_copy(update={"image_tower": "frozen", "text_tower": "frozen"}))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_retrieval_equals_brute_force(model, config):
    pairs = open_pairs(config.manifest, "test")
    images = encoded_one_by_one(model, pairs, range(32))
    texts = [(i, text_of(model, text)) for i in range(32) for text in pairs.captions[i]]
    ranks = {"text_to_image": [], "image_to_text": []}
    for owner, text in texts:
        order = (images @ text).argsort(descending=True).tolist()
        ranks["text_to_image"].append(order.index(owner))
    for i, image in enumerate(images):
        order = torch.stack([image @ text for _, text in texts]).argsort(descending=True)
        ranks["image_to_text"].append([texts[j][0] for j in order].index(i))
    retrieval = evaluate(model, config)["retrieval"]
    assert retrieval.keys() == {*ranks, "rsum"}
    for way, queries in (("text_to_image", len(texts)), ("image_to_text", 32)):
        assert retrieval[way].keys() == {"recall@1", "recall@5", "recall@10"}
        for k in (1, 5, 10):
            found = retrieval[way][f"recall@{k}"]
            assert found["value"] == pytest.approx(np.mean([rank < k for rank in ranks[way]]))
            assert found["low"] <= found["value"] <= found["high"]
            assert found["n"] == queries
    assert 0 < retrieval["text_to_image"]["recall@10"]["value"] < 1
    six = [found["value"] for way in ranks for found in retrieval[way].values()]
    # captions of one photo are drawn together; an image is a query of its own
    owner = [i for i, _ in texts]
    hits = np.array(ranks["text_to_image"]) < 10
    assert retrieval["text_to_image"]["recall@10"] == estimate(hits, groups=owner)
    assert estimate(hits, groups=owner)["low"] != estimate(hits)["low"]
    hits = np.array(ranks["image_to_text"]) < 10
    assert retrieval["image_to_text"]["recall@10"] == estimate(hits)
    total = retrieval["rsum"]
    assert total["value"] == pytest.approx(100 * sum(six))
    assert total["low"] < total["value"] < total["high"]
    assert total["n"] == 32


def test_zeroshot_equals_brute_force_and_says_its_chance(model, config):
    config = config.model_copy(update={"prompt_templates": ("a {}", "this is a {} .")})
    pairs = open_pairs(config.manifest, "test")
    bank = []
    for name in pairs.class_names:
        prompts = [text_of(model, text) for text in (f"a {name}", f"this is a {name} .")]
        bank.append(torch.nn.functional.normalize(sum(prompts), dim=0))
    scores = encoded_one_by_one(model, pairs, range(32)) @ torch.stack(bank).T
    ranked = scores.argsort(dim=1, descending=True)
    zeroshot = evaluate(model, config)["zeroshot"]
    assert zeroshot.keys() == {"hit@1", "hit@5"}
    for k in (1, 5):
        hits = [pairs[i].label in ranked[i, :k].tolist() for i in range(32)]
        found = zeroshot[f"hit@{k}"]
        assert found["value"] == pytest.approx(np.mean(hits))
        assert found["low"] <= found["value"] <= found["high"]
        assert found["n"] == 32
        assert found["chance"] == pytest.approx(k / len(pairs.class_names))
    assert 0 < zeroshot["hit@5"]["value"] < 1


def test_a_ranking_holds_images_labels_and_as_many_classes_as_asked(model, config):
    result = rank_labelled_images(model, config, config.manifest, "train", k=3)
    assert result.pairs.split == "train"
    assert result.indices.shape == result.scores.shape == (32, 3)
    assert (result.scores.diff(dim=1) <= 0).all()
    similarity = result.embeddings[5] @ result.bank.embeddings[result.indices[5, 0]]
    assert similarity == pytest.approx(result.scores[5, 0].item(), abs=1e-5)
    everything = rank_labelled_images(model, config, k=10**6)
    assert everything.indices.shape[1] == len(everything.bank.class_names)


def test_without_a_zeroshot_manifest_there_is_no_zeroshot_figure(model, config, monkeypatch):
    def refuse(*args):
        raise AssertionError("nothing was to be ranked")

    monkeypatch.setattr("zslkit.evaluation.evaluator.rank_labelled_images", refuse)
    metrics = evaluate(model, config.model_copy(update={"zeroshot_manifest": None}))
    assert metrics.keys() == {"retrieval"}


def test_a_set_without_classes_is_refused(model, config, photos):
    unlabelled = config.model_copy(update={"zeroshot_manifest": photos})
    with pytest.raises(ValueError, match="zeroshot_manifest=.*have no classes; give a labelled"):
        evaluate(model, unlabelled)


def test_a_set_with_several_classes_for_an_image_is_sent_elsewhere(model, config, monkeypatch):
    def without_labels(*given, **options):
        pairs = open_pairs(*given, **options)
        pairs.labels, pairs.positives = None, [(0, 1)] * len(pairs)
        return pairs

    monkeypatch.setattr("zslkit.data.named.open_pairs", without_labels)
    with pytest.raises(
        ValueError, match="several classes each; evaluate them with .*--label-space"
    ):
        rank_labelled_images(model, config)


@pytest.mark.parametrize("image_tower", ["train", "frozen"])
def test_an_unreadable_image_is_left_out_with_its_captions(
    model, config, photos, tmp_path, image_tower
):
    changes = {"manifest": photos, "zeroshot_manifest": None, "image_tower": image_tower}
    changes |= {"max_unreadable": 0.1, "cache_dir": str(tmp_path / "cache")}
    config = config.model_copy(update=changes)
    pairs = open_pairs(photos, "test")
    for _ in range(2):  # computed, then perhaps from the cache
        images, rows = embed_images(model, pairs, config)
        assert rows.tolist() == [i for i in range(12) if i != 4]
        expected = encoded_one_by_one(model, pairs, rows)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
        retrieval = evaluate(model, config)["retrieval"]
        assert retrieval["image_to_text"]["recall@1"]["n"] == 11
        assert retrieval["text_to_image"]["recall@1"]["n"] == 22


def test_recall_at_k_needs_more_candidates_than_k(model, config, photos):
    """Otherwise it is 1 by construction and tells nothing."""
    changes = {"manifest": photos, "zeroshot_manifest": None, "max_unreadable": 0.5}
    few = config.model_copy(update=changes)
    retrieval = evaluate(model, few)["retrieval"]
    assert retrieval["text_to_image"].keys() == {"recall@1", "recall@5", "recall@10"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "zslkit.evaluation.retrieval.held_out_pairs",
            lambda config: open_pairs(config.manifest, config.test_split, max_pairs=4),
        )
        retrieval = evaluate(model, few)["retrieval"]
    assert "recall@5" not in retrieval["text_to_image"]
    assert "rsum" not in retrieval  # it would be a sum of other things


def test_example_targets_are_those_of_the_objective(tiny_settings, tmp_path):
    config = RunConfig(**tiny_settings, max_steps=1, output_dir=str(tmp_path))
    run = train(config)
    pairs = open_pairs(config.manifest, "train")
    rows, targets = example_targets(run, pairs, range(5))
    assert rows == [0, 1, 2, 3, 4]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(5))
    teacher, transform = run.teacher.model, run.model.image_transform(train=False)
    images = teacher.encode_image(torch.stack([transform(pairs[i].pixels) for i in range(5)]))
    texts = teacher.encode_text([pairs[i].captions[0] for i in range(5)])
    expected = (images @ texts.T / config.teacher_temperature).softmax(dim=1)
    torch.testing.assert_close(targets, expected)
    softer = config.model_copy(update={"teacher_temperature": 1.0})
    _, targets = example_targets(run, pairs, range(5), softer)
    torch.testing.assert_close(targets, (images @ texts.T).softmax(dim=1))
    run.config = config.model_copy(update={"soft_targets": "none"})
    assert example_targets(run, pairs, range(5)) == (rows, None)


def test_an_unreadable_example_does_not_stop_the_others(model, photos, config, tmp_path):
    unlabelled = {"manifest": photos, "zeroshot_manifest": None, "output_dir": str(tmp_path)}
    config = config.model_copy(update={**unlabelled, "soft_targets": "label_smoothing"})
    run = Run(model, config, [], tmp_path)
    rows, targets = example_targets(run, open_pairs(photos, "test"), range(6))
    assert rows == [0, 1, 2, 3, 5]
    assert targets.shape == (5, 5)


def test_too_many_unreadable_images_stop_an_evaluation(model, photos, config):
    changes = {"manifest": photos, "zeroshot_manifest": None, "max_unreadable": 0.05}
    with pytest.raises(ValueError, match=r"1 of 12 images are unreadable .* limit of 5.0%"):
        evaluate(model, config.model_copy(update=changes))


def test_watching_a_run_adds_figures_and_changes_no_weight(tiny_settings, tmp_path):
    settings = {**tiny_settings, "epochs": 2, "image_dropout": 0.2}
    plain = train(RunConfig(**settings, output_dir=str(tmp_path / "plain")))
    config = RunConfig(**settings, output_dir=str(tmp_path / "watched"))
    watched = train(config, [Watch(config, "test")])
    curve = {row["step"]: row["held-out recall@10"] for row in watched.history
             if "held-out recall@10" in row}  # fmt: skip
    assert list(curve) == [4, 8]
    final = evaluate_retrieval(watched.model, config)["text_to_image"]["recall@10"]["value"]
    assert curve[8] == final
    same = plain.model.state_dict()
    assert all(torch.equal(same[name], t) for name, t in watched.model.state_dict().items())


def test_examples_are_named_as_the_classifier_names_them(model, config):
    result = rank_labelled_images(model, config)
    rows = right_and_wrong(result, 2)
    right = [bool(result.indices[row, 0] == result.labels[row]) for row in rows]
    assert right == sorted(right, reverse=True)
    assert len(rows) <= 4
    photos, predictions, truths = predictions_of(result, rows, model.logit_scale, k=3)
    classifier = ZeroShotClassifier(model, result.bank.class_names, config.prompt_templates)
    for ours, theirs in zip(predictions, classifier.predict(photos, k=3), strict=True):
        assert [p.class_name for p in ours] == [p.class_name for p in theirs]
        shares = [p.probability for p in theirs]
        assert [p.probability for p in ours] == pytest.approx(shares, rel=1e-4)
    assert truths == [result.bank.class_names[result.labels[row]] for row in rows]
