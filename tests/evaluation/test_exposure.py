"""What towers and captions had seen of the classes and captions that a figure asks about."""

from types import SimpleNamespace

import numpy as np
import pytest

from zslkit.config import RunConfig
from zslkit.evaluation.exposure import class_exposure, hits_by_exposure, read_before

NAMES = ["Gold-fish", "sea horse", "red star"]
CAPTIONS = [["two red stars above a house"], ["a goldfish"]]
PRETRAINED = {"image_encoder": "timm:tf_efficientnet_lite0", "image_weights": "pretrained"}


def test_a_class_is_known_by_label_by_name_or_not_at_all():
    found = class_exposure(RunConfig(**PRETRAINED), ["goldfish", *NAMES[1:]], CAPTIONS)
    kinds = ["labelled for the tower", "neither", "named in the captions"]
    assert list(found.values()) == kinds


@pytest.mark.parametrize("changes", [{"image_weights": "none"}, {"image_encoder": "small_cnn"}])
def test_a_tower_from_nothing_has_met_no_label(changes):
    config = RunConfig(**{**PRETRAINED, "image_weights": "none", **changes})
    found = class_exposure(config, ["goldfish", "sea horse"], CAPTIONS)
    assert list(found.values()) == ["named in the captions", "neither"]


def test_images_are_told_apart_by_their_class():
    result = SimpleNamespace(
        bank=SimpleNamespace(class_names=NAMES),
        labels=np.array([0, 0, 1, 2]),
        indices=np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0], [0, 1, 2]]),
    )
    exposure = dict(zip(NAMES, ["labelled for the tower", "neither", "neither"], strict=True))
    found = hits_by_exposure(result, exposure, ks=(1, 2, 5))  # 5 of 3 classes would say nothing
    assert found.keys() == {"labelled for the tower", "neither"}
    assert found["labelled for the tower"]["hit@1"]["value"] == 0.5
    assert found["neither"]["hit@1"] | {"low": 0, "high": 0} == {
        "value": 0.5, "low": 0, "high": 0, "n": 2, "chance": 1 / 3,
    }  # fmt: skip
    assert found["labelled for the tower"]["hit@2"]["value"] == 1
    assert found["neither"].keys() == {"hit@1", "hit@2"}


def test_an_encoder_that_has_read_the_captions_is_named():
    flickr = SimpleNamespace(name="flickr8k", title="Flickr8k")
    minilm = {"text_encoder": "hf:sentence-transformers/all-MiniLM-L6-v2"}
    words = read_before(RunConfig(**minilm, text_weights="pretrained"), flickr)
    assert "trained with Flickr30k captions" in words
    assert "has probably read the test captions" in words
    assert read_before(RunConfig(**minilm, text_weights="none"), flickr) == ""
    assert read_before(RunConfig(**minilm), SimpleNamespace(name="toy", title="Drawings")) == ""
    assert read_before(RunConfig(), flickr) == ""
