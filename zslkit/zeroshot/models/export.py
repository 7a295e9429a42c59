"""A trained model as other people's tools read it, each export proven on real photos.

Dimensions: N = photos, C = classes, D = embedding.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.data.files import write_json
from zslkit.data.strict import nearest
from zslkit.zeroshot.class_bank import build_class_bank, eval_mode
from zslkit.zeroshot.models.saving import SAVED
from zslkit.zeroshot.ranking import ClassBank

FORMATS = ("zslkit", "transformers", "sentence-transformers", "onnx")
TOLERANCE = 1e-3
"""Largest deviation of an embedding's component that passes: rankings must be equal besides."""


class Parity(NamedTuple):
    """How an export compares with the model it was made of."""

    image_deviation: float
    """Largest absolute difference of any component of N image embeddings."""
    text_deviation: float
    """The same of C text embeddings."""
    n_photos: int
    n_equal: int
    """Photos whose C classes come in exactly the same order."""

    @property
    def holds(self) -> bool:
        """Whether the export may be called the same model."""
        deviation = max(self.image_deviation, self.text_deviation)
        return self.n_equal == self.n_photos > 0 and deviation <= TOLERANCE


def export_model(
    model: Any,
    folder: str | Path,
    format: str,
    photos: Sequence[Any],
    class_names: Sequence[str],
    templates: str | Sequence[str] = "simple",
    run: Mapping[str, Any] | None = None,
) -> Parity:
    """Write a model in one of :data:`FORMATS`, read it back, and compare on photos.

    Parameters
    ----------
    folder : path
        Must be new or empty; removed again if parity does not hold.
    photos : sequence of PIL images
        Real ones, at least one.
    class_names, templates
        The class bank that goes along, and the texts that are compared.
    run : mapping, optional
        For the model card.

    Raises
    ------
    ValueError
        For an unknown format, a folder in use, no photos, a model that the format cannot hold,
        or an export that does not give what the model gives.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: no such format; {nearest(format, FORMATS)}")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"folder={str(folder)!r}: is not empty; give a new one")
    if not photos:
        raise ValueError("photos: none given, and without some nothing can be proven")
    needs = {"onnx": "onnxscript", "sentence-transformers": "sentence_transformers"}
    if format in needs and importlib.util.find_spec(needs[format]) is None:
        raise ValueError(f"format={format!r}: needs {needs[format]}; pip install 'zslkit[export]'")
    bank = build_class_bank(model, class_names, templates)
    texts = [f"a photo of a {name}." for name in class_names]
    folder.mkdir(parents=True, exist_ok=True)
    write, read = _WRITERS[format]
    try:
        with eval_mode(model):
            write(model, folder, bank, run)
            parity = compare(model, read(folder, model), photos, texts)
        if not parity.holds:
            raise ValueError(
                f"format={format!r}: not the same model: images deviate by "
                f"{parity.image_deviation:.2g}, texts by {parity.text_deviation:.2g}, "
                f"{parity.n_equal} of {parity.n_photos} photos are ranked alike"
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    facts = {**parity._asdict(), "format": format, "classes": len(class_names)}
    write_json(folder / "parity.json", facts)
    return parity


@torch.no_grad()
def compare(model: Any, other: Any, photos: Sequence[Any], texts: Sequence[str]) -> Parity:
    """Compare two models, each with its own preprocessing, on the same photos and texts.

    ``other`` is a pair of functions: photos → (N, D) array, texts → (C, D) array.
    """
    transform = model.image_transform(train=False)
    place = next(model.parameters()).device
    pixels = torch.stack([transform(photo) for photo in photos]).to(place)
    own = model.encode_image(pixels).cpu(), model.encode_text(list(texts)).cpu()
    theirs = [
        _tensor(embed(list(items))) for embed, items in zip(other, (photos, texts), strict=True)
    ]
    deviations = [(a - b).abs().max().item() for a, b in zip(own, theirs, strict=True)]
    scores, found = own[0] @ own[1].T, theirs[0] @ theirs[1].T
    orders = (s.argsort(dim=1, descending=True, stable=True) for s in (scores, found))
    equal = int(torch.eq(*orders).all(dim=1).sum())
    return Parity(*deviations, len(photos), equal)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def _write_saved(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    model.save_pretrained(folder, bank, run)


def _read_saved(folder: Path, model: Any) -> tuple[Callable, Callable]:
    from zslkit.zeroshot.models.restoring import from_pretrained

    other = from_pretrained(folder)
    transform = other.image_transform(train=False)
    return (
        lambda photos: other.encode_image(torch.stack([transform(photo) for photo in photos])),
        other.encode_text,
    )


def _write_transformers(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    from zslkit.zeroshot.models.hugging_face import ZslkitConfig
    from zslkit.zeroshot.models.onnx import tokenizer_of

    tokenizer, _ = tokenizer_of(model)
    stock = getattr(model, "source", (None,))[0]
    model.save_pretrained(folder, bank, run)
    tokenizer.model_max_length = getattr(model.text_tower, "max_tokens", tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    if hasattr(stock, "save_pretrained"):  # its own class: nothing of ours is needed to read it
        (folder / SAVED).unlink()
        shutil.rmtree(folder / "image")
        shutil.rmtree(folder / "text")
        stock.save_pretrained(folder)
        model.source[1].save_pretrained(folder)
        return
    config = ZslkitConfig(architectures=["ZslkitModel"])
    config.save_pretrained(folder)
    settings = folder / "preprocessor_config.json"
    facts = json.loads(settings.read_text("utf-8"))
    write_json(settings, {**facts, "image_processor_type": "ZslkitImageProcessor"})


def _read_transformers(folder: Path, model: Any) -> tuple[Callable, Callable]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    import zslkit.zeroshot.models.hugging_face  # noqa: F401  registers the class

    own = {"trust_remote_code": False}
    other = AutoModel.from_pretrained(folder, **own).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **own)
    processor = AutoImageProcessor.from_pretrained(folder, **own)
    fixed = _fixed_length(model)

    def unit(found: Any) -> Tensor:
        found = getattr(found, "pooler_output", found)
        return torch.nn.functional.normalize(found, dim=-1)

    def texts(items: list[str]) -> Tensor:
        padding = {"padding": "max_length", "max_length": fixed} if fixed else {"padding": True}
        tokens = tokenizer(items, truncation=True, return_tensors="pt", **padding)
        if fixed:
            tokens = {"input_ids": tokens["input_ids"]}
        return unit(other.get_text_features(**tokens))

    def images(items: list) -> Tensor:
        return unit(other.get_image_features(**processor(items, return_tensors="pt")))

    return images, texts


def _fixed_length(model: Any) -> int | None:
    from zslkit.zeroshot.models.onnx import tokenizer_of

    return tokenizer_of(model)[1]


def _write_sentence(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    """Write what transformers reads, and tell sentence-transformers which methods to call."""
    import sentence_transformers
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor

    _write_transformers(model, folder, bank, run)
    stock = hasattr(getattr(model, "source", (None,))[0], "save_pretrained")
    parts = (part.from_pretrained(folder) for part in (AutoImageProcessor, AutoTokenizer))
    CLIPProcessor(*parts).save_pretrained(folder)
    kind = "sentence_transformers.base.modules"
    write_json(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{kind}.normalize.Normalize"},
    ])  # fmt: skip
    (folder / "1_Normalize").mkdir()
    output = "pooler_output" if stock else None
    write_json(folder / "sentence_bert_config.json", {
        "transformer_task": "feature-extraction",
        "modality_config": {
            side: {"method": f"get_{side}_features", "method_output_name": output}
            for side in ("text", "image")
        },
        "module_output_name": "sentence_embedding",
    })  # fmt: skip
    versions = {"sentence_transformers": sentence_transformers.__version__}
    write_json(folder / "config_sentence_transformers.json", {
        "__version__": versions, "prompts": {}, "default_prompt_name": None,
        "similarity_fn_name": "cosine", "model_type": "SentenceTransformer",
    })  # fmt: skip


def _read_sentence(folder: Path, model: Any) -> tuple[Callable, Callable]:
    from sentence_transformers import SentenceTransformer

    import zslkit.zeroshot.models.hugging_face  # noqa: F401  registers the class

    other = SentenceTransformer(os.fspath(folder), device="cpu", trust_remote_code=False)
    return (lambda items: other.encode(items, show_progress_bar=False),) * 2


def _write_onnx(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    from zslkit.zeroshot.models.onnx import export_onnx, tokenizer_of

    length = getattr(model.text_tower, "max_tokens", None)
    length = length or tokenizer_of(model)[1] or model.text_tower.tokenizer.length
    export_onnx(model, folder, bank, length)


def _read_onnx(folder: Path, model: Any) -> tuple[Callable, Callable]:
    """Run the graphs as ``example.py`` does: its preprocessing, its tokens where it has them."""
    import tempfile

    import onnxruntime

    from zslkit.zeroshot.models.onnx import tokenizer_of, tokens_of

    spec = importlib.util.spec_from_file_location("zslkit_onnx_example", folder / "example.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def images(items: list) -> Any:
        with tempfile.TemporaryDirectory() as place:
            paths = [Path(place) / f"{i}.png" for i in range(len(items))]
            for temporary, photo in zip(paths, items, strict=True):
                photo.save(temporary)
            return example.embed_images(paths)

    def texts(items: list[str]) -> Any:
        if example.SETTINGS["tokenizer"] == "wordpiece":
            return example.embed_texts(items)
        tokenizer, fixed = tokenizer_of(model)
        length = example.SETTINGS["max_tokens"]
        ids, mask = tokens_of(tokenizer, items, length, bool(fixed))
        graph = onnxruntime.InferenceSession(folder / "text.onnx")
        given = {"input_ids": ids, "attention_mask": mask}
        return graph.run(None, {item.name: given[item.name] for item in graph.get_inputs()})[0]

    return images, texts


_WRITERS = {
    "zslkit": (_write_saved, _read_saved),
    "transformers": (_write_transformers, _read_transformers),
    "sentence-transformers": (_write_sentence, _read_sentence),
    "onnx": (_write_onnx, _read_onnx),
}
