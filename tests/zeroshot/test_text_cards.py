"""Sentence encoders are read as sentence-transformers reads them."""

import json

import numpy as np
import pytest
import torch

from zslkit.data.weights import fingerprint
from zslkit.encoders.text import TextTower
from zslkit.zeroshot.models.texts import TextCard, read_card

TEXTS = ["a dog", "two cats on a mat", "b"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Random encoders of three poolings, saved by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizer

    root = tmp_path_factory.mktemp("encoders")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "two", "cats", "on", "mat"]
    pieces += ["query", ":"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    network = BertModel(BertConfig(vocab_size=13, intermediate_size=64, **sizes))
    for name, side in (("bert", "right"), ("left", "left")):
        network.save_pretrained(root / name)
        BertTokenizer(vocab=vocabulary, padding_side=side).save_pretrained(root / name)
    folders = {"none": root / "bert"}
    for mode, options in {
        "mean": {}, "cls": {}, "lasttoken": {},
        "prompt": {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
        "unpooled": {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    }.items():  # fmt: skip
        transformer = Transformer(str(root / ("left" if mode == "lasttoken" else "bert")))
        pooling = mode if mode in ("cls", "lasttoken") else "mean"
        parts = [transformer, Pooling(32, pooling, include_prompt=mode != "unpooled")]
        model = SentenceTransformer(modules=parts, device="cpu", **options)
        model.save(str(root / mode))
        folders[mode] = root / mode
    return folders


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "prompt", "unpooled"])
def test_embeddings_are_those_of_sentence_transformers(encoders, mode):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(encoders[mode]), device="cpu", trust_remote_code=False)
    tower = TextTower(f"hf:{encoders[mode]}", "pretrained", 32).eval()
    with torch.no_grad():
        found = tower(TEXTS).numpy()
    np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)
    assert tower.tokenizer.padding_side == ("left" if mode == "lasttoken" else "right")


def test_poolings_differ_and_none_is_a_mean(encoders):
    with torch.no_grad():
        found = {
            mode: TextTower(f"hf:{folder}", "pretrained", 32).eval()(TEXTS)
            for mode, folder in encoders.items()
        }
    assert torch.allclose(found["none"], found["mean"], atol=1e-6)
    others = [found[mode] for mode in ("mean", "cls", "lasttoken", "prompt", "unpooled")]
    for i, one in enumerate(others):
        assert all((one - other).abs().max() > 1e-3 for other in others[:i])


def test_features_of_another_card_are_not_taken_for_these(encoders):
    tower = TextTower(f"hf:{encoders['mean']}", "pretrained", 32)
    before = fingerprint(tower)
    tower.card = TextCard("cls")
    assert fingerprint(tower) != before


def test_padding_on_either_side_changes_no_pooling():
    hidden = torch.arange(12.0).view(1, 4, 3)
    for mask, first, last in (([1, 1, 0, 0], 0, 1), ([0, 0, 1, 1], 2, 3)):
        mask = torch.tensor([mask])
        assert torch.equal(TextCard("cls").pool(hidden, mask)[0], hidden[0, first])
        assert torch.equal(TextCard("lasttoken").pool(hidden, mask)[0], hidden[0, last])
        mean = hidden[0, [first, last]].mean(dim=0)
        assert torch.allclose(TextCard().pool(hidden, mask)[0], mean)
        assert torch.allclose(TextCard().pool(hidden, mask, 1)[0], hidden[0, last])


def write(folder, modules, pooling=None, prompts=None):
    folder.mkdir(exist_ok=True)
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path}
              for kind, path in modules]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts or {}))


def test_cards_of_older_versions_are_read(tmp_path):
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write(tmp_path, modules, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    assert read_card(str(tmp_path)) == TextCard("cls")
    write(tmp_path, modules, {"pooling_mode_lasttoken": True, "include_prompt": False},
          {"prompts": {"x": "q: ", "y": "d: "}, "default_prompt_name": "y"})  # fmt: skip
    assert read_card(str(tmp_path)) == TextCard("lasttoken", "d: ", False)
    write(tmp_path, modules, {"pooling_mode_mean_tokens": True},
          {"prompts": {"query": "q: "}, "default_prompt_name": None})  # fmt: skip
    assert read_card(str(tmp_path)) == TextCard()  # no default: the caller would have to choose


def test_what_a_card_asks_in_vain_is_said(tmp_path):
    write(tmp_path, [("Pooling", "1_Pooling")], {"pooling_mode_max_tokens": True})
    with pytest.raises(ValueError, match="its card pools by max; mean, cls, lasttoken are"):
        read_card(str(tmp_path))
    write(tmp_path, [("WordEmbeddings", "")])
    with pytest.raises(ValueError, match=r"its modules\.json has a WordEmbeddings; Transformer"):
        read_card(str(tmp_path))
