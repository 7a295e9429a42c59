"""A trained model as other people's tools read it, each export proven on real photos.

Dimensions: N = photos, C = classes, D = embedding.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.data.files import whole, write_json, write_text
from zslkit.data.strict import nearest
from zslkit.zeroshot.class_bank import build_class_bank, eval_mode
from zslkit.zeroshot.models.cards import model_card
from zslkit.zeroshot.models.saving import SAVED, origin, plain
from zslkit.zeroshot.models.sentences import TEXTS, has_sentence_modules, write_texts
from zslkit.zeroshot.models.stock import library_of, stock_model
from zslkit.zeroshot.ranking import ClassBank

FORMATS = ("zslkit", "transformers", "sentence-transformers", "open_clip", "onnx")
PROOF = "parity.json"
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
    scale_deviation: float = 0.0
    """Relative difference of the logit scales, where the format keeps one."""

    @property
    def holds(self) -> bool:
        """Whether the export may be called the same model."""
        deviation = max(self.image_deviation, self.text_deviation, self.scale_deviation)
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
        New, empty, or that of an earlier export, which is replaced as a whole. It is written
        beside its place and moved there when parity holds; else all stays as it was.
    photos : sequence of PIL images
        Real ones, at least one.
    class_names, templates
        The class bank that goes along, and the texts that are compared.
    run : mapping, optional
        For the model card.

    Raises
    ------
    ValueError
        For an unknown format, a folder with something else, no photos, a model that the format
        cannot hold, or an export that does not give what the model gives.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: no such format; {nearest(format, FORMATS)}")
    if not hasattr(model, "save_pretrained"):
        raise ValueError(
            f"{type(getattr(model, 'model', model)).__name__}: has no save_pretrained; export "
            "takes runs, saved models and those of load_model, not a class of your own"
        )
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / PROOF).is_file():
        raise ValueError(
            f"folder={str(folder)!r}: is not empty and no earlier export; give a new one"
        )
    if not photos:
        raise ValueError("photos: none given, and without some nothing can be proven")
    needs = {"onnx": "onnxscript", "sentence-transformers": "sentence_transformers"}
    if format in needs and importlib.util.find_spec(needs[format]) is None:
        raise ValueError(f"format={format!r}: needs {needs[format]}; pip install 'zslkit[export]'")
    bank = build_class_bank(model, class_names, templates)
    texts = [f"a photo of a {name}." for name in class_names]
    write, read = _WRITERS[format]
    with _replacing(folder) as place:
        with eval_mode(model):
            write(model, place, bank, run)
            parity = compare(model, read(place, model), photos, texts)
        if not parity.holds:
            raise ValueError(
                f"format={format!r}: not the same model: images deviate by "
                f"{parity.image_deviation:.2g}, texts by {parity.text_deviation:.2g}, the scale by "
                f"{parity.scale_deviation:.2g}, {parity.n_equal} of {parity.n_photos} photos are "
                "ranked alike"
            )
        if format != "zslkit":  # there it is written already
            stock = library_of(model) is not None
            card = model_card(model, origin(model), run, folder.resolve().name, format, stock)
            write_text(place / "README.md", card)
        facts = {**parity._asdict(), "format": format, "classes": len(class_names)}
        write_json(place / PROOF, facts)
    return parity


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder of the same name beside it, which takes its place at the end."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as around:
        place = Path(around) / folder.name
        place.mkdir()
        yield place
        if folder.exists():
            folder.rename(Path(around) / f"{folder.name}.old")
        place.rename(folder)


@torch.no_grad()
def compare(model: Any, other: Any, photos: Sequence[Any], texts: Sequence[str]) -> Parity:
    """Compare two models, each with its own preprocessing, on the same photos and texts.

    ``other`` is a pair of functions: photos → (N, D) array, texts → (C, D) array; its logit
    scale may follow.
    """
    transform = model.image_transform(train=False)
    place = next(model.parameters()).device
    pixels = torch.stack([transform(photo) for photo in photos]).to(place)
    own = model.encode_image(pixels).cpu(), model.encode_text(list(texts)).cpu()
    theirs = [
        _tensor(embed(list(items))) for embed, items in zip(other[:2], (photos, texts), strict=True)
    ]
    deviations = [(a - b).abs().max().item() for a, b in zip(own, theirs, strict=True)]
    scores, found = own[0] @ own[1].T, theirs[0] @ theirs[1].T
    orders = (s.argsort(dim=1, descending=True, stable=True) for s in (scores, found))
    equal = int(torch.eq(*orders).all(dim=1).sum())
    scales = [torch.as_tensor(s).item() for s in (model.logit_scale, *other[2:])]
    return Parity(*deviations, len(photos), equal, abs(scales[-1] / scales[0] - 1))


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
        other.logit_scale,
    )


def _write_transformers(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    from zslkit.zeroshot.models.hugging_face import ZslkitConfig
    from zslkit.zeroshot.models.onnx import transformers_tokenizer

    tokenizer = transformers_tokenizer(model)
    model.save_pretrained(folder, bank, run)
    tokenizer.model_max_length = getattr(model.text_tower, "max_tokens", tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    if library_of(model) == "transformers":  # its own class: nothing of ours is needed to read it
        _forget_ours(folder)
        stock_model(model).save_pretrained(folder)
        model.image_tower.files.processor.save_pretrained(folder)
        return
    config = ZslkitConfig(architectures=["ZslkitModel"])
    config.save_pretrained(folder)
    settings = folder / "preprocessor_config.json"
    facts = json.loads(settings.read_text("utf-8"))
    write_json(settings, {**facts, "image_processor_type": "ZslkitImageProcessor"})


def _forget_ours(folder: Path) -> None:
    """Remove what only :func:`zslkit.from_pretrained` reads."""
    (folder / SAVED).unlink()
    (folder / "model.safetensors").unlink()
    for side in ("image", "text"):
        shutil.rmtree(folder / side)


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

    if library_of(model) == "transformers":
        return images, texts, other.logit_scale.exp()
    return images, texts, other.model.logit_scale


def _fixed_length(model: Any) -> int | None:
    from zslkit.zeroshot.models.onnx import tokenizer_of

    return tokenizer_of(model)[1]


def _write_sentence(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    """Write what transformers reads, and tell sentence-transformers which methods to call."""
    import sentence_transformers
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor

    _write_transformers(model, folder, bank, run)
    if has_sentence_modules(model):
        write_texts(model, folder / TEXTS)
    stock = library_of(model) == "transformers"
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


def _write_open_clip(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    from safetensors.torch import save_file

    if library_of(model) != "open_clip":
        raise ValueError(
            "format='open_clip': holds a model of open_clip that was loaded, or a run that trained "
            "both halves of one with projection='none'; what has a projection of ours, or other "
            "towers, is no class of open_clip: export it as zslkit, transformers or onnx"
        )
    model.save_pretrained(folder, bank, run)
    _forget_ours(folder)
    (folder / "preprocessor_config.json").unlink()  # stands in the file of open_clip
    model.image_tower.files.save_into(folder)
    with whole(folder / "open_clip_model.safetensors") as temporary:
        save_file(plain(stock_model(model).state_dict()), temporary)


def _read_open_clip(folder: Path, model: Any) -> tuple[Callable, Callable, Any]:
    import open_clip

    name = f"local-dir:{folder}"
    other, _, process = open_clip.create_model_and_transforms(name, weights_only=True)
    tokenizer, other = open_clip.get_tokenizer(name), other.eval()
    return (
        lambda photos: other.encode_image(
            torch.stack([process(photo) for photo in photos]), normalize=True
        ),
        lambda items: other.encode_text(tokenizer(items), normalize=True),
        other.logit_scale.exp(),
    )


def _write_onnx(model: Any, folder: Path, bank: ClassBank, run: Any) -> None:
    from zslkit.zeroshot.models.onnx import export_onnx, tokenizer_of

    length = getattr(model.text_tower, "max_tokens", None)
    length = length or tokenizer_of(model)[1] or model.text_tower.tokenizer.length
    export_onnx(model, folder, bank, length)


def _read_onnx(folder: Path, model: Any) -> tuple[Callable, Callable]:
    """Run the graphs as ``example.py`` does: its preprocessing, its tokens where it has them."""
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

    return images, texts, example.SETTINGS["logit_scale"]


_WRITERS = {
    "zslkit": (_write_saved, _read_saved),
    "transformers": (_write_transformers, _read_transformers),
    "sentence-transformers": (_write_sentence, _read_sentence),
    "open_clip": (_write_open_clip, _read_open_clip),
    "onnx": (_write_onnx, _read_onnx),
}
