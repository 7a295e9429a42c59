"""Fixtures of all tests."""

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
