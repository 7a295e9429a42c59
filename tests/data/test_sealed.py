"""Damage of any kind to any file of a sealed folder is noticed and named."""

import json
import random

import pytest

from zslkit.data.sealed import MANIFEST, damage, seal


@pytest.fixture
def folder(tmp_path):
    """Three files of different kinds, sealed."""
    (tmp_path / "weights.bin").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "state.json").write_text(json.dumps({"step": 12, "broken": ["a", "b"]}))
    (tmp_path / "empty").write_bytes(b"")
    seal(tmp_path)
    return tmp_path


def test_what_nobody_touched_is_sound(folder):
    assert damage(folder) is None
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert {name: facts["size"] for name, facts in listed.items()} == {
        "empty": 0,
        "state.json": 34,
        "weights.bin": 5000,
    }
    # of the empty text, as every table of SHA-256 has it
    assert listed["empty"]["sha256"].startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_two_hundred_flipped_bits_are_all_noticed(folder):
    rng = random.Random(1)
    names = ["weights.bin", "state.json", MANIFEST]
    for _ in range(200):
        path = folder / rng.choice(names)
        sound = path.read_bytes()
        data = bytearray(sound)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert damage(folder) is not None
        path.write_bytes(sound)
    assert damage(folder) is None


def test_half_zeroed_weights_are_noticed(folder):
    path = folder / "weights.bin"
    path.write_bytes(path.read_bytes()[:2500] + bytes(2500))
    assert damage(folder) == "weights.bin is not what was written (its SHA-256 differs)"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "weights.bin").write_bytes(b"x" * 40), "weights.bin has 40 bytes, not 5,0"),
        (lambda f: (f / "weights.bin").unlink(), "weights.bin: No such file"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.json: No such file"),
        (lambda f: (f / MANIFEST).write_text('{"files": {"weights'), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_text("{}"), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_text("[1]"), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_text('{"files": {"empty": 1}}'), "manifest.json is damag"),
        (lambda f: (f / MANIFEST).write_text('{"files": {}}'), "manifest.json lists no file"),
        (lambda f: [path.unlink() for path in f.iterdir()], "it is empty"),
    ],
)
def test_damage_is_named(folder, spoil, message):
    spoil(folder)
    assert damage(folder).startswith(message)


def test_a_folder_that_is_not_there(tmp_path):
    assert damage(tmp_path / "nothing") == "nothing: No such file or directory"
