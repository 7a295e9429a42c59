"""What the loop eats: features of frozen towers from the cache, pixels and texts for the rest."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from zslkit.config import RunConfig, parse_tower_mode
from zslkit.data.cache import caption_features, tower_features
from zslkit.data.caption_trust import believe_captions, caption_losses, held_out_trust
from zslkit.data.named import training_pairs
from zslkit.data.sampling import CaptionDraw, epoch_order, iterate_batches, n_batches
from zslkit.data.weights import fingerprint
from zslkit.data.words import duplicate_share
from zslkit.encoders.dual import DualEncoder
from zslkit.objective import Embedded
from zslkit.training import dist


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
    captions: np.ndarray
    """(B,) int64 positions among the captions of all training pairs."""
    broken: tuple[str, ...] = ()
    """Keys of images that could not be read; they are not in the batch."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice) -> "TrainingBatch":
        parts = (self.images, self.texts, self.keys, self.rows, self.captions)
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
        self.first_caption = np.cumsum(self.captions_of) - self.captions_of
        self.draw = CaptionDraw(self.captions_of)
        if parse_tower_mode(config.image_tower) == 0:
            found = tower_features(model, self.pairs, config, "training images")
            self.image_features, self.broken = found
            self.usable = found.readable(self.pairs.keys)
        if parse_tower_mode(config.text_tower) == 0:
            found = caption_features(model, self.pairs, config, "training captions")
            self.text_features, self.feature_of = found
        self.config = lower_batch(config, len(self))
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
            captions = self.draw(rows, self.config.seed, epoch)
            yield TrainingBatch(images, self._texts(rows, captions), keys, rows, captions)

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
            captions = self.draw(rows, self.config.seed, epoch)
            if self.text_features is not None:
                texts = self._texts(rows, captions)
            pixels = batch.pixels.to(self.device, non_blocking=True)
            broken = tuple(batch.broken)
            yield TrainingBatch(pixels, texts, batch.keys, rows, captions, broken)

    def features_of(self, model: DualEncoder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give what the towers of ``model`` make of all readable images and their captions.

        Features (N, F) and (M, G), the image (M,) of each caption, and which captions these are.
        """
        images, texts = self.image_features, self.text_features
        if images is None:
            images = tower_features(model, self.pairs, self.config, "images to judge").features
        if texts is None:
            captions = [text for group in self.pairs.captions for text in group]
            texts = tower_features(model, captions, self.config, "captions to judge").features
            rows = np.arange(len(texts))
        else:
            rows = self.feature_of
        kept = np.repeat(np.isin(np.arange(len(self.pairs)), self.usable), self.captions_of)
        owner = np.repeat(np.arange(len(self)), self.captions_of[self.usable])
        # memory-mapped images stay on disk where all of them can be read
        images = images if len(images) == len(self) else _take(images, self.usable)
        return images, _take(texts, rows[kept]), torch.from_numpy(owner), torch.from_numpy(kept)

    @torch.inference_mode()
    def estimate_trust(self, model: DualEncoder) -> Tensor:
        """Judge every caption: by the losses of ``model``, the teacher, or by held-out fits.

        Returns
        -------
        Tensor of shape (M,), float32
            Probability that a caption is right, on the CPU; 0 where its image cannot be read.
        """
        images, texts, owner, kept = self.features_of(model)
        if self.config.trust_judge == "held_out":
            believed = held_out_trust(images, texts, owner)
        else:
            embedded = [model.project_image(images.to(self.device)).cpu()]
            embedded += [model.project_text(texts.to(self.device)).cpu()]
            believed = believe_captions(*caption_losses(*embedded, owner), owner, len(images))
        trust = torch.zeros(len(kept))
        trust[kept] = believed
        return trust

    def _texts(self, rows: np.ndarray, captions: np.ndarray) -> list[str] | Tensor:
        if self.text_features is None:
            places = zip(rows, captions - self.first_caption[rows], strict=True)
            return [self.pairs.captions[i][j] for i, j in places]
        return _take(self.text_features, self.feature_of[captions]).to(self.device)


def lower_batch(config: RunConfig, n_pairs: int) -> RunConfig:
    """Lower ``batch_size`` to what the pairs can fill, and say so; fewer than two stay an error."""
    share = config.accumulation * dist.world_size()
    most = n_pairs // share * share
    if config.batch_size <= most or most < 2:
        return config
    if dist.rank() == 0:
        words = (
            f"batch_size={config.batch_size} is more than the {n_pairs} pairs: lowered to {most}"
        )
        print(words, file=sys.stderr)
    return config.model_copy(update={"batch_size": most})


def _take(features: Tensor, rows: np.ndarray) -> Tensor:
    # copies whole rows, where indexing would go through a general gather
    return features.index_select(0, torch.from_numpy(rows))


def encode(model: DualEncoder, batch: TrainingBatch) -> Embedded:
    """Embed a batch, from pixels and texts or from features, as (B, D) unit vectors."""
    from_features = model.project_image if batch.images.dim() == 2 else model.encode_image
    from_text = model.project_text if isinstance(batch.texts, Tensor) else model.encode_text
    return Embedded(from_features(batch.images), from_text(batch.texts))
