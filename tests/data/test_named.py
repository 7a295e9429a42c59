"""What a configuration names is opened in one way."""

import numpy as np
import pytest

import zslkit as zk
from zslkit.config import RunConfig
from zslkit.data.named import held_out_pairs, labelled_images, training_pairs
from zslkit.encoders.dual import build_dual_encoder
from zslkit.training.batches import TrainingData


@pytest.fixture
def config(tiny_settings):
    return RunConfig(**tiny_settings, max_pairs=20, caption_noise=0.5, seed=3)


def test_the_training_pairs_are_those_that_a_run_trains_on(config):
    shown = training_pairs(config)
    trained = TrainingData(build_dual_encoder(config), config, "cpu").pairs
    assert shown.fingerprint == trained.fingerprint
    assert (len(shown), shown.swapped.sum()) == (20, 10)
    assert training_pairs(config.model_copy(update={"seed": 4})).keys.tolist() != list(shown.keys)


def test_held_out_pairs_are_clean_and_whole(config):
    pairs = held_out_pairs(config)
    assert (pairs.split, len(pairs), pairs.swapped.any()) == ("test", 32, np.False_)
    assert held_out_pairs(config, "train").split == "train"
    drawn = [held_out_pairs(config, max_images=5).keys.tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5


def test_labelled_images_have_a_class_each(config):
    pairs = labelled_images(config)
    assert pairs.split == config.zeroshot_split
    assert len(pairs.labels) == 32
    assert len(labelled_images(config, max_images=7)) == 7


def test_labelled_images_with_several_classes_are_taken_where_asked(config, monkeypatch):
    def several(*given, **options):
        pairs = zk.open_pairs(*given, **options)
        pairs.labels, pairs.positives = None, [(0, 1)] * len(pairs)
        return pairs

    monkeypatch.setattr("zslkit.data.named.open_pairs", several)
    assert labelled_images(config, several=True).positives[0] == (0, 1)
    with pytest.raises(ValueError, match="several classes each; evaluate them with"):
        labelled_images(config)


def test_the_library_offers_them(config):
    assert zk.training_pairs is training_pairs
    assert zk.labelled_images is labelled_images
