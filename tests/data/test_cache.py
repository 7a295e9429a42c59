import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zslkit.data.cache import embed
from zslkit.data.pairs import open_pairs

TEXTS = [f"caption {'very ' * (7 * i % 11)}number {i}" for i in range(40)]


class LetterCounts(nn.Module):
    """A text tower of which every feature can be told by hand, and that counts its calls."""

    feature_dim, name = 3, "letters"

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls, self.may_run = [], True

    def forward(self, texts):
        assert self.may_run, "the entry should have come from disk"
        self.calls.append(list(texts))
        rows = [[len(text), text.count("e"), int(text.split()[-1])] for text in texts]
        return self.weight * torch.tensor(rows).float()


class MeanColour(nn.Module):
    """An image tower: mean red, green and blue."""

    feature_dim, name = 3, "colour"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls, self.may_run = [], True

    def forward(self, pixels):
        assert self.may_run, "the entry should have come from disk"
        self.calls.append(len(pixels))
        return pixels.float().mean(dim=(2, 3)) * self.weight


@pytest.fixture
def photos(tmp_path):
    """Write five plain photos and a table, and give a function that opens them."""
    for number in range(5):
        Image.new("RGB", (40, 30), (40 * number, 10, 0)).save(tmp_path / f"{number}.png")
    manifest = {
        **{"name": "mine", "kind": "table", "title": "t", "licence": "x", "how_to_obtain": "x"},
        **{"caption_field": "caption", "splits": {"train": {"table": "pairs.csv"}}},
    }
    (tmp_path / "mine.json").write_text(json.dumps(manifest))

    def open_photos(caption="a plain photo", **options):
        rows = "".join(f"{number}.png,{caption} {number}\n" for number in range(5))
        (tmp_path / "pairs.csv").write_text("image,caption\n" + rows)
        return open_pairs(tmp_path / "mine.json", "train", **options)

    return open_photos


def entries(folder):
    return sorted(path.name for path in folder.glob("*.npy"))


def test_texts_keep_their_order_though_batched_by_length(tmp_path):
    tower = LetterCounts()
    features = embed(tower, TEXTS, tmp_path, batch_size=7).features
    assert features[:, 2].tolist() == list(range(40))
    assert features[:, 0].tolist() == [len(text) for text in TEXTS]
    assert [len(call) for call in tower.calls] == [7] * 5 + [5]
    lengths = [len(text) for call in tower.calls for text in call]
    assert lengths == sorted(lengths)
    assert sorted(TEXTS, key=len) != TEXTS


def test_images_pass_in_batches_and_keep_their_order(photos, tmp_path):
    tower = MeanColour()
    features = embed(tower, photos(), tmp_path / "cache", image_size=16, batch_size=2).features
    assert tower.calls == [2, 2, 1]
    assert features.tolist() == [[40 * number, 10, 0] for number in range(5)]


def test_second_call_reads_from_disk_without_a_forward_pass(photos, tmp_path):
    letters, colour = LetterCounts(), MeanColour()
    first = embed(letters, TEXTS, tmp_path), embed(colour, photos(), tmp_path, image_size=16)
    letters.may_run = colour.may_run = False
    again = embed(letters, TEXTS, tmp_path), embed(colour, photos(), tmp_path, image_size=16)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.features, other.features)
        assert one.broken == other.broken == ()


def test_the_key_follows_weights_texts_and_their_order(tmp_path):
    embed(LetterCounts(), TEXTS, tmp_path)
    embed(LetterCounts(weight=1.001), TEXTS, tmp_path)
    embed(LetterCounts(), TEXTS[::-1], tmp_path)
    embed(LetterCounts(), TEXTS[:-1], tmp_path)
    # the same letters, cut elsewhere
    embed(LetterCounts(), ["1", "23"], tmp_path)
    embed(LetterCounts(), ["12", "3"], tmp_path)
    assert len(entries(tmp_path)) == 6
    assert embed(LetterCounts(), TEXTS[::-1], tmp_path).features[0, 2] == 39


def test_the_key_follows_image_size_and_images(photos, tmp_path):
    cache = tmp_path / "cache"
    embed(MeanColour(), photos(), cache, image_size=16)
    embed(MeanColour(), photos(), cache, image_size=24)
    embed(MeanColour(), photos(max_pairs=3), cache, image_size=16)
    assert len(entries(cache)) == 3
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "3.png")
    changed = embed(MeanColour(), photos(), cache, image_size=16).features
    assert len(entries(cache)) == 4
    assert changed[3, 1] > 11


def test_other_captions_leave_the_entry_of_the_images(photos, tmp_path):
    tower, cache = MeanColour(), tmp_path / "cache"
    noisy = {"caption_noise": 0.5, "seed": 1}
    before, after, swapped = photos(), photos("another text"), photos(**noisy)
    embed(tower, before, cache, image_size=16)
    assert before.manifest.checksum == after.manifest.checksum
    assert before.captions[0] != after.captions[0]
    assert swapped.swapped.any()
    tower.may_run = False
    embed(tower, after, cache, image_size=16)
    embed(tower, swapped, cache, image_size=16)


def test_broken_images_are_named_and_their_rows_are_zero(photos, tmp_path):
    (tmp_path / "2.png").write_bytes(b"not an image")
    tower, cache = MeanColour(), tmp_path / "cache"
    for may_run in (True, False):  # computed, then read
        tower.may_run = may_run
        features, broken = embed(tower, photos(), cache, image_size=16)
        assert broken == ("2.png",)
        assert features[2].tolist() == [0, 0, 0]
        assert features[3].tolist() == [120, 10, 0]


def test_features_are_memory_mapped_and_writing_to_them_spares_the_file(tmp_path, monkeypatch):
    loaded, load = [], np.load
    monkeypatch.setattr("numpy.load", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    features = embed(LetterCounts(), TEXTS, tmp_path).features
    assert isinstance(loaded[0], np.memmap)
    assert features.data_ptr() == loaded[0].ctypes.data
    expected = features.clone()
    features.zero_()
    assert torch.equal(embed(LetterCounts(), TEXTS, tmp_path).features, expected)


@pytest.mark.parametrize("at", ["facts", "array"])
def test_an_entry_that_was_being_written_is_never_read(tmp_path, monkeypatch, at):
    """Die in the middle of either file; what lies there afterwards must not count."""
    tower = LetterCounts()

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*(("json.dumps", die) if at == "facts" else ("numpy.save", die)))
        with pytest.raises(KeyboardInterrupt):
            embed(tower, TEXTS, tmp_path)
    assert entries(tmp_path) == []
    for torn in tmp_path.glob("*.json"):  # whole or absent
        json.loads(torn.read_text())
    half = tmp_path / "0123456789abcdef.77.tmp"
    half.write_bytes(b"\x93NUMPY half of it")
    n_calls = len(tower.calls)
    assert embed(tower, TEXTS, tmp_path).features[:, 2].tolist() == list(range(40))
    assert len(tower.calls) == 2 * n_calls
    assert half.read_bytes() == b"\x93NUMPY half of it"


def test_two_processes_share_one_entry(tmp_path):
    """A key must not depend on the process, as Python's hash of a text does."""
    script = (
        "import sys, torch, test_cache as t; from zslkit import embed; torch.set_num_threads(1);"
        "print(embed(t.LetterCounts(), t.TEXTS, sys.argv[1]).features.sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tower = LetterCounts()
    tower.may_run = False
    assert embed(tower, TEXTS, tmp_path).features.sum().item() == float(done.stdout)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tower = LetterCounts()
    first, again = (embed(tower, TEXTS, None).features for _ in range(2))
    assert torch.equal(first, again)
    assert len(tower.calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_tower_is_measured_in_eval_mode_and_gets_its_own_mode_back(tmp_path):
    class Dropping(LetterCounts):
        def forward(self, texts):
            assert not self.training
            return super().forward(texts)

    tower = Dropping().train()
    features = embed(tower, TEXTS, tmp_path).features
    assert tower.training
    assert not features.requires_grad
