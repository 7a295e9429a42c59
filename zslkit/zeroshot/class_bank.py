"""Class names → prompts → class bank (C, D)."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zslkit.data.files import whole
from zslkit.zeroshot.models.protocol import as_model
from zslkit.zeroshot.prompts import Descriptions, class_prompts, find_templates
from zslkit.zeroshot.ranking import ClassBank

_BANK_LAYOUT = 1  # part of every key: raise it when what is stored changes


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
    if hasattr(model, "image_transform"):  # not merely something that encodes texts
        model = as_model(model)
    prompts = class_prompts(class_names, templates, descriptions)
    totals, counts = None, torch.zeros(len(class_names), 1)
    with torch.no_grad(), eval_mode(model):
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
    UserWarning. Of a model whose weights cannot be seen nothing is kept.
    """
    from zslkit.data.weights import fingerprint

    model = as_model(model)
    if not getattr(model.text_tower, "cacheable", True):
        return build_class_bank(model, class_names, templates, batch_size, descriptions)
    used = {name: (descriptions or {}).get(name) for name in class_names}
    parts = [model.text_tower, getattr(model, "text_projection", None)]
    weights = [fingerprint(part) for part in parts if part is not None]
    facts = [_BANK_LAYOUT, weights, list(class_names), find_templates(templates), used]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    path = Path(cache_dir) / f"{key}.classes.safetensors"
    if (embeddings := _read_bank(path)) is not None:
        return ClassBank(embeddings, tuple(class_names))
    bank = build_class_bank(model, class_names, templates, batch_size, descriptions)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"sha256": _checksum(bank.embeddings)}
    with whole(path) as temporary:
        save_file({"embeddings": bank.embeddings}, temporary, facts)
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


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Switch dropout and batch statistics off, then give each part its own mode back."""
    parts = [part for part in getattr(model, "modules", list)() if part.training]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part in parts:
            part.training = True
