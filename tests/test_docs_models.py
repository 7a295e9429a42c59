"""The code blocks of the pages on models run, in order, as they stand."""

import re
from pathlib import Path

import pytest

import zslkit as zk
from zslkit.data.pairs import open_pairs

DOCS = Path(__file__).parents[1] / "docs"


def run_page(name, **names):
    """Execute the Python blocks of a page one after the other, in one namespace."""
    page = (DOCS / name).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, block {number}", "exec"), names)
    return names


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pair in enumerate(open_pairs("toy", "seen", max_pairs=3)):
        pair.image.save(folder / f"{i}.png")
    return folder


def test_models_in(tiny_clips, photos, tmp_path):
    names = {"CLIP": f"hf:{tiny_clips['clip']}", "PHOTO": photos / "0.png"}
    found = run_page("models-in.md", **names, CACHE=str(tmp_path / "cache"))
    assert found["run"].facts.steps == 2


def test_models_out(tiny_settings, photos, tmp_path):
    run = tmp_path / "run"
    zk.train(zk.RunConfig(**{**tiny_settings, "output_dir": str(run)}))
    found = run_page("models-out.md", RUN=str(run), PHOTOS=str(photos), OUT=str(tmp_path / "out"))
    assert found["named"].n_images == 3
    assert found["parity"].n_equal == 3
