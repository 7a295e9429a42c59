"""Measure a trained model: zero-shot classes and retrieval."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.named import labelled_images
from zslkit.data.pairs import Pairs
from zslkit.encoders.dual import DualEncoder
from zslkit.evaluation.intervals import estimate
from zslkit.evaluation.metrics import hits_at_k
from zslkit.evaluation.retrieval import embed_batch, embed_images, evaluate_retrieval
from zslkit.objective import soft_targets
from zslkit.zeroshot.class_bank import build_class_bank
from zslkit.zeroshot.classifier import Prediction
from zslkit.zeroshot.models.protocol import as_model
from zslkit.zeroshot.ranking import ClassBank, class_probabilities, rank_classes


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


def evaluate(model: DualEncoder, config: RunConfig) -> dict[str, Any]:
    """Measure retrieval on the test split and zero-shot recognition, as ``config`` names them.

    Returns
    -------
    dict
        ``retrieval``: recall@1, 5 and 10 both ways, and ``zeroshot``: hit@1 and hit@5 with
        chance; every figure a fraction with its 95 % bootstrap interval.
    """
    model = as_model(model).eval()
    metrics: dict[str, Any] = {"retrieval": evaluate_retrieval(model, config)}
    if config.zeroshot_manifest is not None:
        metrics["zeroshot"] = zeroshot_metrics(rank_labelled_images(model, config))
    return metrics


def rank_labelled_images(
    model: DualEncoder,
    config: RunConfig,
    manifest: str | None = None,
    split: str | None = None,
    k: int = 5,
    pairs: Pairs | None = None,
) -> ZeroShotResult:
    """Rank the classes of a labelled set for each of its images.

    Parameters
    ----------
    manifest, split : str, optional
        ``config.zeroshot_manifest`` and ``config.zeroshot_split`` when not given.
    k : int
        Classes kept for each image; all, if there are fewer.
    pairs : Pairs, optional
        Labelled images at hand, such as those of :func:`~zslkit.evaluation.images_to_name`.

    Raises
    ------
    ValueError
        If the set has no labels.
    """
    if pairs is None or pairs.labels is None:  # the latter says what is wrong
        asked = {"zeroshot_manifest": manifest, "zeroshot_split": split}
        pairs = labelled_images(config.model_copy(update={k: v for k, v in asked.items() if v}))
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
def example_targets(
    run: Run, pairs: Pairs, rows: Sequence[int], config: RunConfig | None = None
) -> tuple[list[int], Tensor | None]:
    """Show the soft targets that the run's objective gives some pairs as one batch.

    Image-to-text, at the end of the training, for the first caption of each pair.

    Parameters
    ----------
    config : RunConfig, optional
        Another objective for the same teacher, such as one with another temperature.

    Returns
    -------
    rows : list of int
        Those of the B pairs whose image could be read.
    targets : Tensor of shape (B, B), or None
        None where the objective has no soft targets, or its teacher none yet.

    Raises
    ------
    ValueError
        If fewer than two of the images can be read.
    """
    ready = run.teacher is not None and run.teacher.ready
    rows, _, guide = embed_batch(run.teacher.model if ready else run.model, pairs, rows)
    if not ready:
        guide = None
    targets = soft_targets(len(rows), len(rows), guide, config or run.config, progress=1.0)
    return rows, None if targets is None else targets[0].cpu()
