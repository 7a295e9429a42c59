"""The model card of a saved model: a metadata block that hubs read, then words for people."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from zslkit.report.cards import card_markdown

_OURS = "import zslkit.zeroshot.models.hugging_face  # registers the class; pip install zslkit\n"
_USES = {
    "zslkit": """import zslkit as zk

model = zk.from_pretrained("{name}")
classifier = zk.ZeroShotClassifier(model, ["a dog", "a cat"])
print(classifier.predict("photo.jpg", k=2))""",
    "transformers": """{ours}from transformers import pipeline

namer = pipeline("zero-shot-image-classification", "{name}")
print(namer("photo.jpg", candidate_labels=["a dog", "a cat"]))""",
    "sentence-transformers": """{ours}from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
print(model.encode(["a dog", "a cat"]) @ model.encode(Image.open("photo.jpg")))""",
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")""",
    "onnx": """# python example.py photo.jpg; it needs onnxruntime, numpy and pillow
from example import embed_images

print(embed_images(["photo.jpg"]))""",
}

_LIMITS = """
- The classes are the words that it is asked with; among wrong ones it still names the nearest.
- Its probabilities are a softmax at the learned scale: they are not calibrated unless a
  classifier was fitted to labelled images (`ZeroShotClassifier.calibrate`).
- What its training pairs seldom show or say, people above all, it knows badly and with the
  prejudices of their captions. Not for decisions about people.
- The licence of the data and of pretrained towers binds this model too.
"""


def model_card(
    model: Any,
    saved: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    name: str,
    format: str = "zslkit",
    stock: bool = False,
) -> str:
    """Write ``README.md`` of a saved model.

    Parameters
    ----------
    saved : mapping
        What ``zslkit.json`` holds.
    run : mapping or None
        What ``run.json`` holds: metrics with intervals, origin.
    name : str
        Title.
    format : str
        Of the export: whose library reads it.
    stock : bool
        Whether that library reads it without us.
    """
    import yaml

    config = saved.get("config") or {}
    data = _data_of(config)
    block = {
        "library_name": format,
        "pipeline_tag": "zero-shot-image-classification",
        "license": "other",
        "license_name": "terms-of-data-and-towers",
        "tags": ["zero-shot", "clip", "soft-label-distillation"],
        "language": "en",
    }
    if data:
        block["datasets"] = [data["name"]]
    if results := [*_results((run or {}).get("metrics", {}), config)]:
        block["model-index"] = [{"name": name, "results": results}]
    head = yaml.safe_dump(block, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {name}\n", _towers(model, saved)]
    if data:
        parts.append(f"## Data\n\n{data['title']}. Licence: {data['licence']}\n")
    use = _USES[format].format(name=name, ours="" if stock else _OURS)
    parts += [f"## Use\n\n```python\n{use}\n```\n", f"## Limits\n{_LIMITS}"]
    if run:
        parts.append(card_markdown(run).replace("\n## ", "\n### ").replace("# Run card", "## Run"))
    return "\n".join(parts)


def _towers(model: Any, saved: Mapping[str, Any]) -> str:
    names = [f"`{tower['name']}`" for tower in saved["towers"].values()]
    size = model.image_transform(train=False).size
    scale = torch.as_tensor(model.logit_scale).item()
    return (
        f"Image tower {names[0]}, text tower {names[1]}; images of {size} × {size} pixels, "
        f"similarities times {scale:.4g}.\n"
    )


def _data_of(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Find what the training pairs were; None where no manifest of that name is at hand."""
    from zslkit.data.manifests import load_manifest

    try:
        manifest = load_manifest(config["manifest"], config.get("data_root"))
    except (KeyError, OSError, ValueError):
        return None
    return {"name": manifest.name, "title": manifest.title, "licence": manifest.licence}


def _results(metrics: Mapping[str, Any], config: Mapping[str, Any], path=()) -> Iterator[dict]:
    """Word every estimate as an entry of a model-index."""
    for key, value in metrics.items():
        if not isinstance(value, Mapping):
            continue
        if "value" not in value:
            yield from _results(value, config, (*path, key))
            continue
        zeroshot = "zeroshot" in path
        task = "zero-shot-image-classification" if zeroshot else "image-text-retrieval"
        data = config.get("zeroshot_manifest" if zeroshot else "manifest") or "unknown"
        interval = f"95 % interval {value.get('low')} to {value.get('high')}"
        yield {
            "task": {"type": task},
            "dataset": {"type": data, "name": data},
            "metrics": [{
                "type": key, "value": value["value"], "name": " ".join((*path, key)),
                "args": {"interval": interval, "n": value.get("n")},
            }],
        }  # fmt: skip
