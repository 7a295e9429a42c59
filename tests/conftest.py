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
