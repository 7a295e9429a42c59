import json
import os
import random
import signal
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


def test_a_replaced_image_of_equal_size_is_embedded_again(photos, tmp_path):
    """Sizes alone used to tell images apart, and stale features were trained on."""
    cache, path = tmp_path / "cache", tmp_path / "3.bmp"
    photos()  # writes the manifest
    for colour in ((9, 9, 9), (200, 9, 9)):
        Image.new("RGB", (8, 8), colour).save(path)
        (tmp_path / "pairs.csv").write_text("image,caption\n3.bmp,one\n")
        features = embed(MeanColour(), open_pairs(tmp_path / "mine.json", "train"), cache,
                         image_size=16).features  # fmt: skip
        assert features[0].tolist() == list(colour)
    assert len(entries(cache)) == 2


def test_of_very_many_bytes_a_sample_of_images_is_hashed(photos, monkeypatch):
    import zslkit.data.source as source

    whole = photos().image_fingerprint
    monkeypatch.setattr(source, "HASHED_WHOLE", 10)
    read, raw = [], source.Source.raw
    monkeypatch.setattr(source.Source, "raw", lambda s, row: read.append(row) or raw(s, row))
    monkeypatch.setattr(source, "HASHED_SOME", 2)
    assert photos().image_fingerprint != whole
    assert read == [0, 3]


def test_a_flipped_bit_in_an_entry_is_named_and_the_entry_computed_again(tmp_path):
    rng, tower = random.Random(0), LetterCounts()
    expected = embed(tower, TEXTS, tmp_path).features.clone()
    (array,) = tmp_path.glob("*.npy")
    for path in [array, array.with_suffix(".json")] * 15:
        sound = bytearray(path.read_bytes())
        sound[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        path.write_bytes(sound)
        with pytest.warns(UserWarning, match=f"{path.name}' is damaged.*computed again"):
            assert torch.equal(embed(tower, TEXTS, tmp_path).features, expected)
    array.with_suffix(".json").unlink()
    with pytest.warns(UserWarning, match="No such file.*computed again"):
        embed(tower, TEXTS, tmp_path)
    tower.may_run = False
    assert torch.equal(embed(tower, TEXTS, tmp_path).features, expected)


class Stopped(LetterCounts):
    """Gets a signal while it embeds the block of a number."""

    def __init__(self, at, signum=signal.SIGTERM):
        super().__init__()
        self.at, self.signum = at, signum

    def forward(self, texts):
        if len(self.calls) == self.at:
            os.kill(os.getpid(), self.signum)
        return super().forward(texts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_features_are_cached_keeps_what_is_finished(tmp_path, number):
    whole = embed(LetterCounts(), TEXTS, None, batch_size=7).features
    seen = []
    before = signal.signal(number, lambda signum, frame: seen.append(signum))
    try:
        tower = Stopped(2, number)  # whoever catches it outside goes on
        assert torch.equal(embed(tower, TEXTS, tmp_path / "on", batch_size=7).features, whole)
        assert seen == [number]
        assert len(tower.calls) == 6

        def leave(signum, frame):
            raise SystemExit(128 + signum)

        signal.signal(number, leave)
        with pytest.raises(SystemExit):
            embed(Stopped(2, number), TEXTS, tmp_path / "off", batch_size=7)
    finally:
        signal.signal(number, before)
    assert entries(tmp_path / "off") == []
    tower = LetterCounts()
    assert torch.equal(embed(tower, TEXTS, tmp_path / "off", batch_size=7).features, whole)
    assert len(tower.calls) == 3  # of six blocks, three were there
    assert sorted(path.suffix for path in (tmp_path / "off").iterdir()) == [".json", ".npy"]


def test_parts_survive_a_kill_and_damaged_ones_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr("zslkit.data.parts.ITEMS", 7)

    class Killed(LetterCounts):
        def forward(self, texts):
            if len(self.calls) == 4:
                raise OSError("killed")
            return super().forward(texts)

    with pytest.raises(OSError, match="killed"):
        embed(Killed(), TEXTS, tmp_path, batch_size=7)
    parts = sorted(tmp_path.glob("*.parts/*.safetensors"))
    assert len(parts) == 4
    data = bytearray(parts[2].read_bytes())
    data[-3] ^= 4
    parts[2].write_bytes(data)
    tower = LetterCounts()
    assert embed(tower, TEXTS, tmp_path, batch_size=7).features[:, 2].tolist() == list(range(40))
    assert len(tower.calls) == 4  # two parts were sound, of six


def test_parts_that_another_process_writes_are_left_alone(tmp_path):
    from zslkit.data.parts import parts_in

    with parts_in(tmp_path / "x") as first, parts_in(tmp_path / "x") as second:
        assert first.folder == tmp_path / "x"
        assert second.folder is None
        second.add(np.arange(2), np.ones((2, 1)), ())
        second.flush()
    assert list((tmp_path / "x").iterdir()) == []


def test_broken_images_of_finished_parts_stay_known(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("zslkit.data.parts.ITEMS", 2)
    (tmp_path / "1.png").write_bytes(b"not an image")

    class Killed(MeanColour):
        def forward(self, pixels):
            if len(self.calls) == 2:
                raise OSError("killed")
            return super().forward(pixels)

    options = {"image_size": 16, "batch_size": 2}
    with pytest.raises(OSError, match="killed"):
        embed(Killed(), photos(), tmp_path / "cache", **options)
    tower = MeanColour()
    features, broken = embed(tower, photos(), tmp_path / "cache", **options)
    assert (broken, tower.calls) == (("1.png",), [1])
    assert features[:, 0].tolist() == [0, 0, 80, 120, 160]
