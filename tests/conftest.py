"""Fixtures of all tests."""

import json
import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tensors are tiny here: a second thread would only wait


@pytest.fixture(scope="session")
def shared_data():
    """Folder with the real photos; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ZSLKIT_DATA", default))
    if not (folder / "flickr8k").is_dir():
        pytest.skip(f"no real photos in {folder}; set ZSLKIT_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory):
    """Settings of a run that takes a second, on 32 toy scenes of 32 pixels."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    splits = {split: {"scenes": split, "n": 32} for split in ("train", "test")}
    manifest = {"name": "tiny", "kind": "toy", **words, "image_size": 32, "splits": splits}
    path.write_text(json.dumps(manifest))
    return {
        "manifest": str(path),
        "zeroshot_manifest": str(path),
        "image_encoder": "timm:test_resnet",
        "image_size": 32,
        "embedding_dim": 16,
        "batch_size": 8,
        "epochs": 1,
        "cache_dir": None,
    }


@pytest.fixture(scope="session")
def language_model(tmp_path_factory):
    """Save a random GPT-2 of two layers whose tokens are bytes; give its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("language_model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate(["<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 512, "vocab_size": len(words)}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    # ten times the usual deviation: answers then depend on the question
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.2)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory):
    """Random CLIP, SigLIP (transformers folders) and open_clip checkpoints of 32 pixels."""
    import open_clip
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
    )

    root = tmp_path_factory.mktemp("clips")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*letters, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = [(name, words[name]) for name in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>",
                                     pad_token="<end>", bos_token="<start>")  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": len(words), "eos_token_id": words["<end>"],
            "bos_token_id": words["<start>"], "pad_token_id": words["<end>"]}  # fmt: skip
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config={**text, "max_position_embeddings": 77},
                                vision_config=vision, projection_dim=24))  # fmt: skip
    size = {"height": 32, "width": 32}
    crop = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    siglip = SiglipModel(SiglipConfig(text_config={**text, "max_position_embeddings": 16,
                                                   "projection_size": 32},
                                      vision_config=vision))  # fmt: skip
    with torch.no_grad():
        siglip.logit_bias.fill_(-3.0)
        siglip.logit_scale.fill_(2.0)
    squash = SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for name, model, processor in (("clip", clip, crop), ("siglip", siglip, squash)):
        for part in (model, processor, tokens):
            part.save_pretrained(root / name)
    settings = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4,
                     "layers": 2},
    }  # fmt: skip
    (root / "tiny-quickgelu.json").write_text(json.dumps(settings))
    open_clip.add_model_config(root / "tiny-quickgelu.json")
    weights = open_clip.create_model("tiny-quickgelu").state_dict()
    save_file({k: v.contiguous() for k, v in weights.items()}, root / "tiny.safetensors")
    return {
        "clip": root / "clip",
        "siglip": root / "siglip",
        "open_clip": f"open_clip:tiny-quickgelu/{root / 'tiny.safetensors'}",
    }
