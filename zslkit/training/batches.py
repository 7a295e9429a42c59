"""What the loop eats: features of frozen towers from the cache, pixels and texts for the rest."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from zslkit.config import RunConfig, parse_tower_mode
from zslkit.data.cache import tower_features
from zslkit.data.named import training_pairs
from zslkit.data.sampling import caption_choice, epoch_order, iterate_batches, n_batches
from zslkit.data.words import duplicate_share
from zslkit.encoders.dual import DualEncoder
from zslkit.encoders.weights import fingerprint
from zslkit.objective import Embedded
from zslkit.training import dist
from zslkit.training.trust import clean_probability, pair_losses


@dataclass
class TrainingBatch:
    """Pairs of one optimizer step in one process; B of them could be read."""

    images: Tensor
    """(B, 3, S, S) uint8 pixels, or (B, F) features of a frozen tower."""
    texts: list[str] | Tensor
    """B captions, or (B, F) features of a frozen tower."""
    keys: list[str]
    """Names of the pairs."""
    rows: np.ndarray
    """(B,) int64 positions among the training pairs."""
    broken: tuple[str, ...] = ()
    """Keys of images that could not be read; they are not in the batch."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice) -> "TrainingBatch":
        parts = (self.images, self.texts, self.keys, self.rows)
        return TrainingBatch(*(part[rows] for part in parts), self.broken)


class TrainingData:
    """The training pairs as batches; frozen towers are embedded once, on construction.

    Parameters
    ----------
    model : DualEncoder
        Whose towers and image transform the batches are for.
    config : RunConfig
        Which pairs, noise, batch size and seed.
    """

    def __init__(self, model: DualEncoder, config: RunConfig, device: torch.device):
        self.config, self.model, self.device = config, model, device
        if config.batch_size % dist.world_size():
            raise ValueError(
                f"batch_size={config.batch_size} must be a multiple of the number of processes, "
                f"{dist.world_size()}"
            )
        self.pairs = training_pairs(config)
        self.broken: tuple[str, ...] = ()
        self.image_features = self.text_features = None
        self.usable = np.arange(len(self.pairs))
        self.captions_of = np.array([len(captions) for captions in self.pairs.captions])
        if parse_tower_mode(config.image_tower) == 0:
            found = tower_features(model, self.pairs, config, "training images")
            self.image_features, self.broken = found
            self.usable = found.readable(self.pairs.keys)
        if parse_tower_mode(config.text_tower) == 0:
            texts = [text for captions in self.pairs.captions for text in captions]
            # distinct and sorted: swapped captions are the same texts, so they share an entry
            distinct, self.feature_of = np.unique(np.array(texts, object), return_inverse=True)
            texts = distinct.tolist()
            self.text_features = tower_features(model, texts, config, "training captions").features
            self.first_caption = np.concatenate([[0], np.cumsum(self.captions_of)[:-1]])
        self.per_epoch = n_batches(len(self), self.local_size, world_size=dist.world_size())

    def __len__(self) -> int:
        return len(self.usable)

    @property
    def n_listed(self) -> int:
        """Pairs that the source lists, with those that were left out on opening."""
        return len(self.pairs) + len(self.pairs.skipped)

    @property
    def local_size(self) -> int:
        """Pairs of one batch in this process."""
        return self.config.batch_size // dist.world_size()

    @cached_property
    def duplicates(self) -> float:
        """Share of a batch's pairs that meet an equal caption in it, by first captions."""
        return duplicate_share([group[0] for group in self.pairs.captions], self.config.batch_size)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Content hashes of the frozen towers, which checkpoints do not hold."""
        modes = {"image_tower": self.config.image_tower, "text_tower": self.config.text_tower}
        return {
            name: fingerprint(getattr(self.model, name))
            for name, mode in modes.items()
            if parse_tower_mode(mode) == 0
        }

    def stream(self, step: int, end: int) -> Iterator[tuple[int, TrainingBatch]]:
        """Yield (epoch, batch) for each optimizer step from ``step`` up to ``end``.

        The step alone says where in the data a run stands: batch ``step % per_epoch`` of epoch
        ``step // per_epoch``.
        """
        batches = self._from_images if self.image_features is None else self._from_features
        while step < end:
            epoch, first = divmod(step, self.per_epoch)
            for batch in islice(batches(epoch, first), min(self.per_epoch - first, end - step)):
                yield epoch, batch
                step += 1

    def _from_features(self, epoch: int, first: int) -> Iterator[TrainingBatch]:
        order = self.usable[epoch_order(len(self), self.config.seed, epoch)]
        size, ranks = self.local_size, dist.world_size()
        for number in range(first, self.per_epoch):
            start = (number * ranks + dist.rank()) * size
            rows = order[start : start + size]
            images = _take(self.image_features, rows).to(self.device)
            keys = [self.pairs.keys[i] for i in rows]
            yield TrainingBatch(images, self._texts(rows, epoch), keys, rows)

    def _from_images(self, epoch: int, first: int) -> Iterator[TrainingBatch]:
        batches = iterate_batches(
            self.pairs,
            self.local_size,
            transform=self.model.image_transform(train=True),
            seed=self.config.seed,
            epoch=epoch,
            start_batch=first,
            workers=self.config.workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
        )
        for batch in batches:
            texts, rows = batch.texts, batch.indices.numpy()
            if self.text_features is not None:
                texts = self._texts(rows, epoch)
            pixels = batch.pixels.to(self.device, non_blocking=True)
            yield TrainingBatch(pixels, texts, batch.keys, rows, tuple(batch.broken))

    @torch.inference_mode()
    def estimate_trust(self, model: DualEncoder) -> Tensor:
        """Judge every pair's captions by the losses of ``model``, the teacher, over all pairs.

        Returns
        -------
        Tensor of shape (N,), float32
            Probability that a pair is right, on the CPU; 0 where its image cannot be read.
        """
        images, texts = self.image_features, self.text_features
        if images is None:
            images = tower_features(model, self.pairs, self.config, "images to judge").features
        if texts is None:
            captions = [text for group in self.pairs.captions for text in group]
            texts = tower_features(model, captions, self.config, "captions to judge").features
        else:
            texts = texts[self.feature_of]
        embedded = model.project_image(images[self.usable].to(self.device))
        per_caption = model.project_text(texts.to(self.device))
        owner = np.repeat(np.arange(len(self.pairs)), self.captions_of)
        sums = torch.zeros(len(self.pairs), per_caption.shape[1], device=self.device)
        sums.index_add_(0, torch.from_numpy(owner).to(self.device), per_caption)
        averaged = torch.nn.functional.normalize(sums[self.usable], dim=-1)
        trust = torch.zeros(len(self.pairs))
        trust[self.usable] = clean_probability(pair_losses(embedded, averaged)).cpu()
        return trust

    def _texts(self, rows: np.ndarray, epoch: int) -> list[str] | Tensor:
        choice = caption_choice(self.captions_of[rows], self.config.seed, epoch, rows)
        if self.text_features is None:
            return [self.pairs.captions[i][j] for i, j in zip(rows, choice, strict=True)]
        rows = self.feature_of[self.first_caption[rows] + choice]
        return _take(self.text_features, rows).to(self.device)


def _take(features: Tensor, rows: np.ndarray) -> Tensor:
    # copies whole rows, where indexing would go through a general gather
    return features.index_select(0, torch.from_numpy(rows))


def encode(model: DualEncoder, batch: TrainingBatch) -> Embedded:
    """Embed a batch, from pixels and texts or from features, as (B, D) unit vectors."""
    from_features = model.project_image if batch.images.dim() == 2 else model.encode_image
    from_text = model.project_text if isinstance(batch.texts, Tensor) else model.encode_text
    return Embedded(from_features(batch.images), from_text(batch.texts))
