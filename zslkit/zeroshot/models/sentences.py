"""The text half of a run as modules that sentence-transformers has itself, for readers without us.

Images have no such form: transformers' wrapper of timm resizes them by PIL, which rounds some
pixels otherwise than the training did, enough to reorder classes that are nearly equal.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zslkit.zeroshot.models.saving import plain

TEXTS = "texts"
"""Folder inside an export for sentence-transformers."""


def has_sentence_modules(model: Any) -> bool:
    """Tell whether the text half is a sentence encoder without a prompt behind linear layers."""
    card, config = getattr(model.text_tower, "card", None), getattr(model, "config", None)
    behind = config is not None and config.projection in ("linear", "mlp")
    return behind and card is not None and not card.prompt


def write_texts(model: Any, folder: Path) -> None:
    """Write the text half: transformer, pooling, dense layers, each as sentence-transformers'.

    Raises
    ------
    ValueError
        If what is read back does not embed texts as the model does.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    tower, dense = model.text_tower, []
    layers = [part for part in model.text_projection if not isinstance(part, nn.Dropout)]
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Linear):
            activation = nn.GELU() if isinstance(after, nn.GELU) else nn.Identity()
            sizes = layer.in_features, layer.out_features
            dense.append(Dense(*sizes, activation_function=activation))
            dense[-1].linear.load_state_dict(plain(layer.state_dict()))
    with tempfile.TemporaryDirectory() as place:
        for part in (tower.net, tower.tokenizer):
            part.save_pretrained(place)
        body = Transformer(place, max_seq_length=tower.max_tokens)
        pooling = Pooling(tower.feature_dim, tower.card.pooling, tower.card.pools_prompt)
        modules = [body, pooling, Normalize(), *dense, Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(
            str(folder), create_model_card=False
        )
    texts = ["a dog", "two people sit on a bench in front of the sea " * 20]
    found = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    with torch.no_grad():
        off = (torch.from_numpy(found) - model.encode_text(texts).cpu()).abs().max().item()
    if off > 1e-5:
        raise ValueError(f"format='sentence-transformers': {TEXTS} deviates by {off:.2g}")
