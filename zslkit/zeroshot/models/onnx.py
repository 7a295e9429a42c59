"""Both towers as ONNX graphs, with all that a program without torch needs beside them.

Dimensions: B = images or texts, L = tokens, S = side in pixels, D = embedding.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zslkit.data.files import whole, write_json, write_text
from zslkit.zeroshot.models.hugging_face import embed_tokens
from zslkit.zeroshot.models.saving import preprocessing
from zslkit.zeroshot.ranking import ClassBank

EXAMPLE = Path(__file__).with_name("onnx_example.txt")


class _Image(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values)


class _Text(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return embed_tokens(self.model, input_ids, attention_mask)


def export_onnx(model: nn.Module, folder: Path, bank: ClassBank | None, max_tokens: int) -> None:
    """Write ``image.onnx``, ``text.onnx``, their settings, the classes and ``example.py``.

    Both graphs take any batch, the text graph any length. ``example.py`` needs onnxruntime,
    numpy and pillow; it reads the classes that are stored, and others where the tokenizer is a
    WordPiece, whose vocabulary is then stored too.
    """
    size = model.image_transform(train=False).size
    batch = torch.export.Dim("batch")
    pixels = torch.rand(2, 3, size, size)
    _export(_Image(model), (pixels,), folder / "image.onnx", {"pixel_values": {0: batch}})
    tokenizer, fixed = tokenizer_of(model)
    ids = tokens_of(tokenizer, ["a photo of a dog", "two cats"], fixed or max_tokens, bool(fixed))
    length = {} if fixed else {1: torch.export.Dim("length", min=2, max=max_tokens)}
    shapes = {name: {0: batch, **length} for name in ("input_ids", "attention_mask")}
    _export(_Text(model), tuple(torch.from_numpy(part) for part in ids), folder / "text.onnx",
            shapes)  # fmt: skip
    vocabulary = _word_pieces(tokenizer)
    if vocabulary:
        write_text(folder / "vocab.txt", "\n".join(vocabulary) + "\n")
    card = getattr(model.text_tower, "card", None)
    write_json(folder / "settings.json", {
        **preprocessing(model),
        "resizes_like": resizes_like(model.image_transform(train=False)),
        "crop_rounds": not hasattr(getattr(model.image_tower, "files", None), "processor"),
        "logit_scale": torch.as_tensor(model.logit_scale).item(),
        "max_tokens": max_tokens,
        "lower_case": bool(getattr(tokenizer, "do_lower_case", True)),
        "prompt": card.prompt if card else "",
        "tokenizer": "wordpiece" if vocabulary else "not included",
    })  # fmt: skip
    if bank is not None:
        with whole(folder / "class_bank.npy") as temporary, temporary.open("wb") as file:
            np.save(file, bank.embeddings.numpy())
        write_json(folder / "classes.json", list(bank.class_names))
    shutil.copy(EXAMPLE, folder / "example.py")


def resizes_like(transform: Any) -> str:
    """Say whose bicubic makes the pixels: pillow's and torch's differ by a grey level."""
    if not hasattr(transform, "facts"):
        return "torch"
    library, facts = transform.facts
    pillow = library == "open_clip" or str(facts.get("image_processor_type")).endswith("Pil")
    return "pillow" if pillow else "torch"


def tokenizer_of(model: Any) -> tuple[Any, int | None]:
    """Find the tokenizer of a text tower, and the length it always pads to, if it does.

    Raises
    ------
    ValueError
        If the tower has no vocabulary that could be written down.
    """
    tokenizer = getattr(model.text_tower, "tokenizer", None)
    if hasattr(tokenizer, "padding"):  # a CLIP or SigLIP of transformers
        return tokenizer.tokenizer, tokenizer.length if tokenizer.padding is not True else None
    if hasattr(tokenizer, "context_length"):  # of open_clip
        return tokenizer, tokenizer.context_length
    return transformers_tokenizer(model), None


def transformers_tokenizer(model: Any) -> Any:
    """Find the tokenizer of a text tower for other tools to load.

    Raises
    ------
    ValueError
        If it is none of transformers.
    """
    tokenizer = getattr(model.text_tower, "tokenizer", None)
    tokenizer = tokenizer.tokenizer if hasattr(tokenizer, "padding") else tokenizer
    if not hasattr(tokenizer, "model_max_length"):
        name = getattr(model.text_tower, "name", "small")
        raise ValueError(
            f"text_encoder={name!r}: its texts are not read by a tokenizer of transformers; "
            "export it with --format zslkit, or what open_clip made also as open_clip or onnx"
        )
    return tokenizer


def tokens_of(tokenizer: Any, texts: list[str], length: int, full: bool) -> tuple:
    """Tokenize texts: ids and mask, both (B, L) int64."""
    if hasattr(tokenizer, "context_length"):  # of open_clip: padded to the full length, no mask
        ids = tokenizer(texts).numpy().astype(np.int64)
        return ids, np.ones_like(ids)
    options = {"truncation": True, "max_length": length, "return_tensors": "np"}
    found = tokenizer(texts, padding="max_length" if full else True, **options)
    ids = found["input_ids"].astype(np.int64)
    return ids, np.asarray(found.get("attention_mask", np.ones_like(ids)), np.int64)


def _export(module: nn.Module, inputs: tuple, path: Path, shapes: dict) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own making, about its own code
        torch.onnx.export(
            module.eval(), inputs, path, input_names=[*shapes], output_names=["embeddings"],
            dynamo=True, dynamic_shapes=tuple(shapes.values()), external_data=False, verbose=False,
        )  # fmt: skip


def _word_pieces(tokenizer: Any) -> list[str]:
    """Give the vocabulary of a BERT tokenizer in the order of its numbers; else nothing."""
    if hasattr(tokenizer, "context_length"):
        return []
    if "bert" not in type(tokenizer).__name__.lower() and not {"[CLS]", "[SEP]", "[UNK]"} <= set(
        tokenizer.get_vocab()
    ):
        return []
    return sorted(vocabulary := tokenizer.get_vocab(), key=vocabulary.get)
