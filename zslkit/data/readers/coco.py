"""COCO captions: one JSON of images and annotations (cocodataset.org, format-data)."""

import json
from pathlib import Path
from typing import Any

from zslkit.data.readers.finding import SPLIT_NAMES, Found, Hints, below, find_folder
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source, files_in


def read_coco(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images with all captions that annotations give them, by ``image_id``."""
    content = _read(root / split.source)
    name_of = {image["id"]: image["file_name"] for image in content["images"]}
    captions: dict[str, list[str]] = {name: [] for name in name_of.values()}
    for annotation in content["annotations"]:
        if (name := name_of.get(annotation["image_id"])) is not None:
            captions[name].append(str(annotation.get("caption", "")).strip())
    groups = {name: list(dict.fromkeys(texts)) for name, texts in captions.items()}
    return files_in(root / split.folder, groups, split.source)


def recognise_coco(path: Any, hints: Hints) -> Found | None:
    """Take a JSON object with images and annotations that hold captions, or a folder of them."""
    if isinstance(path, Path) and path.is_dir():
        return _recognise_folder(path, hints)
    if not isinstance(path, Path) or path.suffix != ".json" or not path.is_file():
        return None
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return None
    content = _read(path)
    names = [image["file_name"] for image in content["images"]]
    folder, root = find_folder(names, path.parent, hints, path.name), hints.data_root or path.parent
    split = {"source": below(path, root), "folder": below(folder, root)}
    return Found("coco", "COCO captions, images[].file_name and annotations[].caption", root, split)


def _recognise_folder(path: Path, hints: Hints) -> Found | None:
    """Take COCO's own layout: annotations/captions_val2017.json beside val2017/, and so on."""
    files = sorted([*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")])
    splits: dict[str, dict[str, str]] = {}
    for file in files:
        name = file.stem.removeprefix("captions_").lower().rstrip("0123456789")
        found = recognise_coco(file, Hints(data_root=hints.data_root or path))
        if found is not None:
            splits[SPLIT_NAMES.get(name, name)] = found.split
    if not splits:
        return None
    words = f"COCO captions of {', '.join(file.name for file in files)}"
    return Found("coco", words, hints.data_root or path, next(iter(splits.values())), splits)


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    for part, field in (("images", "file_name"), ("annotations", "caption")):
        if not any(field in item for item in content.get(part, ())):
            raise ValueError(
                f"{path.name}: its {part} have no field {field!r}; COCO's captions are in "
                "captions_train2017.json and its like, not in those of instances or keypoints"
            )
    return content
