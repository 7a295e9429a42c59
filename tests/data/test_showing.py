"""What objects say of themselves; captions are anybody's words."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import zslkit as zk
from zslkit.data.showing import SHOWN, Shown, figure, one_line, table

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
WORDS = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")


@pytest.fixture(scope="module")
def toy():
    return zk.open_pairs("toy", "test", max_pairs=20)


@pytest.fixture
def hostile(tmp_path):
    """Three photos, the second of them damaged, with captions that would run in a page."""
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number in range(3):
            Image.new("RGB", (300, 200), (80 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
            rows.writerow([f"{number}.jpg", HOSTILE])
    (tmp_path / "1.jpg").write_bytes(b"no image")
    split = {"train": {"table": "pairs.csv"}}
    manifest = {"name": HOSTILE, "kind": "table", "caption_field": "caption", **WORDS}
    (tmp_path / "hostile.json").write_text(json.dumps(manifest | {"splits": split}))
    return zk.open_pairs(tmp_path / "hostile.json", "train")


def test_a_slice_is_the_same_set_with_fewer(toy):
    part = toy[2:8:3]
    assert isinstance(part, zk.Pairs)
    assert [pair.key for pair in part] == [toy[2].key, toy[5].key]
    assert [pair.captions for pair in part] == [toy[2].captions, toy[5].captions]
    assert torch.equal(part[1].pixels, toy[5].pixels)
    assert part.labels.tolist() == toy.labels[[2, 5]].tolist()
    assert [part.positives[i] for i in range(2)] == [toy.positives[2], toy.positives[5]]
    assert [pair.key for pair in toy[::-1]] == [*reversed([pair.key for pair in toy])]
    assert len(toy[5:5]) == 0
    assert part[-1].key == toy[5].key
    with pytest.raises(IndexError):
        part[2]


def test_a_slice_has_fingerprints_of_its_own(toy):
    whole = toy.fingerprint, toy.image_fingerprint
    part = toy[:5]
    assert part.fingerprint != whole[0]
    assert part.image_fingerprint != whole[1]
    assert (toy[:].fingerprint, toy[:].image_fingerprint) == whole
    assert part[1:3].fingerprint == toy[1:3].fingerprint


def test_a_slice_remembers_whose_captions_were_swapped():
    pairs = zk.open_pairs("toy", "train", max_pairs=20, caption_noise=0.5)
    assert pairs[4:12].swapped.tolist() == pairs.swapped[4:12].tolist()
    assert f"swapped={int(pairs.swapped[4:12].sum())}" in repr(pairs[4:12])


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["image", "caption"])
def test_a_slice_remembers_which_captions_are_wrong(kind, noise, tmp_path):
    """Images have one to three captions, so that captions and images are counted apart."""
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 0, 99)).save(tmp_path / f"{number}.png")
    rows = [f"{n}.png,words {n} {i}" for n in range(8) for i in range(n % 3 + 1)]
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", *rows]))
    noisy = {"caption_noise": noise, "caption_noise_kind": kind}
    pairs = zk.open_pairs(tmp_path / "t.csv", "all", **noisy)
    ends = np.cumsum([len(captions) for captions in pairs.captions])
    of_image = np.split(pairs.wrong, ends[:-1])
    assert len(of_image) == 8
    for part, chosen in ((pairs[2:7], range(2, 7)), (pairs[::-2], range(7, -1, -2))):
        assert part.wrong.tolist() == np.concatenate([of_image[i] for i in chosen]).tolist()
        assert [part.captions[i] for i in range(len(part))] == [pairs.captions[i] for i in chosen]


def test_pairs_say_what_they_are(toy, hostile):
    assert repr(toy) == "Pairs(manifest='toy', split='test', images=20, classes=48)"
    assert "images=3, captions=3" in repr(hostile)
    page = toy._repr_html_()
    assert page.count("<img") == SHOWN
    assert "… and 12 more" in page
    assert toy[0].captions[0] in page


def test_what_others_wrote_stays_text(hostile):
    for page in (hostile._repr_html_(), hostile[0]._repr_html_(), hostile.manifest._repr_html_()):
        assert "<script" not in page
        assert "onerror=alert(1)>" not in page.replace("onerror=alert(1)&gt;", "")
        assert "&lt;script&gt;" in page


def test_a_grid_shows_what_can_be_read(hostile):
    page = hostile._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("<i>unreadable</i>") == 1


def test_a_run_is_short_and_says_how_it_went(tiny_settings, tmp_path):
    settings = tiny_settings | {"output_dir": str(tmp_path / "run"), "epochs": 2}
    run = zk.train(zk.RunConfig(**settings))
    for shown in (run, zk.load_run(tmp_path / "run")):
        text = repr(shown)
        assert len(text) < 500
        assert text.startswith("Run(run_dir=")
        assert "steps='8 of 8'" in text
        assert f"{run.history[-1]['loss']:.4g}" in text
        assert "<td>steps</td>" in shown._repr_html_()
    classifier = zk.ZeroShotClassifier(run.model, ["a", "b", HOSTILE], "simple")
    assert repr(classifier).startswith("ZeroShotClassifier(model='DualEncoder', classes=3")
    assert "<script" not in classifier._repr_html_() + classifier.bank._repr_html_()
    assert repr(classifier.bank).startswith("ClassBank(classes=3, dimensions=16, class_names=")


def test_a_label_space_of_thousands_is_one_line():
    space = zk.load_label_space("imagenet21k")
    assert len(repr(space)) < 500
    assert "classes=21841" in repr(space)
    assert "… (21841)" in repr(space)
    assert space.checksum[:12] in space._repr_html_()


def test_a_bank_still_unpacks():
    embeddings, names = bank = zk.ClassBank(torch.eye(2), ("a", "b"))
    assert names == ("a", "b")
    assert bank == (embeddings, names)


def test_a_manifest_says_its_splits():
    assert "splits='train, dev, test, extra'" in repr(zk.load_manifest("flickr8k"))
    assert len(repr(zk.load_manifest("imagenet1k"))) < 500


def test_long_values_are_cut_and_numbers_short():
    assert one_line("A", {"x": "y" * 500}) == f"A(x='{'y' * 118}…)"
    assert "<td>a b</td>" in table("A", {"a_b": 1})
    assert ">0.3333<" in table("A", {"x": 1 / 3})
    assert len(figure(Image.fromarray(np.zeros((4000, 3000, 3), np.uint8)), "c")) < 3000


def test_an_object_without_facts_is_a_mistake_of_ours():
    with pytest.raises(NotImplementedError, match=r"Shown has no _facts\(\)"):
        repr(Shown())


def test_the_classes_are_at_the_top():
    names = ("Run", "RunConfig", "Pairs", "Pair", "Manifest", "ClassBank", "LabelSpace")
    names += ("ZeroShotClassifier", "Prediction", "DualEncoder", "Teacher", "Watch")
    names += ("ZeroShotExplorer", "EmbeddingMap", "SoftLabelMicroscope", "TrainingMonitor")
    assert [name for name in names if not isinstance(getattr(zk, name), type)] == []
