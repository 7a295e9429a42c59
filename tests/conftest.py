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
