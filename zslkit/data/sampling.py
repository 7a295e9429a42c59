"""Pairs → batches: order, captions and augmentation are pure functions of (seed, epoch, index)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zslkit.data.images import BrokenImageError

_BLOCKS_MIXED = 256  # with blocks of 256, up to 65,536 pairs the order is a plain permutation


@dataclass(frozen=True)
class Batch:
    """B pairs made ready for the encoders, without those whose image could not be read."""

    pixels: Tensor  # (B, 3, S, S) uint8
    texts: list[str]  # one caption per image
    indices: Tensor  # (B,) int64, positions in the Pairs
    keys: list[str]
    broken: list[str]  # keys of the images that could not be read


def n_batches(n_pairs: int, batch_size: int, drop_last: bool = True, world_size: int = 1) -> int:
    """Count the batches of an epoch, the same for every process.

    Raises
    ------
    ValueError
        If ``drop_last`` and not even one batch can be filled.
    """
    rows = batch_size * world_size
    if drop_last and n_pairs < rows:
        raise ValueError(
            f"batch_size={batch_size} for each of {world_size} process(es) is larger than the "
            f"data, {n_pairs} pairs; take at most {n_pairs // world_size}"
        )
    return n_pairs // rows if drop_last else -(-n_pairs // rows)


def epoch_order(n_pairs: int, seed: int, epoch: int, block_size: int = 256) -> np.ndarray:
    """Return the order in which an epoch visits the pairs, (n_pairs,) int64.

    Blocks of neighbours are permuted, then the pairs within each group of blocks, so that large
    shards are still read in runs.
    """
    rng = np.random.default_rng([seed, epoch])
    blocks = rng.permutation(-(-n_pairs // block_size))
    order = (blocks[:, None] * block_size + np.arange(block_size)).ravel()
    order = order[order < n_pairs]  # the last block may be short
    for start in range(0, n_pairs, block_size * _BLOCKS_MIXED):
        rng.shuffle(order[start : start + block_size * _BLOCKS_MIXED])
    return order


def iterate_batches(
    pairs: Sequence,
    batch_size: int,
    *,
    transform: Callable[[Tensor], Tensor],
    seed: int = 0,
    epoch: int = 0,
    start_batch: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Go through one epoch, or the rest of it.

    Starting at batch k gives what an uninterrupted epoch gives from there, bit for bit, with any
    number of workers. The global random state is left alone.

    Parameters
    ----------
    pairs : Pairs
        What to read.
    batch_size : int
        Pairs per batch and process.
    transform : callable
        (3, H, W) uint8 → (3, S, S) uint8; may draw from torch's default CPU generator.
    seed, epoch : int
        Fix everything random.
    start_batch : int
        Batches of this epoch that are already done.
    shuffle : bool
        False keeps the order of ``pairs``.
    drop_last : bool
        Leave out a short last batch; if kept, it may be empty for the last processes.
    workers : int
        Processes that read images; 0 reads in this one.
    rank, world_size : int
        Process ``rank`` takes rows ``rank * batch_size`` and up of each global batch.

    Raises
    ------
    ValueError
        If ``drop_last`` and a batch is larger than the data.
    """
    count = n_batches(len(pairs), batch_size, drop_last, world_size)
    order = epoch_order(len(pairs), seed, epoch) if shuffle else np.arange(len(pairs))
    starts = [(batch * world_size + rank) * batch_size for batch in range(start_batch, count)]
    chosen = [order[start : start + batch_size] for start in starts]
    return read_batches(pairs, chosen, transform, workers, seed, epoch)


def read_batches(
    pairs: Sequence,
    batches: Sequence[np.ndarray],
    transform: Callable[[Tensor], Tensor],
    workers: int = 0,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Batch]:
    """Read batches of pairs, each given as an array of positions; see :func:`iterate_batches`."""
    loader = DataLoader(
        _BatchReader(pairs, transform, seed, epoch),
        sampler=batches,
        batch_size=None,  # the sampler's items are whole batches
        collate_fn=_as_it_is,
        num_workers=workers,
        generator=torch.Generator(),  # its own: the loader draws a seed, else from the global one
    )
    return iter(loader)


@dataclass(frozen=True)
class _BatchReader:
    pairs: Sequence
    transform: Callable[[Tensor], Tensor]
    seed: int
    epoch: int

    def __getitem__(self, indices: np.ndarray) -> Batch:
        images, kept, broken = [], [], []
        with torch.random.fork_rng(devices=[]):
            for i in indices.tolist():
                # Only the CPU generator: torch.manual_seed would reseed the accelerator's too.
                torch.default_generator.manual_seed(int(_mix(self.seed, self.epoch, i) >> 1))
                try:
                    images.append(self.transform(self.pairs.read_pixels(i)))
                    kept.append(i)
                except BrokenImageError:
                    broken.append(self.pairs.keys[i])
        pixels = torch.stack(images) if images else torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        texts = [draw_caption(self.pairs.captions[i], self.seed, self.epoch, i) for i in kept]
        keys = [self.pairs.keys[i] for i in kept]
        return Batch(pixels, texts, torch.tensor(kept, dtype=torch.int64), keys, broken)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def caption_choice(n_captions, seed: int, epoch: int, index):
    """Say which of an image's captions an epoch uses; takes ints, or arrays of them at once.

    Every image starts at a place of its own and goes round, so that ``n_captions`` consecutive
    epochs use each caption once.
    """
    choice = ((_mix(seed, index) >> 1).astype(np.int64) % n_captions + epoch) % n_captions
    return choice if choice.ndim else int(choice)


class CaptionDraw:
    """Says which caption of each image an epoch uses, among those that are believed.

    Parameters
    ----------
    n_captions : array of shape (N,), int
        Captions of each image, M in all.
    trust : array of shape (M,), optional
        Probability that each caption is right; of an image without one that is believed, all stay.
    least : float
        Trust from which on a caption is believed; few lie between the clear cases.

    Attributes
    ----------
    rows : array of shape (K,), int
        Captions that are drawn from, rising.
    counts : array of shape (N,), int
        How many of them each image has.
    """

    def __init__(self, n_captions: np.ndarray, trust=None, least: float = 0.2):
        owner = np.repeat(np.arange(len(n_captions)), n_captions)
        trust = np.ones(len(owner)) if trust is None else np.asarray(trust)
        left = np.bincount(owner, weights=trust >= least, minlength=len(n_captions))
        self.rows = np.flatnonzero((trust >= least) | (left[owner] == 0))
        self.counts = np.bincount(owner[self.rows], minlength=len(n_captions))
        self.first = np.cumsum(self.counts) - self.counts

    def __call__(self, images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Give the caption that an epoch uses of each of some images, by its row among all M."""
        choice = caption_choice(self.counts[images], seed, epoch, images)
        return self.rows[self.first[images] + choice]


def draw_caption(captions: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """Return the caption of image ``index`` that an epoch uses."""
    return captions[caption_choice(len(captions), seed, epoch, index)]


def check_broken(
    broken: Sequence[str], n_seen: int, limit: float, faults: Sequence[str] = ()
) -> None:
    """Raise ValueError, with counts, keys and reasons, if a share above ``limit`` is broken."""
    if len(broken) > limit * n_seen:
        raise ValueError(
            f"{len(broken)} of {n_seen} images are unreadable or lack a caption or a file, more "
            f"than the limit of {limit:.1%}, max_unreadable; raise it to leave them out, or see "
            f"python -m zslkit data verify; the first: {', '.join(broken[:3])}"
            + "".join(f"\n{fault}" for fault in faults[:3])
        )


def _mix(*numbers) -> np.ndarray:
    """Hash whole numbers, or arrays of them, into evenly spread uint64 (splitmix64)."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        for number in numbers:
            state = (state ^ np.asarray(number).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)
