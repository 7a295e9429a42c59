"""Saved and exported models, read back by those they are for."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import zslkit as zk
from zslkit.config import RunConfig
from zslkit.encoders.dual import build_dual_encoder
from zslkit.zeroshot.models import export as exporting
from zslkit.zeroshot.models.export import compare, export_model
from zslkit.zeroshot.models.sentences import has_sentence_modules, write_texts

CLASSES = ["dog", "red star", "grand piano", "Übergröße naïve, café-bar!"]


def photos(n=3):
    rng = np.random.default_rng(1)
    small = [rng.integers(0, 256, (9, 13, 3), dtype=np.uint8) for _ in range(n)]
    return [Image.fromarray(pixels).resize((131 + 10 * i, 97)) for i, pixels in enumerate(small)]


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A random BERT of two layers with a WordPiece vocabulary of letters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(i) for i in range(33, 127) if not chr(i).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "dog", "##og", "photo", "of"]
    pieces += [f"##{letter}" for letter in letters if letter.isalnum()]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(pieces), intermediate_size=64, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dual(bert, tiny_settings):
    """A model with a real vocabulary: random, which is enough to be compared."""
    changes = {"text_encoder": f"hf:{bert}", "text_weights": "pretrained", "max_tokens": 24,
               "prompt_templates": "none"}  # fmt: skip
    return build_dual_encoder(RunConfig(**{**tiny_settings, **changes})).eval()


def assert_same(model, other):
    transform, theirs = (m.image_transform(train=False) for m in (model, other))
    with torch.no_grad():
        for photo in photos():
            pixels = (t(photo)[None] for t in (transform, theirs))
            images = [m.encode_image(p) for m, p in zip((model, other), pixels, strict=True)]
            # weights at other addresses may be added in another order
            assert (images[0] - images[1]).abs().max() < 1e-6
        texts = [m.encode_text(CLASSES) for m in (model, other)]
        assert (texts[0] - texts[1]).abs().max() < 1e-6
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert torch.equal(torch.as_tensor(model.logit_scale), torch.as_tensor(other.logit_scale))


def test_a_saved_model_is_the_same_without_what_it_was_made_of(dual, bert, tmp_path):
    copy = tmp_path / "moved"
    bank = zk.build_class_bank(dual, CLASSES, "none")
    dual.save_pretrained(tmp_path / "saved", bank)
    (tmp_path / "saved").rename(copy)
    other = zk.from_pretrained(copy)
    assert_same(dual, other)
    assert other.class_bank.class_names == tuple(CLASSES)
    assert torch.equal(other.class_bank.embeddings, bank.embeddings)
    named = zk.ZeroShotClassifier(other).predict(photos()[0], k=1)
    assert named[0].class_name in CLASSES
    assert str(bert) not in (copy / "model.safetensors").read_bytes().decode("latin-1")
    other.save_pretrained(tmp_path / "again")  # a copy of a copy
    assert_same(dual, zk.load_model(tmp_path / "again"))


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_public_models_can_be_saved_too(tiny_clips, kind, tmp_path):
    model = zk.load_model(tiny_clips[kind])
    model.save_pretrained(tmp_path / "saved")
    other = zk.from_pretrained(tmp_path / "saved")
    assert_same(model, other)
    assert (other.logit_bias is None) == (model.logit_bias is None)


def test_halves_of_public_models_are_saved_with_the_model(tiny_clips, tiny_settings, tmp_path):
    name = f"hf:{tiny_clips['clip']}"
    weights = {"image_weights": "pretrained", "text_weights": "pretrained"}
    config = RunConfig(**{**tiny_settings, "image_encoder": name, "text_encoder": name, **weights})
    model = build_dual_encoder(config).eval()
    model.save_pretrained(tmp_path / "saved")
    assert_same(model, zk.from_pretrained(tmp_path / "saved"))


def test_the_card_has_the_block_that_hubs_read(dual, tmp_path):
    from huggingface_hub import ModelCard

    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 32}
    run = {"metrics": {"zeroshot": {"hit@1": value}}}
    from zslkit.zeroshot.models.cards import _results, model_card

    saved = {"towers": {"image": {"name": "a"}, "text": {"name": "b"}},
             "config": {"manifest": "toy", "zeroshot_manifest": "toy"}}  # fmt: skip
    card = ModelCard(model_card(dual, saved, None, "mine"))
    assert card.data.library_name == "zslkit"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.datasets == ["toy"]
    (result,) = _results(run["metrics"], saved["config"])
    assert result["metrics"][0]["value"] == 0.5
    assert result["metrics"][0]["args"] == {"interval": "95 % interval 0.4 to 0.6", "n": 32}
    assert "Limits" in card.text
    assert "Licence" in card.text


def test_what_is_no_saved_model_is_said(dual, tmp_path, monkeypatch):
    import huggingface_hub

    with pytest.raises(ValueError, match=r"no zslkit\.json here"):
        zk.from_pretrained(tmp_path)
    dual.save_pretrained(tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "zslkit.json").read_text())
    (tmp_path / "a" / "zslkit.json").write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        zk.from_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="neither a folder nor a name ACCOUNT/MODEL"):
        zk.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="must be ACCOUNT/MODEL"):
        dual.push_to_hub("mine")

    def refuse(name):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(OSError, match=r"'me/mine': could not be had from the hub \(no route\)"):
        zk.load_model("zslkit:me/mine")


def test_a_model_goes_to_the_hub_and_comes_back(dual, tmp_path, monkeypatch):
    """The hub is a folder here: nothing leaves this computer."""
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: tmp_path / name)
    assert dual.push_to_hub("me/mine") == "hub/me/mine/commit/1"
    assert calls == [("me/mine", {"private": True, "exist_ok": True})]
    dual.push_to_hub("me/open", private=False)
    assert calls[1][1]["private"] is False
    assert_same(dual, zk.from_pretrained("me/mine"))

    def refuse(self, name, **options):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(
        OSError, match=r"'me/mine': could not be sent to the hub \(no route\); save"
    ):
        dual.push_to_hub("me/mine")


def test_transformers_own_pipeline_reads_the_export(dual, tmp_path):
    from transformers import pipeline

    parity = export_model(dual, tmp_path / "out", "transformers", photos(), CLASSES)
    assert parity.n_equal == parity.n_photos == 3
    assert max(parity[:2]) < 1e-5
    namer = pipeline("zero-shot-image-classification", str(tmp_path / "out"))
    found = namer(photos()[0], candidate_labels=CLASSES, hypothesis_template="{}")
    ours = zk.ZeroShotClassifier(dual, CLASSES, "none").predict(photos()[0], k=4)
    assert [row["label"] for row in found] == [row.class_name for row in ours]
    scores = [row["score"] for row in found]
    assert scores == pytest.approx([row.probability for row in ours], abs=1e-5)


@pytest.fixture
def halves(tiny_clips, tiny_settings):
    """Runs that trained both halves of a checkpoint in their own space, a scale apart from it."""

    def build(kind, **changes):
        name = tiny_clips[kind] if kind == "open_clip" else f"hf:{tiny_clips[kind]}"
        weights = {"image_weights": "pretrained", "text_weights": "pretrained"}
        encoders = {"image_encoder": name, "text_encoder": name, "projection": "none"}
        settings = {**tiny_settings, **encoders, **weights, **changes}
        model = build_dual_encoder(RunConfig(**settings)).eval()
        with torch.no_grad():
            model.log_logit_scale.fill_(3.0)
        return model

    return build


@pytest.mark.parametrize(("kind", "name"), [("clip", "CLIPModel"), ("siglip", "SiglipModel")])
def test_a_run_in_the_space_of_a_checkpoint_leaves_as_its_stock_class(halves, kind, name, tmp_path):
    """Read by transformers in a process that cannot import zslkit."""
    model = halves(kind, contrastive_loss="sigmoid")
    with torch.no_grad():
        model.logit_bias.fill_(-4.5)
    parity = export_model(model, tmp_path / "out", "transformers", photos(), CLASSES)
    assert max(parity[:2]) < 1e-6
    assert parity.scale_deviation < 1e-6
    assert not (tmp_path / "out" / "zslkit.json").exists()
    assert "import zslkit" not in (tmp_path / "out" / "README.md").read_text()
    photos()[0].save(tmp_path / "photo.png")
    code = f"""
import sys; sys.modules["zslkit"] = None
import json; from transformers import AutoModel, pipeline
model = AutoModel.from_pretrained("out")
bias = getattr(model, "logit_bias", None)
found = []
if {kind!r} == "clip":  # the pipeline pads texts for SigLIP to 64 tokens: this one reads 16
    namer = pipeline("zero-shot-image-classification", "out")
    found = namer("photo.png", candidate_labels={CLASSES!r}, hypothesis_template="{{}}")
print(json.dumps([type(model).__name__, model.logit_scale.item(), bias and bias.item(),
                  [row["label"] for row in found]]))
"""
    options = {"capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.returncode == 0, done.stderr
    kind_of, scale, bias, labels = json.loads(done.stdout.splitlines()[-1])
    assert kind_of == name
    assert scale == pytest.approx(3.0)
    assert bias == (None if kind == "clip" else -4.5)
    ours = zk.ZeroShotClassifier(model, CLASSES, "none").predict(photos()[0], k=len(CLASSES))
    assert labels == ([row.class_name for row in ours] if kind == "clip" else [])


def test_open_clip_reads_its_own_models_and_what_was_trained_of_them(halves, tiny_clips, tmp_path):
    import open_clip

    trained = halves("open_clip")
    for model in (trained, zk.load_model(tiny_clips["open_clip"])):
        # twice into one folder: the second takes the place of the first
        parity = export_model(model, tmp_path / "out", "open_clip", photos(), CLASSES)
        assert max(parity[:2]) < 1e-5
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
        assert theirs.logit_scale.exp().item() == pytest.approx(model.logit_scale.item())
        again = zk.load_model(f"open_clip:local-dir:{tmp_path / 'out'}")
        with torch.no_grad():
            texts = again.encode_text(CLASSES)
            assert (texts - model.encode_text(CLASSES)).abs().max() < 1e-6
    assert "open_clip.create_model_and_transforms" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="holds a model of open_clip that was loaded, or a run"):
        export_model(halves("clip"), tmp_path / "other", "open_clip", photos(), CLASSES)
    with pytest.raises(ValueError, match="not read by a tokenizer of transformers"):
        export_model(trained, tmp_path / "other", "transformers", photos(), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_public_clip_leaves_as_its_own_stock_class(tiny_clips, tmp_path):
    from transformers import CLIPModel

    # saved and read again: the scale comes from there, not from a fresh model of the library
    model = zk.load_model(tiny_clips["clip"])
    model.log_logit_scale.fill_(2.5)
    model.save_pretrained(tmp_path / "saved")
    model = zk.from_pretrained(tmp_path / "saved")
    export_model(model, tmp_path / "out", "transformers", photos(), CLASSES)
    assert not (tmp_path / "out" / "zslkit.json").exists()
    theirs = CLIPModel.from_pretrained(tmp_path / "out")
    assert theirs.logit_scale.item() == pytest.approx(2.5)


def test_checkpoints_in_half_precision_are_computed_in_single(tiny_clips, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_clips["clip"])
    shutil.copytree(tiny_clips["clip"], tmp_path / "half")
    config.dtype = "float16"
    config.save_pretrained(tmp_path / "half")
    model = zk.load_model(tmp_path / "half")
    model.save_pretrained(tmp_path / "saved")
    again = zk.from_pretrained(tmp_path / "saved")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    export_model(again, tmp_path / "out", "transformers", photos(), CLASSES)


def test_an_export_replaces_an_earlier_one_as_a_whole(dual, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_model(dual, out, "sentence-transformers", photos(), CLASSES)
    export_model(dual, out, "sentence-transformers", photos(), CLASSES)
    export_model(dual, out, "zslkit", photos(), CLASSES[:2])
    assert not (out / "modules.json").exists()
    assert zk.from_pretrained(out).class_bank.class_names == tuple(CLASSES[:2])
    write, read = exporting._WRITERS["zslkit"]

    def spoil(folder, model):
        images, texts, scale = read(folder, model)
        return images, texts, scale * 1.1

    monkeypatch.setitem(exporting._WRITERS, "zslkit", (write, spoil))
    with pytest.raises(ValueError, match=r"not the same model: .* the scale by 0\.1,"):
        export_model(dual, out, "zslkit", photos(), CLASSES)
    assert zk.from_pretrained(out).class_bank.class_names == tuple(CLASSES[:2])  # the earlier one
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_saving_again_leaves_no_classes_of_before(dual, tiny_clips, tmp_path):
    dual.save_pretrained(tmp_path, zk.build_class_bank(dual, CLASSES, "none"))
    zk.load_model(tiny_clips["open_clip"]).save_pretrained(tmp_path)
    assert zk.from_pretrained(tmp_path).class_bank is None


@pytest.mark.parametrize("kind", ["ours", "clip"])
def test_sentence_transformers_encodes_texts_and_images(dual, tiny_clips, kind, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = dual if kind == "ours" else zk.load_model(tiny_clips["clip"])
    parity = export_model(model, tmp_path / "out", "sentence-transformers", photos(), CLASSES)
    assert max(parity[:2]) < 1e-5
    other = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=False)
    with torch.no_grad():
        expected = model.encode_text(CLASSES).numpy()
    np.testing.assert_allclose(other.encode(CLASSES), expected, atol=1e-5)
    assert other.encode(photos()).shape == (3, expected.shape[1])
    assert (tmp_path / "out" / "texts").is_dir() == (kind == "ours")  # a CLIP needs no second form


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_the_texts_of_a_run_are_embedded_by_modules_of_sentence_transformers_alone(
    dual, projection, tmp_path, monkeypatch
):
    from sentence_transformers import SentenceTransformer

    settings = dual.config.model_dump() | {"projection": projection}
    model = build_dual_encoder(RunConfig(**settings)).eval()
    assert has_sentence_modules(model)
    write_texts(model, tmp_path / "texts")
    kinds = [part["type"] for part in json.loads((tmp_path / "texts/modules.json").read_text())]
    assert all(kind.startswith("sentence_transformers.") for kind in kinds)
    assert len(kinds) == (6 if projection == "mlp" else 5)
    long = ["dog " * 200, *CLASSES]  # longer than max_tokens
    found = SentenceTransformer(str(tmp_path / "texts"), device="cpu").encode(long)
    with torch.no_grad():
        np.testing.assert_allclose(found, model.encode_text(long).numpy(), atol=1e-6)
    monkeypatch.setattr(model, "encode_text", lambda texts: torch.zeros(len(texts), 16))
    with pytest.raises(ValueError, match="format='sentence-transformers': texts deviates by 0"):
        write_texts(model, tmp_path / "wrong")


@pytest.mark.parametrize("kind", ["ours", "clip", "siglip", "open_clip"])
def test_onnx_graphs_give_the_same_with_onnxruntime_alone(dual, tiny_clips, kind, tmp_path):
    model = dual if kind == "ours" else zk.load_model(tiny_clips[kind])
    parity = export_model(model, tmp_path / "out", "onnx", photos(), CLASSES)
    assert parity.n_equal == 3
    assert max(parity[:2]) < 1e-5
    photos()[0].save(tmp_path / "photo.png")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "out" / "example.py"), str(tmp_path / "photo.png"),
         *(["--classes", "dog,a café", "--template", "{}"] if kind == "ours" else [])],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ["dog", "a café"] if kind == "ours" else CLASSES
    templates = "none" if kind == "ours" else "simple"
    ours = zk.ZeroShotClassifier(model, names, templates).predict(photos()[0], k=len(names))
    lines = [f"  {row.probability:6.1%}  {row.class_name}" for row in ours]
    assert done.stdout.splitlines()[1:] == lines


def test_an_export_that_differs_is_no_success_and_leaves_nothing(dual, tmp_path, monkeypatch):
    write, read = exporting._WRITERS["zslkit"]

    def spoil(folder, model):
        images, texts, scale = read(folder, model)
        return images, lambda items: texts(items).roll(1, dims=0), scale

    monkeypatch.setitem(exporting._WRITERS, "zslkit", (write, spoil))
    with pytest.raises(ValueError, match="not the same model: images deviate by 0, texts by 0"):
        export_model(dual, tmp_path / "out", "zslkit", photos(), CLASSES)
    assert not (tmp_path / "out").exists()


def test_equal_rankings_are_not_enough_where_embeddings_differ(dual):
    transform = dual.image_transform(train=False)

    def images(items):
        with torch.no_grad():
            return dual.encode_image(torch.stack([transform(item) for item in items])) * 0.9

    parity = compare(dual, (images, dual.encode_text), photos(), CLASSES)
    assert parity.n_equal == 3
    assert not parity.holds


class Bare:
    """A model with the four names alone."""

    logit_scale = encode_image = encode_text = image_transform = None


def test_what_cannot_be_exported_is_said(dual, tiny_settings, tmp_path, monkeypatch):
    small = build_dual_encoder(RunConfig(**tiny_settings))
    for model, format, words in (
        (dual, "onx", "no such format; did you mean onnx"),
        (small, "onnx", "text_encoder='small': its texts are not read by a tokenizer"),
    ):
        with pytest.raises(ValueError, match=words):
            export_model(model, tmp_path / "out", format, photos(), CLASSES)
    with pytest.raises(ValueError, match="Bare: has no save_pretrained; export takes"):
        export_model(Bare(), tmp_path / "out", "zslkit", photos(), CLASSES)
    with pytest.raises(ValueError, match="photos: none given"):
        export_model(dual, tmp_path / "out", "onnx", [], CLASSES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_model(dual, tmp_path / "full", "onnx", photos(), CLASSES)
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnxscript; pip install 'zslkit\[export\]'"):
        export_model(dual, tmp_path / "out", "onnx", photos(), CLASSES)
