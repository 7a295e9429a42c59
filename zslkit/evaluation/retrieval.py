"""Rank the captions of images and the images of captions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.cache import kept_features, tower_features
from zslkit.data.embedding import embed_batches
from zslkit.data.images import BrokenImageError
from zslkit.data.named import held_out_pairs
from zslkit.data.pairs import Pairs
from zslkit.data.sampling import check_broken
from zslkit.encoders.dual import DualEncoder
from zslkit.evaluation.intervals import estimate
from zslkit.evaluation.metrics import retrieval_ranks
from zslkit.objective import Embedded
from zslkit.zeroshot.models.protocol import as_model

RECALL_AT = (1, 5, 10)
"""Which recall is measured, and summed."""


@torch.inference_mode()
def embed_images(model: DualEncoder, pairs: Pairs, config: RunConfig) -> tuple[Tensor, np.ndarray]:
    """Embed the images of ``pairs``: (N, D) unit vectors, and the N rows that could be read.

    Features of a frozen tower come from the cache in ``config.cache_dir``. The model is left in
    eval mode.

    Raises
    ------
    ValueError
        If a share above ``config.max_unreadable`` cannot be read.
    """
    model = as_model(model).eval()  # the projections have dropout
    device = next(model.parameters()).device
    found = tower_features(model, pairs, config, f"{pairs.manifest.name} {pairs.split} images")
    check_broken(found.broken, len(pairs), config.max_unreadable)
    readable = found.readable(pairs.keys)
    rows = (model.project_image(found.features[i].to(device)).cpu() for i in _blocks(readable))
    return torch.cat(list(rows)), readable


@torch.inference_mode()
def embed_texts(model: DualEncoder, texts: list[str], config: RunConfig) -> Tensor:
    """Embed texts as (M, D) unit vectors, like :func:`embed_images`."""
    model = as_model(model).eval()
    device = next(model.parameters()).device
    features = tower_features(model, texts, config, "texts").features
    rows = np.arange(len(texts))
    return torch.cat([model.project_text(features[i].to(device)).cpu() for i in _blocks(rows)])


@torch.no_grad()
def embed_batch(
    model: DualEncoder, pairs: Pairs, rows: Sequence[int], config: RunConfig | None = None
) -> tuple[list[int], list[Tensor], Embedded]:
    """Read and embed some pairs, each with its first caption.

    Parameters
    ----------
    config : RunConfig, optional
        Where its cache holds the images' features, no image passes the tower.

    Returns
    -------
    rows : list of int
        Those of the B pairs whose image could be read.
    images : list of Tensor of shape (3, H, W), uint8
    embedded : Embedded
        (B, D) each, on the CPU.

    Raises
    ------
    ValueError
        If fewer than two images can be read: soft targets share mass among pairs.
    """
    model = as_model(model)
    transform, images = model.image_transform(train=False), []

    def view(pixels: Tensor) -> Tensor:
        images.append(pixels)  # as decoded: whoever looks at the batch sees whole images
        return transform(pixels)

    chosen = np.array([*dict.fromkeys(rows)], dtype=np.int64)
    device = next(model.parameters()).device
    if config is not None and (kept := kept_features(model, pairs, config)) is not None:
        seen = {row: _pixels(pairs, row) for row in chosen if pairs.keys[row] not in kept.broken}
        chosen = np.array([row for row, pixels in seen.items() if pixels is not None], np.int64)
        images = [seen[row] for row in chosen]
        vectors = model.project_image(kept.features[chosen].to(device))
    else:
        (found,) = embed_batches(model.encode_image, pairs, [chosen], transform=view, device=device)
        chosen, vectors = found.rows, found.vectors
    if len(chosen) < 2:
        raise ValueError(f"rows={list(rows)}: soft targets need two readable images or more")
    texts = model.encode_text([pairs.captions[row][0] for row in chosen])
    return chosen.tolist(), images, Embedded(vectors.cpu(), texts.cpu())


def _pixels(pairs: Pairs, row: int) -> Tensor | None:
    """Decode an image that may have become unreadable since it was embedded."""
    try:
        return pairs.read_pixels(row)
    except BrokenImageError:
        return None


def evaluate_retrieval(model: DualEncoder, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Measure recall@1, 5 and 10 in both directions on the pairs of ``config.test_split``.

    Besides ``text_to_image`` and ``image_to_text`` there is ``rsum``, the field's sum of all six
    in percent (:func:`~zslkit.evaluation.metrics.recall_sum`), where ten images can be ranked.
    """
    ranks, owner = rank_pairs(model, held_out_pairs(config), config)
    groups = {"text_to_image": owner, "image_to_text": None}
    candidates = {"text_to_image": owner[-1] + 1, "image_to_text": len(owner)}
    found: dict[str, dict[str, Any]] = {
        way: {
            f"recall@{k}": estimate(rank < k, groups=groups[way])
            for k in RECALL_AT
            if k <= candidates[way]
        }
        for way, rank in ranks.items()
    }
    if min(candidates.values()) >= max(RECALL_AT):
        found["rsum"] = _estimate_sum(ranks, owner)
    return found


def _estimate_sum(ranks: dict[str, np.ndarray], owner: np.ndarray) -> dict[str, float]:
    """Word rSum with its interval over images, each drawn with its captions."""
    asked, place = np.unique(owner, return_inverse=True)
    # what one image adds to either mean; the sum of all is rSum, however many captions each has
    hits = {way: sum((rank < k) / len(rank) for k in RECALL_AT) for way, rank in ranks.items()}
    shares = np.bincount(place, weights=hits["text_to_image"]) + hits["image_to_text"]
    return estimate(100 * len(asked) * shares)


def rank_pairs(
    model: DualEncoder, pairs: Pairs, config: RunConfig
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rank the right answers of all images and captions (``metrics.retrieval_ranks``).

    Also gives the image of each caption, counted among the images that could be read.
    """
    images, readable = embed_images(model, pairs, config)
    captions = [pairs.captions[i] for i in readable]
    owner = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    texts = embed_texts(model, [text for group in captions for text in group], config)
    return retrieval_ranks(images, texts, owner), owner


class Watch:
    """A callback of the training loop: recall@10 on held-out pairs after every epoch.

    It adds ``held-out recall@10`` (text to image, a fraction) to the last row of each epoch. The
    run itself stays as it would have been.

    Parameters
    ----------
    config : RunConfig
        Of the run that is watched.
    split : str
        Held-out split of its manifest; never the test split, if what is seen guides a choice.
    """

    def __init__(self, config: RunConfig, split: str = "dev"):
        self.config = config
        self.pairs = held_out_pairs(config, split)

    def __call__(self, run: Run, row: dict[str, float]) -> dict[str, float]:
        """Measure where an epoch, or the training, ends."""
        step, total = row["step"], run.facts.total_steps
        if step % run.facts.steps_per_epoch and step != total:
            return {}
        with torch.random.fork_rng():  # reading images draws a seed
            ranks, _ = rank_pairs(run.model, self.pairs, self.config)
        return {"held-out recall@10": float((ranks["text_to_image"] < 10).mean())}


def _blocks(rows: np.ndarray, size: int = 8192) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]
