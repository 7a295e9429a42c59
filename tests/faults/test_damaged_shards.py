"""Flipped bits and cuts in a real shard: no pair is lost without a word.

Twenty of each here; ``ZSLKIT_FAULTS=400`` makes it four hundred.
"""

import json
import os
import random
from collections import Counter

import pytest

from zslkit.data.pairs import open_pairs

TRIES = int(os.environ.get("ZSLKIT_FAULTS", "20"))


@pytest.fixture(scope="module")
def shard(shared_data):
    """A real shard: 91 pairs, few enough that one lost pair is over the limit of a harvest."""
    return (shared_data / "flickr8k" / "flickr8k-000008.tar").read_bytes()


def open_shard(folder, data):
    (folder / "0.tar").write_bytes(data)
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    splits = {"train": {"shards": ["0.tar"]}}
    content = {"name": "mine", "kind": "shards", **words, "splits": splits}
    (folder / "mine.json").write_text(json.dumps(content | {"caption_field": "captions"}))
    return open_pairs(folder / "mine.json", "train")


def outcome(folder, data, keys):
    """Say how damage ends: named in an error, or nothing lost; anything else is an error here."""
    try:
        pairs = open_shard(folder, data)
    except ValueError as error:
        if "0.tar" not in str(error):
            raise  # it must say which shard
        return "header named" if "at offset" in str(error) else "caption named"
    assert sorted(pairs.keys.tolist() + list(pairs.skipped)) == keys
    assert not pairs.skipped or pairs.faults
    return "all there"


def test_no_flipped_bit_loses_a_pair_silently(shard, tmp_path):
    keys, rng, ends = sorted(open_shard(tmp_path, shard).keys.tolist()), random.Random(0), Counter()
    headers = [i for i in range(0, len(shard), 512) if shard[i + 257 : i + 262] == b"ustar"]
    for attempt in range(TRIES):
        # half of them where they hurt: headers are a small part of a shard
        start, size = (rng.choice(headers), 512) if attempt % 2 else (0, len(shard))
        damaged, place = bytearray(shard), start + rng.randrange(size)
        damaged[place] ^= 1 << rng.randrange(8)
        ends[outcome(tmp_path, bytes(damaged), keys)] += 1
    print(f"{TRIES} flipped bits: {dict(ends)}")
    assert ends["header named"] >= TRIES // 2


def test_no_cut_loses_a_pair_silently(shard, tmp_path):
    keys, rng, ends = sorted(open_shard(tmp_path, shard).keys.tolist()), random.Random(1), Counter()
    last = len(shard.rstrip(b"\0"))  # behind it lies the end mark
    for attempt in range(TRIES):
        # half of them between two blocks, as full disks and broken downloads make them
        place = rng.randrange(last) if attempt % 2 else rng.randrange(last // 512) * 512
        ends[outcome(tmp_path, shard[:place], keys)] += 1
    print(f"{TRIES} cuts: {dict(ends)}")
    assert ends == {"header named": TRIES}
