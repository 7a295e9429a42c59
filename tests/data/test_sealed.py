"""Damage of any kind to any file of a sealed folder is noticed and named."""

import contextlib
import json
import random

import pytest

from zslkit.data.files import write_text
from zslkit.data.sealed import (
    MANIFEST,
    checksum,
    damage,
    note,
    read_sealed,
    seal,
    spoilt,
    write_noted,
    write_sealed,
)


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


def test_every_bit_of_a_sealed_file_counts(tmp_path):
    path, facts = tmp_path / "facts.json", {"step": 1, "names": ["a", "ü"], "none": None}
    write_sealed(path, facts)
    assert read_sealed(path) == facts
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match="facts.json' is damaged"):
                read_sealed(path)
    for text in ("", "[]", "[" * 100_000, '{"sha256": "x"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="facts.json' is damaged"):
            read_sealed(path)


def test_noted_files_that_change_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert spoilt(tmp_path) == {}  # nothing was noted
    note(tmp_path / "a", tmp_path / "b")
    assert spoilt(tmp_path) == {}
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").unlink()
    assert spoilt(tmp_path) == {"a": "its SHA-256 differs", "b": "it is missing"}
    note(tmp_path / "a")  # written anew; the other is still known
    assert spoilt(tmp_path) == {"b": "it is missing"}
    (tmp_path / "checksums.json").write_text("{}")
    assert spoilt(tmp_path) == {"checksums.json": "it is damaged"}
    note(tmp_path / "a")
    assert spoilt(tmp_path) == {}
    assert checksum(tmp_path / "none") == EMPTY


def test_a_kill_between_a_file_and_its_note_spoils_nothing(tmp_path, monkeypatch):
    """What was there before and what was coming are both sound."""
    texts = {tmp_path / "a": "one", tmp_path / "b": "two"}
    calls = []

    def die(path, text):
        calls.append(path.name)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr("zslkit.data.sealed.write_text", die)
    for round_ in ("first", "second"):
        for fatal in (1, 2, 3, 4, 0):
            calls.clear()
            with contextlib.suppress(KeyboardInterrupt):
                write_noted({path: round_ + text for path, text in texts.items()})
            assert len(calls) == (fatal or 4)  # the list, both files, the list
            assert spoilt(tmp_path) == {}
    (tmp_path / "b").write_text("three")
    assert spoilt(tmp_path) == {"b": "its SHA-256 differs"}


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing, as every table has it."""
