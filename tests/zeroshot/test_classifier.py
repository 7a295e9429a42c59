"""The classifier as people use it, and files by the thousand."""

import csv
import json
import math
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import zslkit as zk
from zslkit.__main__ import app
from zslkit.zeroshot.classifier import best_scale
from zslkit.zeroshot.models import commands
from zslkit.zeroshot.models.files import image_sources, predict_files

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Eye(nn.Module):
    """Texts that name a colour and images of that colour meet in three dimensions."""

    logit_scale = 10.0

    def __init__(self):
        super().__init__()
        self.read = []

    def encode_text(self, texts):
        self.read += texts
        rows = [[float(name in text) + 0.05 for name in COLOURS] for text in texts]
        return F.normalize(torch.tensor(rows), dim=-1)

    def encode_image(self, pixels):
        return F.normalize(pixels.float().mean(dim=(2, 3)) + 1, dim=-1)

    def image_transform(self, train):
        def transform(image):
            if isinstance(image, Image.Image):
                image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            return F.interpolate(image[None].float(), (4, 4))[0].byte()

        return transform


def square(colour, side=6):
    return Image.new("RGB", (side, side), colour)


@pytest.fixture
def classifier():
    return zk.ZeroShotClassifier(Eye(), list(COLOURS))


def test_one_image_gives_one_answer_in_every_form(classifier, tmp_path):
    path = tmp_path / "g.png"
    square(COLOURS["green"]).save(path)
    image = square(COLOURS["green"])
    array = np.array(image)
    forms = [path, str(path), image, array, torch.from_numpy(array).permute(2, 0, 1)]
    answers = [classifier.predict(form, k=2) for form in forms]

    def same(found, expected):
        """Compare names, and figures to float tolerance: a batch may sum in another order."""
        assert [p.class_name for p in found] == [p.class_name for p in expected]
        figures = [(p.similarity, p.probability) for p in found]
        assert np.allclose(figures, [(p.similarity, p.probability) for p in expected], atol=1e-6)

    for answer in answers:
        same(answer, answers[0])
    assert answers[0][0].class_name == "green"
    for found, answer in zip(classifier.predict(forms, k=2), answers, strict=True):
        same(found, answer)
    for found in classifier.predict(np.stack([array, array]), k=2):
        same(found, answers[0])
    grey = np.full((5, 5), 200, np.uint8)
    assert len(classifier.predict(grey, k=1)) == 1
    with pytest.raises(ValueError, match="array of float64: give pixels as uint8"):
        classifier.predict(array / 255)


def test_templates_are_those_of_the_training_or_simple(tiny_settings):
    eye = Eye()
    zk.ZeroShotClassifier(eye, ["red"])
    assert eye.read == ["a photo of a red."]
    model = zk.build_dual_encoder(zk.RunConfig(**{**tiny_settings, "prompt_templates": "none"}))
    assert zk.ZeroShotClassifier(model, ["red"]).templates == "none"


def test_probabilities_are_a_softmax_over_the_classes(classifier):
    images = [square(colour) for colour in COLOURS.values()]
    found = classifier.predict_proba(images)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    best = classifier.classes_[found.argmax(axis=1)]
    assert best.tolist() == list(COLOURS)
    assert classifier.predict_proba(images[0]) == pytest.approx(found[0])
    for row in classifier.predict(images[1], k=3):
        column = classifier.classes_.tolist().index(row.class_name)
        assert row.probability == pytest.approx(found[1, column], rel=1e-5)
    assert classifier.predict_proba([]).shape == (0, 3)


def test_classes_come_and_go_without_reading_the_others_again(classifier):
    before = classifier.bank.embeddings.clone()
    classifier.model.model.read.clear()
    assert classifier.add_classes(["blue green"]) is classifier
    assert classifier.model.model.read == ["a photo of a blue green."]
    assert classifier.classes_.tolist() == ["red", "green", "blue", "blue green"]
    classifier.remove_classes(["green", "blue green"])
    assert len(classifier.model.model.read) == 1
    assert torch.equal(classifier.bank.embeddings, before[[0, 2]])
    with pytest.raises(ValueError, match="red are there already"):
        classifier.add_classes(["red"])
    with pytest.raises(ValueError, match="green are not among the classes"):
        classifier.remove_classes(["green"])
    with pytest.raises(ValueError, match="at least one class must stay"):
        classifier.remove_classes(["red", "blue"])


def test_below_the_threshold_it_abstains():
    grey = square((90, 90, 90))
    sure, unsure = (zk.ZeroShotClassifier(Eye(), list(COLOURS), threshold=t) for t in (0.5, 0.0))
    assert sure.predict([grey, square((255, 0, 0))], k=1)[0] == []
    assert sure.predict(square((255, 0, 0)), k=1)[0].class_name == "red"
    assert len(unsure.predict(grey, k=1)) == 1
    with pytest.raises(ValueError, match="threshold=1.5 must be a probability"):
        zk.ZeroShotClassifier(Eye(), ["red"], threshold=1.5)


def test_calibration_makes_probability_the_share_that_is_right(classifier):
    """Two classes, scores ±d: the best scale s has sigmoid(2 s d) = share of right answers."""
    images = [square(COLOURS["red"])] * 10
    classifier.remove_classes(["blue"])
    order = classifier.predict(images[0], k=2)
    classifier.calibrate(images, ["red"] * 8 + ["green"] * 2)
    found = classifier.predict(images[0], k=2)
    assert [row.class_name for row in found] == [row.class_name for row in order]
    assert found[0].probability == pytest.approx(0.8, abs=1e-3)
    gap = found[0].similarity - found[1].similarity
    assert classifier.logit_scale == pytest.approx(math.log(4) / gap, rel=1e-3)
    with pytest.raises(ValueError, match="labels: puce are not among the classes"):
        classifier.calibrate(images, ["puce"] * 10)
    with pytest.raises(ValueError, match="10 images and 9 labels"):
        classifier.calibrate(images, ["red"] * 9)
    with pytest.raises(ValueError, match="no scale between"):
        best_scale(torch.tensor([[1.0, 0.0]] * 5), torch.zeros(5, dtype=torch.long))


def test_without_classes_those_of_the_saved_model_are_taken():
    with pytest.raises(ValueError, match="class_names=None: this model was saved without classes"):
        zk.ZeroShotClassifier(Eye())


@pytest.fixture
def photos(tmp_path):
    """A folder with two images and a broken one, a CSV, and a shard."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    square(COLOURS["red"]).save(folder / "a.png")
    square(COLOURS["blue"]).save(folder / "deep" / "b.png")
    (folder / "c.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    (tmp_path / "list.csv").write_text("image,other\nphotos/a.png,1\nphotos/gone.png,2\n")
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(folder / "deep" / "b.png", "x.png")
        shard.add(folder / "notes.txt", "x.txt")
    return folder


def test_images_are_found_in_folders_patterns_lists_and_shards(photos, tmp_path):
    def names(*inputs):
        return [name for name, _ in image_sources(inputs)]

    assert names(photos) == [str(photos / n) for n in ("a.png", "c.jpg", "deep/b.png")]
    assert names(str(photos / "**" / "*.png")) == [str(photos / n) for n in ("a.png", "deep/b.png")]
    assert names(tmp_path / "list.csv") == ["photos/a.png", "photos/gone.png"]
    assert names(tmp_path / "s.tar") == [f"{tmp_path}/s.tar/x.png"]
    with pytest.raises(FileNotFoundError, match=r"images='nothing\*': no such file or folder"):
        names("nothing*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="a folder without images"):
        names(tmp_path / "empty")
    (tmp_path / "bad.csv").write_text("name\nx\n")
    with pytest.raises(ValueError, match="no column image, path, .* it has name"):
        names(tmp_path / "bad.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_a_table_of_all_images_and_a_list_of_the_broken(classifier, photos, tmp_path, kind):
    output = tmp_path / "out" / f"named.{kind}"
    inputs = [photos, tmp_path / "list.csv", tmp_path / "s.tar"]
    named = predict_files(classifier, inputs, output, k=2, batch_size=2)
    assert (named.n_images, named.n_unnamed, len(named.broken)) == (4, 0, 2)
    if kind == "csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    elif kind == "parquet":
        from pyarrow import parquet

        rows = parquet.read_table(output).to_pylist()
    else:
        text = output.read_text()
        rows = json.loads(text) if kind == "json" else [*map(json.loads, text.splitlines())]
    assert len(rows) == 8
    assert {row["class_name"] for row in rows if int(row["rank"]) == 1} == {"red", "blue"}
    assert list(rows[0]) == ["image", "rank", "class_name", "similarity", "probability"]
    listed = (tmp_path / "out" / f"named.{kind}.broken.txt").read_text()
    assert "c.jpg: not a readable image" in listed
    assert "gone.png" in listed
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(
        [output.name, f"{output.name}.broken.txt"]
    )


def test_images_below_the_threshold_have_a_row_without_a_class(tmp_path):
    square((90, 90, 90)).save(tmp_path / "grey.png")
    sure = zk.ZeroShotClassifier(Eye(), list(COLOURS), threshold=0.5)
    named = predict_files(sure, [tmp_path], tmp_path / "o.csv")
    assert named.n_unnamed == 1
    assert (tmp_path / "o.csv").read_text().splitlines()[1].endswith("grey.png,1,,,")
    with pytest.raises(ValueError, match="must end with .csv, .json"):
        predict_files(sure, [tmp_path], tmp_path / "o.txt")


def test_a_failed_table_leaves_the_old_one(classifier, photos, tmp_path, monkeypatch):
    output = tmp_path / "o.csv"
    output.write_text("old")
    monkeypatch.setattr(classifier, "predict", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_files(classifier, [photos], output)
    assert output.read_text() == "old"
    assert not list(tmp_path.glob(".o.csv*"))


def run_line(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "300"})
    assert result.exit_code == code, result.output
    return result


def test_predict_takes_a_public_model_and_every_source_of_classes(tiny_clips, photos, tmp_path):
    model = f"hf:{tiny_clips['clip']}"
    (tmp_path / "classes.txt").write_text("red\nblue\n\nred\n")
    line = ("predict", model, photos, "--class-file", tmp_path / "classes.txt", "--templates", "{}")
    output = tmp_path / "o.csv"
    said = run_line(*line, "--output", output, "--k", 1, "--threshold", "0.999")
    assert "2 images, 2 below the threshold, 1 unreadable" in said.output
    assert "c.jpg: not a readable image" in said.output
    assert len(output.read_text().splitlines()) == 3
    printed = run_line(*line).output
    assert printed.count("%  ") == 4
    run_line("predict", model, photos / "a.png", "--label-space", "cifar10", "--k", "3")
    assert commands.class_names("a, b,,a", None, None) == ["a", "b"]
    assert commands.class_names(None, None, None) is None
    with pytest.raises(ValueError, match="--classes and --label-space: give one of them"):
        commands.class_names("a", None, "cifar10")
    with pytest.raises(ValueError, match="--classes: holds no class name"):
        commands.class_names(",", None, None)
    broken = CliRunner().invoke(app, ["predict", model, str(photos / "c.jpg"), "--classes", "a"])
    assert "no image could be read" in str(broken.exception)


def test_export_and_evaluate_and_embed_take_a_public_model(tiny_clips, tiny_settings, tmp_path):
    model, data = f"hf:{tiny_clips['clip']}", tiny_settings["manifest"]
    square(COLOURS["red"]).save(tmp_path / "p.png")
    line = ("export", model, tmp_path / "out", "--photos", tmp_path / "p.png")
    said = run_line(*line, "--classes", "dog,cat").output
    assert "1 of 1 rankings are equal" in said
    assert zk.from_pretrained(tmp_path / "out").class_bank.class_names == ("dog", "cat")
    again = run_line("predict", tmp_path / "out", tmp_path / "p.png").output
    assert "dog" in again
    line = ("evaluate", model, "--manifest", data, "--split", "test", "--pairs", data,
            "--pairs-split", "test")  # fmt: skip
    assert '"zeroshot"' in run_line(*line).output
    embedded = tmp_path / "e.safetensors"
    assert "32 embeddings of 24" in run_line("embed", model, data, "test", embedded).output
    none = CliRunner().invoke(app, ["export", model, str(tmp_path / "new"), "--photos", "gone*"])
    assert "images='gone*'" in str(none.exception)
