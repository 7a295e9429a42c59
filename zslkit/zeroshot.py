"""From class names to ranked classes. C = classes, N = images, D = embedding."""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zslkit.images import decode_image
from zslkit.prompts import TEMPLATES as TEMPLATES
from zslkit.prompts import Descriptions, class_prompts, find_templates

_BANK_LAYOUT = 1  # part of every key: raise it when what is stored changes


class ClassBank(NamedTuple):
    """One unit vector for each class: ``embeddings`` is (C, D), float32, in CPU memory."""

    embeddings: Tensor
    class_names: tuple[str, ...]


class Prediction(NamedTuple):
    """A class, its cosine similarity, and its softmax probability over all C classes."""

    class_name: str
    similarity: float
    probability: float


def build_class_bank(
    model: Any,
    class_names: Sequence[str],
    templates: str | Sequence[str],
    batch_size: int = 256,
    descriptions: Descriptions | None = None,
) -> ClassBank:
    """Embed classes: normalise each prompt, average over those of a class, normalise again.

    Parameters
    ----------
    model : object
        With ``encode_text(list[str]) -> (B, D)``.
    class_names : sequence of C str
        None twice.
    templates : str or sequence of str
        A name in ``TEMPLATES``, or texts with ``{}`` for the class name.
    batch_size : int
        Prompts, of several classes or a part of one, that pass the text encoder at once; 32 times
        as many are held.
    descriptions : mapping from class name to one text or several, optional
        What templates with ``{description}`` are filled with: :func:`prompts.class_prompts`.

    Raises
    ------
    ValueError
        For no or duplicate classes, a ``batch_size`` below 1, and templates that do not fit.

    References
    ----------
    Radford et al. (2021), arXiv:2103.00020, section 3.1.4: prompts and their ensembles.
    """
    if not class_names:
        raise ValueError("class_names must not be empty")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if doubles := [name for name, count in Counter(class_names).items() if count > 1]:
        raise ValueError(
            f"{len(doubles)} class names occur more than once: {', '.join(doubles[:10])}. Merge "
            "them (list(dict.fromkeys(names)), true classes renumbered) or tell them apart"
        )
    prompts = class_prompts(class_names, templates, descriptions)
    totals, counts = None, torch.zeros(len(class_names), 1)
    with torch.no_grad(), _eval_mode(model):
        while some := list(islice(prompts, 32 * batch_size)):
            rows, texts = torch.tensor([row for row, _ in some]), [text for _, text in some]
            embedded = _embed_by_length(model, texts, batch_size)
            if totals is None:
                totals = embedded.new_zeros(len(class_names), embedded.shape[1])
            totals.index_add_(0, rows, embedded)
            counts.index_add_(0, rows, torch.ones(len(rows), 1))
    return ClassBank(F.normalize(totals / counts, dim=-1), tuple(class_names))


def _embed_by_length(model: Any, texts: list[str], batch_size: int) -> Tensor:
    """Embed texts as unit vectors, those of like length together: padding costs like words."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [
        model.encode_text([texts[i] for i in order[start : start + batch_size]]).float().cpu()
        for start in range(0, len(order), batch_size)
    ]
    embedded = F.normalize(torch.cat(parts), dim=-1)
    return embedded[torch.tensor(order).argsort()]


def cached_class_bank(
    model: Any,
    class_names: Sequence[str],
    templates: str | Sequence[str],
    cache_dir: str | Path,
    batch_size: int = 256,
    descriptions: Descriptions | None = None,
) -> ClassBank:
    """Build a class bank like :func:`build_class_bank`, or read what an earlier call stored.

    The key hashes the text side's weights, class names, templates and descriptions, so a stale
    bank cannot be read. One whose content is not what was written is built again, with a
    UserWarning. ``model`` is a DualEncoder.
    """
    from zslkit.encoders import fingerprint

    used = {name: (descriptions or {}).get(name) for name in class_names}
    weights = [fingerprint(part) for part in (model.text_tower, model.text_projection)]
    facts = [_BANK_LAYOUT, weights, list(class_names), find_templates(templates), used]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    path = Path(cache_dir) / f"{key}.classes.safetensors"
    if (embeddings := _read_bank(path)) is not None:
        return ClassBank(embeddings, tuple(class_names))
    bank = build_class_bank(model, class_names, templates, batch_size, descriptions)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")  # renamed: a bank on disk is whole
    save_file({"embeddings": bank.embeddings}, temporary, {"sha256": _checksum(bank.embeddings)})
    temporary.replace(path)
    return bank


def _read_bank(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            embeddings, facts = file.get_tensor("embeddings"), file.metadata() or {}
        if facts.get("sha256") == _checksum(embeddings):
            return embeddings
    except SafetensorError:
        pass
    warnings.warn(f"{path}: damaged, so the class bank is built again", stacklevel=3)
    return None


def _checksum(embeddings: Tensor) -> str:
    content = f"{tuple(embeddings.shape)}".encode() + embeddings.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def rank_classes(image_embeddings: Tensor, bank: ClassBank, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best classes of each (N, D) image, exactly and without keeping N x C scores.

    Returns similarities and class numbers, both (N, k), best first. Among equal scores the
    lowest class number comes first. A ValueError refuses k outside 1..C, NaN and infinity.
    """
    return rank_and_total(image_embeddings, bank, k)[:2]


def rank_and_total(
    image_embeddings: Tensor, bank: ClassBank, k: int, logit_scale: Any = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rank like :func:`rank_classes`; in the same pass find what turns scores into probabilities.

    The third answer, (N,), is the logarithm of the softmax's denominator over all C classes:
    ``exp(logit_scale * scores - totals[:, None])`` are probabilities. None without a scale.
    """
    if not 1 <= k <= len(bank.class_names):
        raise ValueError(f"k={k} must be between 1 and the {len(bank.class_names)} classes")
    scores, indices, totals = [], [], []
    for _, block in similarity_blocks(image_embeddings, bank.embeddings):
        best = _top_k(block, k)
        scores.append(best[0])
        indices.append(best[1])
        if logit_scale is not None:  # in place: the block is not needed again
            totals.append(block.mul_(torch.as_tensor(logit_scale).detach().to(block)).logsumexp(1))
    return torch.cat(scores), torch.cat(indices), torch.cat(totals) if totals else None


def class_probabilities(
    image_embeddings: Tensor, bank: ClassBank, scores: Tensor, logit_scale: Any
) -> Tensor:
    """Turn similarities that :func:`rank_classes` found, (N, k), into a softmax over all classes.

    They are what the model was trained to say, at its own ``logit_scale``; whether 0.9 means
    nine in ten is for :func:`zslkit.metrics.reliability` to tell.
    """
    scale = torch.as_tensor(logit_scale).detach().to(scores)
    blocks = similarity_blocks(image_embeddings.to(scores.device), bank.embeddings)
    totals = torch.cat([(scale * block).logsumexp(dim=1) for _, block in blocks])
    return (scale * scores - totals[:, None]).exp()


def similarity_blocks(
    queries: Tensor, candidates: Tensor, max_scores: int = 2**22
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, float32 scores of a few queries against all candidates), in row order.

    Every block is written over the one before: memory that is asked for anew each time would
    cost as much again as the product.
    """
    queries = queries.detach().float()
    columns = candidates.detach().to(queries).T
    # a sum is finite if all its terms are, and needs no memory
    if not (queries.sum().isfinite() and columns.sum().isfinite()):
        raise ValueError("embeddings contain NaN or infinity")
    step = max(1, max_scores // columns.shape[1])
    scores = queries.new_empty(min(step, len(queries)), columns.shape[1])
    for start in range(0, max(1, len(queries)), step):
        rows = queries[start : start + step]
        yield start, torch.mm(rows, columns, out=scores[: len(rows)])


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best, indices = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # torch.topk returns any of several equal scores: put those it chose in order ...
    indices = indices[:, :k].sort(dim=1).values
    order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True).indices
    indices = indices.gather(1, order)
    # ... and choose anew in the rare rows where a tie reaches beyond k.
    if (tied := best[:, k - 1] == best[:, -1]).any() and k < scores.shape[1]:
        indices[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, indices), indices


class ZeroShotClassifier:
    """Name what photos show, among classes given as words (see :func:`build_class_bank`)."""

    def __init__(self, model: Any, class_names: Sequence[str], templates: str | Sequence[str]):
        if not hasattr(model, "logit_scale"):
            raise ValueError(f"{type(model).__name__} has no logit_scale, so no probabilities")
        self.model, self.bank = model, build_class_bank(model, class_names, templates)

    def predict(self, images: Sequence, k: int = 5, batch_size: int = 64) -> list[list[Prediction]]:
        """Give the k best classes of each PIL image, path or uint8 (3, H, W) tensor, best first."""
        transform, names = self.model.image_transform(train=False), self.bank.class_names
        scale, results = torch.as_tensor(self.model.logit_scale).detach(), []
        with torch.no_grad(), _eval_mode(self.model):
            for start in range(0, len(images), batch_size):
                batch = map(_opened, images[start : start + batch_size])
                pixels = torch.stack([transform(image) for image in batch]).to(scale.device)
                embeddings = self.model.encode_image(pixels)
                scores, indices = rank_classes(embeddings, self.bank, k)
                shares = class_probabilities(embeddings, self.bank, scores, scale)
                for row in torch.stack([indices, scores, shares], dim=2).tolist():
                    results.append([Prediction(names[int(i)], s, p) for i, s, p in row])
        return results


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Switch dropout and batch statistics off, then give each part its own mode back."""
    parts = [part for part in getattr(model, "modules", list)() if part.training]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part in parts:
            part.training = True


def _opened(image: Any) -> Any:
    is_file = isinstance(image, str | Path)
    return decode_image(Path(image).read_bytes(), f"{image}: ") if is_file else image
