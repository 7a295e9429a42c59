"""The recipes for large machines take real steps, on small random networks of the same classes."""

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

import zslkit as zk


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """A random BERT of two layers, as BGE and DeCLUTR-sci are, that pools its first token."""
    folder = tmp_path_factory.mktemp("bert")
    pieces = [f"[{mark}]" for mark in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    pieces += ["a", "photo", "of", "red", "blue", "star", "box", "circle", "."]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    network = BertModel(BertConfig(vocab_size=len(pieces), intermediate_size=64, **sizes))
    network.save_pretrained(folder)
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.mark.parametrize(
    ("preset", "image_encoder"),
    [("modern", "timm:vit_tiny_patch16_dinov3_qkvb"), ("paper", "torchvision:resnet50")],
)
def test_a_recipe_takes_real_steps(
    tiny_settings, tmp_path, sentence_encoder, preset, image_encoder
):
    full = zk.RunConfig.preset(preset)
    # networks, data and the length of the run are small; all else is the recipe's
    own = {"image_encoder": image_encoder, "image_weights": "none", "image_size": 32}
    own |= {"text_encoder": sentence_encoder, "max_steps": 3, "batch_size": 16, "warmup_steps": 0}
    data = {name: tiny_settings[name] for name in ("manifest", "zeroshot_manifest")}
    own |= {**data, "workers": 0, "cache_dir": None, "output_dir": str(tmp_path)}
    config = zk.RunConfig.preset(preset, **own)
    assert config.soft_targets == full.soft_targets
    before = zk.build_dual_encoder(config)
    run = zk.train(config)
    assert [row["step"] for row in run.history] == [1, 2, 3]
    after = run.model.state_dict()
    moved = {name for name, tensor in before.state_dict().items() if not tensor.equal(after[name])}
    assert {"image_projection.1.weight", "text_projection.1.weight"} <= moved
    frozen = full.image_tower == "frozen"
    assert frozen == (not any(name.startswith("image_tower") for name in moved))
    assert frozen == (not any(name.startswith("text_tower") for name in moved))
    assert ("distillation_loss" in run.history[-1]) == (preset == "paper")
    assert 0 <= zk.evaluate(run.model, config)["zeroshot"]["hit@1"]["value"] <= 1
