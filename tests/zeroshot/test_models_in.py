"""Public checkpoints and users' own classes, against the libraries that made them."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import zslkit as zk
from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.data.pairs import open_pairs
from zslkit.zeroshot.models.files import predict_files
from zslkit.zeroshot.models.pretrained import load_parts
from zslkit.zeroshot.models.protocol import MODELS, as_model

TEXTS = ["a photo of a dog", "two cats", "a red square beside a blue circle on green"]
CLOSE = {"abs": 1e-5}


@pytest.fixture(scope="session")
def clips(tiny_clips):
    return tiny_clips


def spec_of(clips, kind):
    return clips[kind] if kind == "open_clip" else f"hf:{clips[kind]}"


def photos(n=3):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 67, 3), dtype=np.uint8)).resize((90, 60))
        for i in range(n)
    ]


def ours(model, images):
    transform = model.image_transform(train=False)
    with torch.no_grad():
        return model.encode_image(torch.stack([transform(image) for image in images]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_checkpoints_embed_as_transformers_does(clips, kind):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = clips[kind]
    theirs = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=photos(), return_tensors="pt")
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, truncation=True, return_tensors="pt", **padding
    )
    with torch.no_grad():
        image = F.normalize(theirs.get_image_features(pixels["pixel_values"]).pooler_output, dim=-1)
        text = F.normalize(theirs.get_text_features(tokens["input_ids"]).pooler_output, dim=-1)
        model = zk.load_model(f"hf:{folder}")
        assert (ours(model, photos()) - image).abs().max() < 1e-5
        assert (model.encode_text(TEXTS) - text).abs().max() < 1e-5
    assert model.logit_scale.item() == pytest.approx(theirs.logit_scale.exp().item())
    bias = getattr(theirs, "logit_bias", None)
    assert (model.logit_bias is None) == (bias is None)
    assert bias is None or model.logit_bias.item() == bias.item()


def test_open_clip_checkpoints_embed_as_open_clip_does(clips):
    import open_clip

    name, _, weights = clips["open_clip"].removeprefix("open_clip:").partition("/")
    theirs, _, preprocess = open_clip.create_model_and_transforms(name, weights)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    theirs.eval()
    with torch.no_grad():
        image = theirs.encode_image(torch.stack([*map(preprocess, photos())]), normalize=True)
        text = theirs.encode_text(tokens, normalize=True)
        model = zk.load_model(clips["open_clip"])
        assert (ours(model, photos()) - image).abs().max() < 1e-5
        assert (model.encode_text(TEXTS) - text).abs().max() < 1e-5
    assert model.logit_scale.item() == pytest.approx(theirs.logit_scale.exp().item())


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_a_loaded_model_is_evaluated_like_a_run(clips, kind, tiny_settings, tmp_path):
    spec = spec_of(clips, kind)
    model = zk.load_model(spec)
    config = RunConfig(**{**tiny_settings, "cache_dir": str(tmp_path / "cache")})
    found = zk.evaluate(model, config)
    assert set(found) == {"retrieval", "zeroshot"}
    pairs = open_pairs(config.zeroshot_manifest, config.zeroshot_split)
    images, rows = zk.evaluation.embed_images(model, pairs, config)
    torch.testing.assert_close(images, ours(model, [pairs[int(i)].image for i in rows]))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # images and captions, each once
    assert zk.evaluate(zk.load_model(spec), config) == found


class Shown(list):
    """(pixels, label) of each image, as clip-benchmark reads a data set."""

    classes: tuple = ()


class Theirs(torch.nn.Module):
    """A model of transformers with the two methods that clip-benchmark calls."""

    def __init__(self, folder):
        from transformers import AutoModel

        super().__init__()
        self.net = AutoModel.from_pretrained(folder).eval()

    def encode_image(self, pixels):
        return self.net.get_image_features(pixels).pooler_output

    def encode_text(self, tokens):
        return self.net.get_text_features(tokens).pooler_output


def without_us(clips, kind):
    """Give model, preprocessing and tokenizer as a checkpoint's own library has them."""
    if kind == "open_clip":
        from clip_benchmark.models.open_clip import load_open_clip

        model, *others = load_open_clip(*clips[kind].removeprefix("open_clip:").split("/", 1))
        return model.eval(), *others
    from transformers import AutoImageProcessor, AutoTokenizer

    processor, tokenizer = (
        part.from_pretrained(clips[kind]) for part in (AutoImageProcessor, AutoTokenizer)
    )
    full = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}

    def tokens(texts):
        return tokenizer(texts, truncation=True, return_tensors="pt", **full)["input_ids"]

    def process(image):
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    return Theirs(clips[kind]), process, tokens


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_the_figures_are_those_of_clip_benchmark(clips, kind, tmp_path, monkeypatch):
    """Its evaluator asks the checkpoint's own library; we ask what load_model made of it."""
    judge = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    from zslkit.evaluation.questions import evaluate_stream, pose
    from zslkit.zeroshot.label_spaces import own_label_space

    theirs, preprocess, tokenizer = without_us(clips, kind)
    pairs = open_pairs("toy", "seen", max_pairs=120)
    space = own_label_space(pairs)
    labels = [space.class_names.index(pairs.class_names[c]) for c in pairs.labels]
    data = Shown(zip([preprocess(pair.image) for pair in pairs], labels, strict=True))
    data.classes = space.class_names
    loader = torch.utils.data.DataLoader(data, batch_size=50)
    texts = ["a photo of a {}.", "a {}."]
    as_array = torch.Tensor.numpy  # NumPy refuses float() of one-element arrays since 2.4
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: as_array(self).squeeze())
    found = judge.evaluate(
        theirs, loader, tokenizer, list(space.class_names),
        [text.replace("{}", "{c}") for text in texts], "cpu", amp=False,
    )  # fmt: skip
    monkeypatch.undo()
    model = zk.load_model(spec_of(clips, kind))
    questions = pose(model, pairs, [space], {"two": texts})
    ours = evaluate_stream(model, pairs, questions, tmp_path)["questions"][f"{space.name} / two"]
    hits = [ours["hits"]["strict"][f"hit@{k}"]["value"] for k in (1, 5)]
    assert hits == pytest.approx([found["acc1"], found["acc5"]], abs=1e-6)
    assert 0 < hits[1] < 1  # a model that sees something


@pytest.mark.filterwarnings("error")
def test_a_tag_of_open_clip_brings_its_activation_and_pixels(clips, tmp_path, monkeypatch):
    """As ViT-B-32/openai: trained with QuickGELU, named under a model without it."""
    import open_clip
    from open_clip.pretrained import _PRETRAINED

    name, weights = clips["open_clip"].removeprefix("open_clip:").split("/", 1)
    plain = {**open_clip.get_model_config(name), "quick_gelu": False}
    (tmp_path / "tiny-plain.json").write_text(json.dumps(plain))
    open_clip.add_model_config(tmp_path / "tiny-plain.json")
    mean = (0.5, 0.5, 0.5)
    tag = {"file": weights, "quick_gelu": True, "mean": mean, "std": mean}
    monkeypatch.setitem(_PRETRAINED, "tiny-plain", {"own": tag, "other": {"file": weights}})
    theirs = zk.load_model(clips["open_clip"])  # the name says QuickGELU
    model, other = (zk.load_model(f"open_clip:tiny-plain/{tag}") for tag in ("own", "other"))
    assert model.image_transform(train=False).mean == mean
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels), theirs.encode_image(pixels))
        assert torch.equal(model.encode_text(TEXTS), theirs.encode_text(TEXTS))
        assert not torch.allclose(other.encode_text(TEXTS), theirs.encode_text(TEXTS), atol=1e-4)
    monkeypatch.setitem(tag, "file", "nowhere")  # without weights nothing is fetched
    scratch = load_parts("open_clip:tiny-plain/own", "none")
    assert scratch.image.transform.mean == mean
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.delitem(_PRETRAINED, "tiny-plain")
    again = zk.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(model.encode_text(TEXTS), again.encode_text(TEXTS))
    assert again.image_transform(train=False).mean == mean


class Own:
    """A user's model that is nothing but the four names."""

    logit_scale = 10.0

    def encode_image(self, pixels):
        return F.normalize(pixels.flatten(2).mean(dim=2) + 0.1, dim=-1)

    def encode_text(self, texts):
        colours = ["red", "green", "blue"]
        return torch.tensor([[float(c in text) + 0.1 for c in colours] for text in texts])

    def image_transform(self, train):
        def transform(image):
            if isinstance(image, Image.Image):
                image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            return F.interpolate(image[None].float(), (8, 8))[0] / 255

        return transform


def test_a_class_with_the_four_names_is_taken_everywhere(tiny_settings, tmp_path):
    config = RunConfig(**{**tiny_settings, "cache_dir": str(tmp_path / "cache")})
    model = Own()
    assert isinstance(model, zk.zeroshot.models.ZeroShotModel)
    found = zk.evaluate(model, config)
    assert 0 <= found["zeroshot"]["hit@1"]["value"] <= 1
    assert not (tmp_path / "cache").exists()  # its weights cannot be told apart
    red = Image.new("RGB", (20, 20), "red")
    best = zk.ZeroShotClassifier(model, ["red", "green", "blue"], "none").predict([red], 1)
    assert best[0][0].class_name == "red"
    assert zk.build_class_bank(model, ["red", "blue"], "none").embeddings.shape == (2, 3)


class OwnNet(torch.nn.Module):
    """The same as a Module whose scale is a parameter and whose pixels have no key."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.eye_(self.mix.weight)
        self.logit_scale = torch.nn.Parameter(torch.tensor(10.0))

    def encode_image(self, pixels):
        return self.mix(pixels.flatten(2).mean(dim=2) + 0.1)

    encode_text, image_transform = Own.encode_text, Own.image_transform


@pytest.mark.parametrize("kind", [Own, OwnNet])
def test_a_class_of_ones_own_is_explored_compared_scored_and_mapped(kind, tiny_settings, tmp_path):
    model, config = kind(), RunConfig(**tiny_settings)
    pairs = open_pairs(config.manifest, "train")
    names = ["red", "green", "blue"]
    options = {"class_names": names, "templates": "none", "training": pairs, "debounce": 0}
    both = {"mine": model, "other": OwnNet()}
    explorer = zk.widgets.ZeroShotExplorer(both, pairs, captions=["a red star"], **options)
    explorer.beside.value = "other"
    shown = explorer.predictions
    assert set(shown["run"]) == {"mine", "other"}
    one, two = (shown[shown["run"] == run]["class_name"].tolist() for run in both)
    assert one == two
    fit = zk.data.score_pairs(pairs, config, model)
    dressed = as_model(model)
    images = torch.stack([dressed.image_transform(False)(pairs[row].image) for row in (0, 5)])
    with torch.no_grad():
        found = zk.evaluation.embed_images(model, pairs, config)[0]
        expected = dressed.encode_image(images)
        own = (found * dressed.encode_text([*fit[1]])).sum(dim=1)
    torch.testing.assert_close(found[[0, 5]], expected)
    np.testing.assert_allclose(fit[2], own.numpy(), atol=1e-5)
    bank = zk.build_class_bank(model, names, "none")
    vectors, table, _ = zk.evaluation.overview(model, {"train": pairs}, bank, 8)
    assert vectors.shape == (8, 3)
    assert set(table["named"]) <= set(names)
    pairs[0].image.save(tmp_path / "photo.png")
    classifier = zk.ZeroShotClassifier(model, names, "none")
    written = predict_files(classifier, [str(tmp_path / "photo.png")], tmp_path / "named.csv", k=1)
    assert written.n_images == 1


def test_a_registered_model_is_loaded_by_name_and_teaches(tiny_settings, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(MODELS, "mine", lambda rest: asked.append(rest) or OwnNet())
    assert zk.load_model("mine:small one").model.mix.in_features == 3
    config = RunConfig(
        **{**tiny_settings, "teacher": "frozen", "teacher_run": "mine:small one",
           "soft_targets": "teacher", "output_dir": str(tmp_path)}
    )  # fmt: skip
    run = zk.train(config)
    assert asked == ["small one"] * 2
    assert run.teacher.kind == "fixed"
    assert not run.teacher.model.model.mix.weight.requires_grad
    assert zk.load_run(tmp_path).teacher is None  # it needs no teacher to be asked
    monkeypatch.delitem(MODELS, "mine")
    with pytest.raises(ValueError, match="model='mine:small one': no such folder; .*MODELS"):
        zk.load_model("mine:small one")
    with pytest.raises(ValueError, match="teacher_run='mine:small one': .*MODELS"):
        build_teacher(run.model, config)


def bad(**changes):
    return type("Bad", (Own,), changes)()


def gives(found):
    """Make an ``image_transform`` whose function gives ``found`` for every image."""
    return lambda self, train: lambda image: found


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (bad(encode_text=3), "Bad.encode_text=3: must be a method of texts"),
        (
            bad(image_transform=lambda self: None),
            "Bad.image_transform(): must take train alone (too many positional arguments)",
        ),
        (bad(image_transform=lambda self, train: None), "Bad.image_transform: gave None; it must"),
        (
            bad(image_transform=gives(0)),
            "its function gave int for an image; it must give a Tensor",
        ),
        (bad(image_transform=gives(torch.ones(1, 8, 8))), "gave shape (1, 8, 8) for an image"),
        (bad(logit_scale=None), "Bad.logit_scale=None: must be one positive number"),
        (bad(logit_scale=-1.0), "Bad.logit_scale=-1.0: must be one positive number"),
        (bad(logit_scale=torch.ones(3)), "Bad.logit_scale=tensor([1., 1., 1.]): must be one"),
        (
            bad(encode_text=lambda self, texts: torch.ones(len(texts), 5)),
            "Bad.encode_image gives 3 and Bad.encode_text gives 5 dimensions; both must give",
        ),
        (
            bad(encode_text=lambda self, texts: torch.zeros(len(texts), 77, 8)),
            "Bad.encode_text gave shape (2, 77, 8) for 2 items; it must give a Tensor of shape",
        ),
        (bad(encode_text=lambda self, texts: [[1.0]]), "Bad.encode_text gave list for 2 items"),
        (
            bad(encode_image=lambda self, pixels: torch.full((len(pixels), 3), torch.nan)),
            "Bad.encode_image gave NaN or infinity; its vectors must be finite",
        ),
        (
            bad(encode_image=lambda self, pixels: torch.zeros(len(pixels), 3)),
            "Bad.encode_image gave zeros alone; its vectors must point somewhere",
        ),
    ],
)
def test_one_thing_wrong_is_said_by_name_and_value(model, message):
    red = Image.new("RGB", (20, 20), "red")
    with pytest.raises(ValueError, match=re.escape(message)):
        zk.ZeroShotClassifier(model, ["red", "blue"], "none").predict([red], 1)


def test_what_is_missing_and_what_differs_among_images_is_said():
    class Half:
        logit_scale, encode_text = 1.0, None

    with pytest.raises(ValueError, match="Half has no encode_image, no image_transform: a model"):
        as_model(Half())
    sizes = iter([(8, 8), (8, 7)])
    model = bad(image_transform=lambda self, train: lambda image: torch.ones(3, *next(sizes)))
    transform = as_model(model).image_transform(train=False)
    assert transform(None).shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"gave shape \(3, 8, 8\) and \(3, 8, 7\); all images"):
        transform(None)


def test_names_that_are_no_models_say_what_would_be(tmp_path, clips, monkeypatch):
    for name, words in {
        "open_clip:ViT-B-33/x": "no model 'ViT-B-33'; did you mean .*ViT-B-32",
        "open_clip:ViT-B-32": "says no weights; write open_clip:ViT-B-32/WEIGHTS .* laion2b_s34b",
        "hf:": "must be open_clip:MODEL/WEIGHTS or hf:NAME_OR_FOLDER",
        "ViT-B-32": "no such folder; give that of a run",
        str(tmp_path): "holds no run with a checkpoint, nothing that save_pretrained wrote",
        "open_clip:coca_ViT-B-32/x": "not a model of two towers|could not be loaded",
    }.items():
        with pytest.raises((ValueError, OSError), match=words):
            zk.load_model(name)
    with pytest.raises(OSError, match="could not be loaded"):
        zk.load_model(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="a bert model; clip and siglip checkpoints"):
        zk.load_model(f"hf:{tmp_path}")
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"needs open_clip; install it with: .*zslkit\[openclip"):
        zk.load_model("open_clip:ViT-B-32/openai")


def test_a_folder_is_recognised_without_its_library(clips):
    model = zk.load_model(clips["clip"])
    assert type(model).__name__ == "PretrainedModel"
    assert zk.load_model(model) is model
