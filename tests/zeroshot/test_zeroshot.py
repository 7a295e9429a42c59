"""The class bank, exact ranking with its ties, and predictions from photos."""

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import v2

from zslkit.zeroshot.class_bank import build_class_bank, cached_class_bank
from zslkit.zeroshot.classifier import ZeroShotClassifier
from zslkit.zeroshot.prompts import TEMPLATES, class_prompts
from zslkit.zeroshot.ranking import ClassBank, class_probabilities, rank_classes, similarity_blocks

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourModel(nn.Module):
    """Texts that name a colour and images of that colour meet in three dimensions."""

    logit_scale = torch.tensor(10.0)

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def encode_text(self, texts):
        self.calls.append(list(texts))
        rows = [[float(name in text) + len(text) / 1000 for name in COLOURS] for text in texts]
        return F.normalize(self.dropout(torch.tensor(rows)), dim=-1)

    def encode_image(self, pixels):
        return F.normalize(self.dropout(pixels.float().mean(dim=(2, 3))), dim=-1)

    def image_transform(self, train):
        assert not train
        return lambda image: v2.functional.resize(
            v2.functional.to_image(image), [4, 4], v2.InterpolationMode.NEAREST
        )


def written_out(vector_lists):
    """Normalise, average, normalise, on plain floats."""

    def unit(vector):
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]

    units = [unit(vector) for vector in vector_lists]
    return unit([sum(column) / len(units) for column in zip(*units, strict=True)])


def random_bank(n_classes, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(n_classes, dim, generator=generator), dim=-1)
    return ClassBank(vectors, tuple(f"class {i}" for i in range(n_classes)))


def sorted_in_python(scores, k):
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores.tolist()]


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_bank_averages_normalised_prompts(batch_size):
    class Lengths:
        def encode_text(self, texts):
            return torch.tensor([[len(text), 3.0, text.count("a")] for text in texts])

    names, templates = ["cat", "a bear", "yak"], ["{}", "a {}", "{} and {}"]
    bank = build_class_bank(Lengths(), names, templates, batch_size=batch_size)
    for row, name in zip(bank.embeddings.tolist(), names, strict=True):
        prompts = [name, f"a {name}", f"{name} and {name}"]
        raw = Lengths().encode_text(prompts).tolist()
        assert row == pytest.approx(written_out(raw), rel=1e-5)
    assert bank.class_names == tuple(names)
    assert bank.embeddings.shape == (3, 3)


def test_text_forwards_are_batched_not_one_per_class():
    model = ColourModel()
    build_class_bank(model, [f"thing {i}" for i in range(100)], "ensemble", batch_size=64)
    sizes = [len(call) for call in model.calls]
    assert sum(sizes) == 100 * len(TEMPLATES["ensemble"])
    assert max(sizes) <= 64
    assert len(sizes) <= 10


def test_bank_is_made_in_eval_mode_and_modes_come_back():
    model = ColourModel().train()
    frozen = nn.BatchNorm1d(3).eval()
    model.frozen = frozen
    first, second = (build_class_bank(model, list(COLOURS), "simple") for _ in range(2))
    assert torch.equal(first.embeddings, second.embeddings)
    assert model.training
    assert model.dropout.training
    assert not frozen.training


def test_braces_in_class_names_are_text():
    model = ColourModel()
    build_class_bank(model, ["set {1}", "{}"], ["a {}."])
    assert model.calls == [["a {}.", "a set {1}."]]  # the shorter first


def test_template_sets_change_the_bank():
    banks = [build_class_bank(ColourModel().eval(), ["red", "blue"], name) for name in TEMPLATES]
    for a, b in [(0, 1), (1, 2), (0, 2)]:
        assert not torch.allclose(banks[a].embeddings, banks[b].embeddings, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["{}"], "class_names must not be empty"),
        (["cat"], [], "templates must not be empty"),
        (["cat", "dog", "cat"], ["{}"], "1 class names occur more than once: cat. Merge"),
    ],
)
def test_wrong_names_and_templates_are_refused(names, templates, message):
    with pytest.raises(ValueError, match=message):
        build_class_bank(ColourModel(), names, templates)


def test_no_prompts_at_once_are_refused():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        build_class_bank(ColourModel(), ["cat"], "simple", batch_size=0)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 256])
def test_descriptions_give_each_class_its_own_number_of_prompts(batch_size):
    class Lengths:
        def encode_text(self, texts):
            assert len(texts) <= batch_size
            return torch.tensor([[len(text), 3.0, text.count("a")] for text in texts])

    templates = ["a {}", "a {}, which is {description}"]
    descriptions = {"cat": "a tame feline", "yak": ["an ox", "hairy", "large and calm"]}
    bank = build_class_bank(Lengths(), ["cat", "eel", "yak"], templates, batch_size, descriptions)
    prompts = [
        ["a cat", "a cat, which is a tame feline"],
        ["a eel"],
        ["a yak", *(f"a yak, which is {text}" for text in descriptions["yak"])],
    ]
    for row, texts in zip(bank.embeddings.tolist(), prompts, strict=True):
        raw = torch.tensor([[len(t), 3.0, t.count("a")] for t in texts]).tolist()
        assert row == pytest.approx(written_out(raw), rel=1e-5)


def test_prompts_are_never_all_held(monkeypatch):
    held, asked = [], []

    def counting(*given):
        for number, text in class_prompts(*given):
            held.append(text)
            yield number, text

    class Few(ColourModel):
        def encode_text(self, texts):
            assert len(texts) <= 64
            assert len(held) <= 32 * 64
            asked.extend(texts)
            if len(asked) % (32 * 64) == 0:
                held.clear()
            return super().encode_text(texts)

    monkeypatch.setattr("zslkit.zeroshot.class_bank.class_prompts", counting)
    build_class_bank(Few(), [f"thing {i}" for i in range(60)], "clip80", batch_size=64)
    assert len(asked) == 60 * 80


def test_texts_of_like_length_pass_together_and_keep_their_places():
    class Lengths(ColourModel):
        def encode_text(self, texts):
            assert texts == sorted(texts, key=len)
            return super().encode_text(texts)

    names = ["red", "a very long blue", "green", "another rather long red"]
    found = build_class_bank(Lengths(), names, ["{}", "a photo of one {}."], batch_size=3)
    for name, embedding in zip(names, found.embeddings, strict=True):
        alone = build_class_bank(ColourModel(), [name], ["{}", "a photo of one {}."]).embeddings[0]
        torch.testing.assert_close(embedding, alone)


class Towers(ColourModel):
    """What a bank's key looks at, and whether the model is asked at all."""

    def __init__(self, weight=1.0, may_run=True):
        super().__init__()
        self.eval()
        self.text_tower, self.text_projection = nn.Linear(2, 2), nn.Linear(2, 2)
        for part in (self.text_tower, self.text_projection):
            nn.init.constant_(part.weight, 1.0)
            nn.init.zeros_(part.bias)
        nn.init.constant_(self.text_projection.weight, weight)
        self.may_run = may_run

    def encode_text(self, texts):
        assert self.may_run, "the bank should have come from disk"
        return super().encode_text(texts)


def test_a_bank_on_disk_equals_one_that_is_built(tmp_path):
    folder = tmp_path / "new" / "cache"
    built = build_class_bank(Towers(), list(COLOURS), "ensemble")
    first = cached_class_bank(Towers(), list(COLOURS), "ensemble", folder, batch_size=4)
    again = cached_class_bank(Towers(may_run=False), tuple(COLOURS), TEMPLATES["ensemble"], folder)
    assert torch.equal(first.embeddings, again.embeddings)
    torch.testing.assert_close(first.embeddings, built.embeddings)
    assert first.class_names == again.class_names == tuple(COLOURS)
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_a_banks_key_follows_weights_names_templates_and_descriptions(tmp_path):
    names, lines = ["red", "blue"], ["a {}", "{description}"]
    asked = [
        (Towers(), names, "simple", None),
        (Towers(weight=2.0), names, "simple", None),
        (Towers(), names[::-1], "simple", None),
        (Towers(), names, "ensemble", None),
        (Towers(), names, lines, {"red": "as blood"}),
        (Towers(), names, lines, {"red": "as roses"}),
    ]
    for model, classes, templates, descriptions in asked:
        cached_class_bank(model, classes, templates, tmp_path, descriptions=descriptions)
    assert len(list(tmp_path.iterdir())) == len(asked)
    other = {"red": "as roses", "green": "no class of this bank"}
    cached_class_bank(Towers(may_run=False), names, lines, tmp_path, descriptions=other)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "unsigned"])
def test_a_damaged_bank_is_built_again(tmp_path, damage):
    whole = cached_class_bank(Towers(), list(COLOURS), "simple", tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "unsigned":
        save_file({"embeddings": whole.embeddings + 1}, path)
    else:
        last = bytes([data[-1] ^ 1])
        broken = {"cut": data[:-4], "flipped": data[:-1] + last, "emptied": b""}
        path.write_bytes(broken[damage])
    with pytest.warns(UserWarning, match=f"{path.name}: damaged"):
        again = cached_class_bank(Towers(), list(COLOURS), "simple", tmp_path)
    assert torch.equal(whole.embeddings, again.embeddings)
    assert path.read_bytes() == data


@pytest.mark.parametrize("k", [1, 2, 7, 8])
def test_ranking_equals_sorting_in_python(k):
    bank = random_bank(8)
    images = random_bank(5, seed=1).embeddings
    scores, indices = rank_classes(images, bank, k)
    everything = images @ bank.embeddings.T
    assert indices.tolist() == sorted_in_python(everything, k)
    assert torch.allclose(scores, everything.gather(1, indices))
    assert scores.shape == indices.shape == (5, k)


@pytest.mark.parametrize("k", [1, 3, 10, 39, 40])
def test_ties_go_to_the_lowest_class_also_across_the_border(k):
    generator = torch.Generator().manual_seed(2)
    # whole numbers: products are exact, and 40 classes share a handful of scores
    images = torch.randint(-1, 2, (30, 3), generator=generator).float()
    bank = ClassBank(torch.randint(-1, 2, (40, 3), generator=generator).float(), ("x",) * 40)
    assert rank_classes(images, bank, k)[1].tolist() == sorted_in_python(
        images @ bank.embeddings.T, k
    )


def test_equal_classes_rank_in_order():
    bank = ClassBank(torch.ones(50, 4) / 2, ("x",) * 50)
    assert rank_classes(torch.ones(2, 4) / 2, bank, 4)[1].tolist() == [[0, 1, 2, 3]] * 2


def test_permuting_classes_permutes_the_ranking():
    bank, images = random_bank(9), random_bank(6, seed=3).embeddings
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    shuffled = ClassBank(bank.embeddings[order], tuple(bank.class_names[i] for i in order))
    scores, indices = rank_classes(images, bank, 9)
    scores_shuffled, indices_shuffled = rank_classes(images, shuffled, 9)
    assert torch.allclose(scores, scores_shuffled, atol=1e-6)
    assert torch.equal(order[indices_shuffled], indices)


def test_blocks_never_hold_all_scores_and_change_nothing():
    queries, candidates = random_bank(23, seed=5).embeddings, random_bank(7).embeddings
    blocks = [(s, b.clone()) for s, b in similarity_blocks(queries, candidates, max_scores=21)]
    assert [start for start, _ in blocks] == list(range(0, 23, 3))
    assert max(scores.numel() for _, scores in blocks) <= 21
    joined = torch.cat([scores for _, scores in blocks])
    assert torch.allclose(joined, queries @ candidates.T, atol=1e-6)


def test_one_image_none_and_half_precision():
    bank = random_bank(4)
    assert rank_classes(bank.embeddings[2:3], bank, 1)[1].tolist() == [[2]]
    assert rank_classes(bank.embeddings[:0], bank, 3)[1].shape == (0, 3)
    assert rank_classes(bank.embeddings.bfloat16(), bank, 1)[1].tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_classes_is_refused(k):
    bank = random_bank(4)
    with pytest.raises(ValueError, match=f"k={k} must be between 1 and the 4 classes"):
        rank_classes(bank.embeddings, bank, k)


def test_nan_is_refused():
    bank = random_bank(4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        rank_classes(torch.full((1, 8), math.nan), bank, 1)


def test_predict_names_the_colour_from_images_paths_and_tensors(tmp_path):
    path = tmp_path / "green.png"
    Image.new("RGB", (9, 5), COLOURS["green"]).save(path)
    tensor = torch.tensor(COLOURS["blue"], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    images = [Image.new("RGB", (6, 6), COLOURS["red"]), path, str(path), tensor]
    classifier = ZeroShotClassifier(ColourModel().train(), list(COLOURS), "simple")
    results = classifier.predict(images, k=3, batch_size=3)
    assert [row[0].class_name for row in results] == ["red", "green", "green", "blue"]
    for row in results:
        similarities = [prediction.similarity for prediction in row]
        total = sum(math.exp(10.0 * s) for s in similarities)
        expected = [math.exp(10.0 * s) / total for s in similarities]
        assert [prediction.probability for prediction in row] == pytest.approx(expected, rel=1e-4)
        assert sum(expected) == pytest.approx(1)
    assert classifier.predict(images, k=1) == [row[:1] for row in results]
    assert classifier.predict([]) == []


def test_predict_obeys_the_camera_orientation(tmp_path):
    class Corner(ColourModel):
        def encode_image(self, pixels):
            return F.normalize(pixels[:, :, 0, 0].float(), dim=-1)

    image = Image.new("RGB", (4, 4), COLOURS["blue"])
    image.paste(COLOURS["red"], (2, 2, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    image.save(tmp_path / "turned.png", exif=exif)
    classifier = ZeroShotClassifier(Corner(), list(COLOURS), "none")
    assert classifier.predict([tmp_path / "turned.png"], k=1)[0][0].class_name == "red"


def test_a_model_without_scale_gives_no_probabilities():
    class Bare:
        pass

    with pytest.raises(ValueError, match="Bare has no logit_scale"):
        ZeroShotClassifier(Bare(), ["cat"], "simple")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("no image")
    good = Image.new("RGB", (4, 4), COLOURS["red"])
    images = [tmp_path / "notes.jpg", good, tmp_path / "absent.jpg"]
    classifier = ZeroShotClassifier(ColourModel(), list(COLOURS), "none")
    with pytest.raises(ValueError, match=r"2 of 3 images are unreadable .*notes\.jpg, .*absent"):
        classifier.predict(images, k=1)
    one_by_one = classifier.predict(images, k=1, batch_size=1, max_unreadable=0.7)
    assert classifier.predict(images, k=1, max_unreadable=0.7) == one_by_one
    assert [[best.class_name for best in ranked] for ranked in one_by_one] == [[], ["red"], []]


def test_probabilities_of_ranked_classes_are_the_softmax_over_all():
    generator = torch.Generator().manual_seed(0)
    images, classes = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1)
        for n in (5, 7)
    )
    bank = ClassBank(classes, tuple("abcdefg"))
    scores, indices = rank_classes(images, bank, 3)
    expected = (20 * images @ classes.T).softmax(dim=1).gather(1, indices)
    torch.testing.assert_close(class_probabilities(images, bank, scores, 20), expected)
