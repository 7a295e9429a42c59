import numpy as np
import pytest
import torch

from zslkit.data.images import BrokenImageError
from zslkit.data.sampling import (
    CaptionDraw,
    caption_choice,
    draw_caption,
    epoch_order,
    iterate_batches,
    n_batches,
)


class FakePairs:
    """N tiny images whose pixels all equal their index; image 5 is broken where asked."""

    def __init__(self, n=50, broken=()):
        self.n, self.broken = n, broken
        self.keys = [f"key{i}" for i in range(n)]
        self.captions = [[f"{i}{c}" for c in "abcde"[: 1 + i % 5]] for i in range(n)]

    def __len__(self):
        return self.n

    def read_pixels(self, i):
        if i in self.broken:
            raise BrokenImageError(f"image {i}")
        return torch.full((3, 2, 2), i, dtype=torch.uint8)


def jitter(pixels):
    """An augmentation that shows every random number it drew."""
    return pixels + torch.randint(0, 100, pixels.shape, dtype=torch.uint8)


def unchanged(pixels):
    return pixels


def epoch(pairs, batch_size=4, transform=jitter, **options):
    return list(iterate_batches(pairs, batch_size, transform=transform, **options))


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a.pixels, b.pixels)
        and torch.equal(a.indices, b.indices)
        and (a.texts, a.keys, a.broken) == (b.texts, b.keys, b.broken)
        for a, b in zip(batches, others, strict=True)
    )


# --- order


@pytest.mark.parametrize("n", [1, 255, 256, 1000])
@pytest.mark.parametrize("block_size", [1, 7, 256])
def test_an_epoch_visits_every_pair_once(n, block_size):
    assert sorted(epoch_order(n, 0, 0, block_size).tolist()) == list(range(n))


def test_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(1000, 1, 2)
    assert np.array_equal(order, epoch_order(1000, 1, 2))
    for seed, number in [(1, 3), (2, 2), (2, 1)]:
        assert not np.array_equal(order, epoch_order(1000, seed, number))


def test_small_sets_are_shuffled_as_a_whole():
    order = epoch_order(60_000, 0, 0)
    # Of a uniform permutation, the first tenth holds a tenth of each tenth: 600 ± 22.
    counts = np.bincount(order[:6000] // 6000, minlength=10)
    assert np.all(abs(counts - 600) < 120)


def test_large_sets_are_shuffled_in_groups_of_blocks():
    n, block = 4096, 4  # 1024 blocks, four groups of 256
    group = epoch_order(n, 0, 0, block)[: 256 * block]
    blocks, counts = np.unique(group // block, return_counts=True)
    assert len(blocks) == 256
    assert np.all(counts == block)  # whole blocks: shards are read in runs
    assert np.any(np.diff(blocks) > 1)  # that lie anywhere
    assert np.any(np.diff(group[:block]) != 1)  # mixed within the group


# --- batches


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_epoch_equals_the_tail_of_the_whole_one(workers):
    pairs = FakePairs(broken={5})
    whole = epoch(pairs, seed=3, epoch=1)
    assert same(epoch(pairs, seed=3, epoch=1, start_batch=7, workers=workers), whole[7:])
    assert not same(epoch(pairs, seed=3, epoch=2), whole)
    assert not same(epoch(pairs, seed=4, epoch=1), whole)
    assert epoch(pairs, start_batch=12) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_neither_used_nor_changed(workers):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch(FakePairs(), workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(epoch(FakePairs(), workers=workers), first)


def test_augmentation_differs_between_images_and_epochs():
    drawn = [
        tuple((image - index).flatten().tolist())
        for number in (0, 1)
        for batch in epoch(FakePairs(), epoch=number)
        for index, image in zip(batch.indices, batch.pixels, strict=True)
    ]
    assert len(set(drawn)) == len(drawn) == 96


def test_rows_of_a_batch_belong_together():
    for batch in epoch(FakePairs(), transform=unchanged):
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (4, 3, 2, 2)
        assert batch.indices.dtype == torch.int64
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.indices.tolist()
        assert batch.keys == [f"key{i}" for i in batch.indices]
        assert [text[:-1] for text in batch.texts] == [str(int(i)) for i in batch.indices]


def test_ranks_share_each_global_batch_in_order():
    whole = epoch(FakePairs(), 12, seed=1)
    ranks = [epoch(FakePairs(), 4, seed=1, rank=rank, world_size=3) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [4, 4, 4] == [len(whole)] * 3
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)


def test_without_shuffle_and_drop_last_every_pair_comes_in_order():
    batches = epoch(FakePairs(10), shuffle=False, drop_last=False)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(epoch(FakePairs(10))) == 2


def test_block_size_changes_the_order():
    first, other = (epoch_order(40, 0, 0, block_size=size).tolist() for size in (256, 5))
    assert first != other


def test_broken_images_are_dropped_and_named():
    batches = epoch(FakePairs(10, broken={4, 5, 6, 7, 9}), shuffle=False, drop_last=False)
    assert [batch.broken for batch in batches] == [[], ["key4", "key5", "key6", "key7"], ["key9"]]
    assert [batch.keys for batch in batches[1:]] == [[], ["key8"]]
    assert batches[1].pixels.shape[0] == 0
    assert batches[2].pixels.shape[0] == len(batches[2].texts) == 1


def test_n_batches():
    assert n_batches(10, 4) == 2
    assert n_batches(10, 4, drop_last=False) == 3
    assert n_batches(10, 2, world_size=2) == 2
    assert n_batches(10, 2, drop_last=False, world_size=2) == 3
    assert n_batches(10, 10) == n_batches(3, 10, drop_last=False) == 1


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size=11 .*larger than the data, 10 pairs.*most 10"
    ):
        epoch(FakePairs(10), 11)
    with pytest.raises(ValueError, match=r"batch_size=6 for each of 2 .* at most 5"):
        n_batches(10, 6, world_size=2)


# --- captions


def test_each_caption_gets_its_turn():
    for n in (1, 3, 5):
        for first in (0, 8):
            drawn = [caption_choice(n, 0, number, 17) for number in range(first, first + n)]
            assert sorted(drawn) == list(range(n))


def test_first_captions_are_evenly_spread_and_depend_on_the_seed():
    index = np.arange(50_000)
    choice = caption_choice(5, 0, 0, index)
    counts = np.bincount(choice)
    assert np.all(abs(counts - 10_000) < 500)  # five standard deviations
    assert 0.15 < np.mean(choice == caption_choice(5, 1, 0, index)) < 0.25


def test_many_choices_at_once_equal_one_by_one():
    n_captions, index = np.array([1, 2, 5, 5, 3]), np.array([0, 9, 2, 700, 2**40])
    one_by_one = [
        caption_choice(int(n), 7, 3, int(i)) for n, i in zip(n_captions, index, strict=True)
    ]
    assert caption_choice(n_captions, 7, 3, index).tolist() == one_by_one
    assert isinstance(one_by_one[0], int)


def test_batches_use_the_drawn_captions():
    pairs = FakePairs()
    for batch in epoch(pairs, seed=2, epoch=3):
        expected = [draw_caption(pairs.captions[i], 2, 3, i) for i in batch.indices.tolist()]
        assert batch.texts == expected


def test_only_believed_captions_are_drawn_and_all_where_none_is():
    trust = np.array([0.9, 0.1, 0.8, 0.0, 0.1, 0.3])
    counts = np.array([3, 2, 1])
    draw = CaptionDraw(counts, trust)
    assert draw.rows.tolist() == [0, 2, 3, 4, 5]
    assert draw.counts.tolist() == [2, 2, 1]
    assert CaptionDraw(counts, trust, least=0.85).rows.tolist() == [0, 3, 4, 5]
    images = np.array([2, 0])
    seen = {tuple(draw(images, 7, epoch).tolist()) for epoch in range(4)}
    assert seen == {(5, 0), (5, 2)}
    everything = CaptionDraw(counts)
    first = np.array([0, 3, 5])
    for epoch in range(3):
        expected = first[images] + caption_choice(counts[images], 7, epoch, images)
        assert everything(images, 7, epoch).tolist() == expected.tolist()
