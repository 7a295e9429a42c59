"""One policy for images that cannot be read: left out, and named."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from zslkit.data.embedding import Photos, embed_batches, in_blocks, readable_pairs
from zslkit.data.pairs import Pair


def brightness(pixels):
    return pixels.float().mean(dim=(2, 3))


def as_pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) if isinstance(
        image, Image.Image) else image  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    Image.new("RGB", (4, 4), (30, 0, 0)).save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    grey = torch.full((3, 4, 4), 7, dtype=torch.uint8)
    return Photos([tmp_path / "good.png", tmp_path / "torn.png", Image.new("RGB", (4, 4)), grey,
                   str(tmp_path / "absent.png")])  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_left_out_and_named(photos, workers):
    batches = [np.array([3, 1]), np.array([4]), np.array([0, 2])]
    first, none, last = embed_batches(
        brightness, photos, batches, transform=as_pixels, workers=workers
    )
    assert first.rows.tolist() == [3]
    assert first.vectors.tolist() == [[7, 7, 7]]
    assert first.broken[0].endswith("torn.png")
    assert (none.rows.tolist(), none.vectors) == ([], None)
    assert none.broken[0].endswith("absent.png")
    assert last.vectors.tolist() == [[30, 0, 0], [0, 0, 0]]
    assert last.broken == ()


def test_images_without_a_file_are_named_by_their_number(photos):
    assert len(photos) == 5
    assert photos.keys[2:4] == ["image 2", "image 3"]


def test_pairs_to_look_at_are_those_that_can_be_read(photos):
    pairs = [Pair(key, ("",), None, partial(photos.read_pixels, i))
             for i, key in enumerate(photos.keys)]  # fmt: skip
    assert [pair.key for pair in readable_pairs(pairs, [3, 1, 2, 4])] == ["image 3", "image 2"]


def test_blocks_cover_all_positions_once():
    assert [block.tolist() for block in in_blocks(5, 2)] == [[0, 1], [2, 3], [4]]
    assert in_blocks(0, 2) == []
