"""What towers are and cost before any training."""

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zslkit.config import RunConfig
from zslkit.data.cache import Embeddings, embed
from zslkit.encoders.dual import build_dual_encoder


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
        changes["projection"] = "linear"  # other towers share no space; projections are not kept
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
        As for :func:`zslkit.data.cache.tower_features`, whose entries these are.

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
