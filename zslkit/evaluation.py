"""What a trained model can do: retrieval on pairs, zero-shot recognition on labelled images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.cache import tower_features
from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.encoders import DualEncoder
from zslkit.metrics import estimate, hits_at_k, retrieval_ranks
from zslkit.objective import Embedded, soft_targets
from zslkit.pairs import Pairs, open_pairs
from zslkit.zeroshot import (
    ClassBank,
    Prediction,
    build_class_bank,
    class_probabilities,
    rank_classes,
)


class ZeroShotResult(NamedTuple):
    """Ranked classes of labelled images; N = images, K = classes kept, D = embedding."""

    pairs: Pairs
    """The images that could be read are rows ``readable`` of these."""
    readable: np.ndarray
    """(N,) int64."""
    labels: np.ndarray
    """(N,) int64, true class of each image."""
    embeddings: Tensor
    """(N, D)."""
    scores: Tensor
    """(N, K) cosine similarities, best first."""
    indices: Tensor
    """(N, K) class numbers."""
    bank: ClassBank


@torch.inference_mode()
def embed_images(model: DualEncoder, pairs: Pairs, config: RunConfig) -> tuple[Tensor, np.ndarray]:
    """Embed the images of ``pairs``: (N, D) unit vectors, and the N rows that could be read.

    Features of a frozen tower come from the cache in ``config.cache_dir``. The model is left in
    eval mode.
    """
    model.eval()  # the projections have dropout
    device = next(model.parameters()).device
    found = tower_features(model, pairs, config, f"{pairs.manifest.name} {pairs.split} images")
    readable = found.readable(pairs.keys)
    rows = (model.project_image(found.features[i].to(device)).cpu() for i in _blocks(readable))
    return torch.cat(list(rows)), readable


@torch.inference_mode()
def embed_texts(model: DualEncoder, texts: list[str], config: RunConfig) -> Tensor:
    """Embed texts as (M, D) unit vectors, like :func:`embed_images`."""
    model.eval()
    device = next(model.parameters()).device
    features = tower_features(model, texts, config, "texts").features
    rows = np.arange(len(texts))
    return torch.cat([model.project_text(features[i].to(device)).cpu() for i in _blocks(rows)])


def evaluate(model: DualEncoder, config: RunConfig) -> dict[str, Any]:
    """Measure retrieval on the test split and zero-shot recognition, as ``config`` names them.

    Returns
    -------
    dict
        ``retrieval``: recall@1, 5 and 10 both ways, and ``zeroshot``: hit@1 and hit@5 with
        chance; every figure a fraction with its 95 % bootstrap interval.
    """
    model.eval()
    metrics: dict[str, Any] = {"retrieval": evaluate_retrieval(model, config)}
    if config.zeroshot_manifest is not None:
        metrics["zeroshot"] = zeroshot_metrics(rank_labelled_images(model, config))
    return metrics


def evaluate_retrieval(model: DualEncoder, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Measure recall@1, 5 and 10 in both directions on the pairs of ``config.test_split``."""
    pairs = open_pairs(config.manifest, config.test_split, data_root=config.data_root)
    ranks, owner = rank_pairs(model, pairs, config)
    groups = {"text_to_image": owner, "image_to_text": None}
    candidates = {"text_to_image": owner[-1] + 1, "image_to_text": len(owner)}
    return {
        way: {
            f"recall@{k}": estimate(rank < k, groups=groups[way])
            for k in (1, 5, 10)
            if k <= candidates[way]
        }
        for way, rank in ranks.items()
    }


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


def rank_labelled_images(
    model: DualEncoder,
    config: RunConfig,
    manifest: str | None = None,
    split: str | None = None,
    k: int = 5,
) -> ZeroShotResult:
    """Rank the classes of a labelled set for each of its images.

    Parameters
    ----------
    manifest, split : str, optional
        ``config.zeroshot_manifest`` and ``config.zeroshot_split`` when not given.
    k : int
        Classes kept for each image; all, if there are fewer.

    Raises
    ------
    ValueError
        If the set has no labels.
    """
    name = manifest or config.zeroshot_manifest
    pairs = open_pairs(name, split or config.zeroshot_split, data_root=config.data_root)
    if pairs.labels is None:
        raise ValueError(
            f"zeroshot_manifest={name!r}: its images have no classes; give a labelled set"
            if pairs.positives is None
            else f"zeroshot_manifest={name!r}: its images have several classes each; evaluate them "
            "with zslkit.streaming, or --label-space own"
        )
    images, readable = embed_images(model, pairs, config)
    bank = build_class_bank(model, pairs.class_names, config.prompt_templates)
    scores, indices = rank_classes(images, bank, min(k, len(pairs.class_names)))
    return ZeroShotResult(pairs, readable, pairs.labels[readable], images, scores, indices, bank)


def zeroshot_metrics(result: ZeroShotResult) -> dict[str, Any]:
    """Word hit@1 and hit@5 of a ranking, each with its interval and the chance level."""
    n_classes = len(result.bank.class_names)
    return {
        f"hit@{k}": estimate(hits_at_k(result.indices, result.labels, k), chance=k / n_classes)
        for k in (1, 5)
        if k <= result.indices.shape[1]
    }


def right_and_wrong(result: ZeroShotResult, n: int) -> list[int]:
    """Choose rows of a ranking, from all over the set: n named right, then n named wrong."""
    right = result.indices[:, 0].numpy() == result.labels
    found = (np.flatnonzero(mask) for mask in (right, ~right))
    return [int(row) for rows in found for row in rows[:: len(rows) // n + 1]]


def predictions_of(
    result: ZeroShotResult, rows: Sequence[int], logit_scale: Any, k: int = 5
) -> tuple[list, list[list[Prediction]], list[str]]:
    """Give photos, their k best classes and their true class, for ``plots.prediction_grid``."""
    rows, names = list(rows), result.bank.class_names
    scores, indices = result.scores[rows, :k], result.indices[rows, :k]
    shares = class_probabilities(result.embeddings[rows], result.bank, scores, logit_scale)
    ranked = zip(indices.tolist(), scores.tolist(), shares.tolist(), strict=True)
    predictions = [
        [Prediction(names[i], s, p) for i, s, p in zip(*row, strict=True)] for row in ranked
    ]
    photos = [result.pairs[int(result.readable[row])].image for row in rows]
    return photos, predictions, [names[result.labels[row]] for row in rows]


@torch.inference_mode()
def example_targets(run: Run, pairs: Pairs, rows: Sequence[int]) -> Tensor | None:
    """Show the soft targets that the run's objective gives some pairs as one batch, (B, B).

    Image-to-text, at the end of the training, for the first caption of each pair; None where the
    objective has no soft targets.
    """
    guide = None
    if run.teacher is not None and run.teacher.ready:
        transform = run.model.image_transform(train=False)
        pixels = torch.stack([transform(pairs[i].pixels) for i in rows])
        model = run.teacher.model
        device = next(model.parameters()).device
        texts = [pairs.captions[i][0] for i in rows]
        guide = Embedded(model.encode_image(pixels.to(device)), model.encode_text(texts))
    targets = soft_targets(len(rows), len(rows), guide, run.config, progress=1.0)
    return None if targets is None else targets[0].cpu()


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
        self.pairs = open_pairs(config.manifest, split, data_root=config.data_root)

    def __call__(self, run: Run, row: dict[str, float]) -> dict[str, float]:
        """Measure where an epoch, or the training, ends."""
        step, total = row["step"], run.record["total_steps"]
        if step % run.record["steps_per_epoch"] and step != total:
            return {}
        with torch.random.fork_rng():  # reading images draws a seed
            ranks, _ = rank_pairs(run.model, self.pairs, self.config)
        return {"held-out recall@10": float((ranks["text_to_image"] < 10).mean())}


def _blocks(rows: np.ndarray, size: int = 8192) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]
