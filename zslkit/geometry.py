"""How embeddings lie on the sphere, before and after training, and what towers cost.

Dimensions: N = rows or images, M = texts, P = pairs, D = embedding, K = neighbours.
"""

import base64
import copy
import io
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslkit.audit import words
from zslkit.cache import Embeddings, embed
from zslkit.config import RunConfig
from zslkit.encoders import build_dual_encoder
from zslkit.metrics import estimate
from zslkit.pairs import Pairs, open_pairs
from zslkit.zeroshot import similarity_blocks


def nearest_neighbours(embeddings: Tensor, k: int) -> Tensor:
    """Find the k other rows that are nearest to each of (N, D) rows by cosine, nearest first.

    Returns int64 (N, k); among equals the lowest row leads. A ValueError refuses k outside
    1..N - 1.
    """
    if not 1 <= k < len(embeddings):
        raise ValueError(f"k={k} must be between 1 and the {len(embeddings) - 1} other rows")
    unit, found = F.normalize(embeddings.float(), dim=-1), []
    for start, scores in similarity_blocks(unit, unit):
        scores.diagonal(start).fill_(-math.inf)  # nobody is a neighbour of oneself
        found.append(scores.sort(dim=1, descending=True, stable=True).indices[:, :k])
    return torch.cat(found)


def neighbour_precision(embeddings: Tensor, labels: Any, k: int) -> np.ndarray:
    """Give for each row the share of its k nearest others that have its label, float (N,).

    For k = 1 the mean is the leave-one-out accuracy of the nearest-neighbour rule (Cover and
    Hart, 1967). A row whose label no other row has is a miss, so that N never changes silently.
    A ValueError refuses labels of another number than rows.
    """
    labels = torch.as_tensor(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"got {len(embeddings)} rows and labels of shape {tuple(labels.shape)}")
    same = labels[nearest_neighbours(embeddings, k)] == labels[:, None]
    return same.double().mean(dim=1).numpy()


def neighbour_chance(labels: Any) -> float:
    """Give the mean of :func:`neighbour_precision` if neighbours were drawn at random."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))


def caption_agreement(
    embeddings: Tensor, captions: Sequence[Sequence[str]], seed: int = 0
) -> tuple[str, dict[str, float]]:
    """Measure whether the nearest other caption is about the same thing.

    Parameters
    ----------
    embeddings : Tensor of shape (M, D)
        All captions, image after image.
    captions : sequence of sequences of str
        The captions of each image.
    seed : int
        Draws the partners of the chance level of shared words.

    Returns
    -------
    str, dict
        ``same_image_recall@1``: the share of captions whose nearest other describes the same
        image, resampled by image. Where each image has one caption no such truth exists; then
        ``shared_words``: words that two neighbours share / words that either has (Jaccard 1901).
    """
    owner = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
    if len(owner) > len(captions):
        hits = neighbour_precision(embeddings, owner, 1)
        return "same_image_recall@1", estimate(hits, owner, chance=neighbour_chance(owner))
    bags = [set(words(group[0])) for group in captions]
    shuffled = np.random.default_rng(seed).permutation(len(bags))
    strangers = zip(shuffled, np.roll(shuffled, 1), strict=True)  # one cycle: nobody meets oneself
    chance = float(np.mean([_overlap(bags[i], bags[j]) for i, j in strangers]))
    nearest = nearest_neighbours(embeddings, 1)[:, 0].tolist()
    shared = [_overlap(own, bags[other]) for own, other in zip(bags, nearest, strict=True)]
    return "shared_words", estimate(shared, chance=chance)


def alignment(images: Tensor, texts: Tensor, alpha: float = 2) -> float:
    """Average ‖v - t‖^alpha over the rows of (P, D) and (P, D), pairs; 0 is perfect.

    Wang and Isola (2020), arXiv:2005.10242, section 4.1. For unit vectors and alpha = 2 this is
    2 - 2 · the mean cosine of the pairs.
    """
    return (images.double() - texts.double()).norm(dim=1).pow(alpha).mean().item()


def uniformity(embeddings: Tensor, t: float = 2) -> float:
    """Give log of the mean of exp(-t ‖x - y‖²) over all pairs of (N, D) unit rows.

    Wang and Isola (2020), arXiv:2005.10242, section 4.1: 0 where all rows agree, lower the more
    evenly they cover the sphere, at least -4t. A ValueError refuses fewer than two rows.
    """
    total, n = 0.0, len(embeddings)
    if n < 2:
        raise ValueError(f"uniformity is of two embeddings or more, got {n}")
    for start, scores in similarity_blocks(embeddings, embeddings):
        scores.diagonal(start).fill_(-math.inf)  # a row and itself are no pair
        total += (2 * t * (scores.double() - 1)).exp().sum().item()  # ‖x - y‖² = 2 - 2 cos
    return math.log(total / (n * (n - 1)))


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Give the distance between the centroids of (N, D) images and (M, D) texts, from 0 to 2.

    Liang et al. (2022), "Mind the Gap", arXiv:2203.02053, section 4.2.
    """
    return (images.double().mean(dim=0) - texts.double().mean(dim=0)).norm().item()


def describe(images: Tensor, texts: Tensor, pairs: Any) -> dict[str, Any]:
    """Put how images and texts lie on the sphere into numbers.

    Parameters
    ----------
    images, texts : Tensor of shape (N, D) and (M, D)
        Unit length.
    pairs : array of shape (P, 2), int
        Row of the image and row of the text; no pair twice.

    Returns
    -------
    dict
        ``modality_gap``, ``pair_cosine`` (with its interval, resampled by image),
        ``other_cosine`` of all N · M - P combinations that are no pair, ``alignment``,
        ``image_uniformity`` and ``text_uniformity``.

    Raises
    ------
    ValueError
        If every image is paired with every text.
    """
    image_rows, text_rows = np.asarray(pairs).T
    left, right = images[image_rows], texts[text_rows]
    cosines = (left.double() * right.double()).sum(dim=1)
    everything = images.double().sum(dim=0) @ texts.double().sum(dim=0)
    others = len(images) * len(texts) - len(cosines)
    if others == 0:
        raise ValueError("every image is paired with every text: there is nothing to tell apart")
    return {
        "modality_gap": modality_gap(images, texts),
        "pair_cosine": estimate(cosines, groups=image_rows),
        "other_cosine": ((everything - cosines.sum()) / others).item(),
        "alignment": alignment(left, right),
        "image_uniformity": uniformity(images),
        "text_uniformity": uniformity(texts),
    }


def layout(embeddings: Tensor, seed: int) -> np.ndarray:
    """Lay (N, D) embeddings out on a plane, float32 (N, 2): neighbours by cosine stay neighbours.

    UMAP (McInnes et al., 2018, arXiv:1802.03426) from the principal components, 15 neighbours.
    Distances between far points, axes and orientation mean nothing. A ValueError refuses fewer
    than four rows.
    """
    if len(embeddings) < 4:
        raise ValueError(f"a map needs at least four embeddings, got {len(embeddings)}")
    with warnings.catch_warnings():  # a part of umap that nothing here uses
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP

    mapper = UMAP(
        n_neighbors=min(15, len(embeddings) - 1),
        metric="cosine",
        init="pca",
        random_state=seed,
        n_jobs=1,  # with a seed UMAP is serial
    )
    return mapper.fit_transform(embeddings.float().numpy())


def thumbnail(image: Any, side: int = 64) -> str:
    """Shrink a PIL image to at most ``side`` pixels; give it as a JPEG data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    small.save(stream := io.BytesIO(), format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def build_towers(
    config: RunConfig, side: str, others: Sequence[str], weights: str
) -> dict[str, nn.Module]:
    """Build the tower of ``config`` on one side, as training starts with it, and others beside it.

    Parameters
    ----------
    side : {"image", "text"}
        Which of the two towers.
    others : sequence of str
        Further encoders, with these ``weights``: pretrained or none.
    """
    towers = {}
    for name in (getattr(config, f"{side}_encoder"), *others):
        keys = (f"{side}_encoder", f"{side}_weights", f"{side}_tower")
        changes = dict(zip(keys, (name, weights, "train"), strict=True)) if towers else {}
        model = build_dual_encoder(config.model_copy(update=changes))
        towers.setdefault(name, getattr(model, f"{side}_tower"))
    return towers


def tower_facts(tower: nn.Module, items: Tensor | Sequence[str], repeats: int = 5) -> dict:
    """Measure what a tower costs on its device; the tower stays as it was.

    Parameters
    ----------
    items : Tensor of shape (B, 3, S, S), or sequence of str
        Images, or texts, that pass the tower as one batch.
    repeats : int
        Timed passes, after one that is not.

    Returns
    -------
    dict
        ``parameters``, ``feature_dim``, ``weights_mb`` (buffers included),
        ``activation_mb_per_item`` (see :func:`activation_bytes`), ``items_per_second`` (median,
        eval mode, tokenising included, decoding not), and on CUDA ``peak_mb``, allocated at most
        during the forward and backward pass of such a batch. 1 MB = 10⁶ bytes.
    """
    weights = [*tower.parameters(), *tower.buffers()]
    device = weights[0].device
    items = items.to(device) if isinstance(items, Tensor) else items
    facts = {
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "feature_dim": tower.feature_dim,
        "weights_mb": sum(tensor.nbytes for tensor in weights) / 1e6,
        "activation_mb_per_item": activation_bytes(tower, items) / len(items) / 1e6,
        "items_per_second": _items_per_second(tower, items, repeats, device),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _trainable_copy(tower)(items).sum().backward()
        facts["peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return facts


def activation_bytes(tower: nn.Module, items: Tensor | Sequence[str]) -> int:
    """Count the bytes that one forward pass in train mode keeps for its backward pass.

    Every part of the tower is taken as trained. Each storage counts once, however many tensors
    look at it; weights and buffers do not count. The tower itself is not touched.
    """
    tower, kept = _trainable_copy(tower), {}
    weights = [*tower.parameters(), *tower.buffers()]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.random.fork_rng(), torch.enable_grad(), hooks:
        output = tower(items)
    for tensor in weights:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del output  # held until here: the addresses of a freed graph would have been used again
    return sum(kept.values())


def measure_cache(
    tower: nn.Module, items: Sequence, config: RunConfig
) -> tuple[Embeddings, dict[str, float]]:
    """Embed items without and then with the cache; leave them in ``config.cache_dir``.

    Parameters
    ----------
    items : Pairs or list of str
        As for :func:`zslkit.cache.tower_features`, whose entries these are.

    Returns
    -------
    Embeddings, dict
        The features in memory, and ``cold_seconds``, ``warm_seconds`` and ``megabytes`` (10⁶
        bytes) on disk.
    """
    target, seconds = config.cache_dir, []
    size = None if isinstance(items, list) else config.image_size
    device = next(tower.parameters()).device
    if target is not None:
        Path(target).mkdir(parents=True, exist_ok=True)
    # a folder of its own: what an earlier run left would make the first pass a warm one
    with tempfile.TemporaryDirectory(dir=target) as fresh:
        for _ in range(2):
            start = time.perf_counter()
            found = embed(
                tower, items, fresh, image_size=size, workers=config.workers, device=device
            )
            # copied: the mapped file is read only when somebody looks
            found = found._replace(features=found.features.clone())
            seconds.append(time.perf_counter() - start)
        files = sorted(Path(fresh).iterdir())  # .json before .npy, as the cache writes them
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        for file in files if target is not None else ():
            file.replace(Path(target) / file.name)
    facts = {"cold_seconds": seconds[0], "warm_seconds": seconds[1], "megabytes": megabytes}
    return found, facts


def open_labelled(config: RunConfig, max_images: int) -> Pairs:
    """Open the labelled images of ``config``, at most ``max_images``, drawn with its seed.

    A ValueError asks for a labelled set where there is none.
    """
    name = config.zeroshot_manifest
    if name is None:
        raise ValueError("zeroshot_manifest=None: give labelled images, their classes are needed")
    pairs = open_pairs(
        name,
        config.zeroshot_split,
        data_root=config.data_root,
        seed=config.seed,
        max_pairs=max_images,
    )
    if pairs.labels is None:
        raise ValueError(f"zeroshot_manifest={name!r}: its images have no classes")
    return pairs


def _overlap(own: set[str], others: set[str]) -> float:
    return len(own & others) / max(1, len(own | others))


def _trainable_copy(tower: nn.Module) -> nn.Module:
    """Copy a tower: a forward pass in train mode moves BatchNorm statistics."""
    return copy.deepcopy(tower).requires_grad_(True).train()


@torch.inference_mode()
def _items_per_second(tower: nn.Module, items: Any, repeats: int, device: torch.device) -> float:
    training, seconds = tower.training, []
    tower.eval()
    for _ in range(1 + repeats):
        start = time.perf_counter()
        tower(items)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    tower.train(training)
    return len(items) / statistics.median(seconds[1:])
