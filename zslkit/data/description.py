"""What a source is understood to be, and the manifest that says so."""

import json
from pathlib import Path
from typing import Any

from zslkit.data.files import write_text
from zslkit.data.manifests import Manifest, parse_manifest
from zslkit.data.pairs import open_pairs
from zslkit.data.readers.finding import below

_PATHS = ("table", "folder", "labels", "image_list", "source", "captions")


def describe(manifest: Manifest) -> dict[str, Any]:
    """Open every split and say what it holds.

    Returns
    -------
    dict
        ``name``, ``kind``, ``data_root``, ``splits`` (images, captions and what was left out, by
        name) and ``lines``, the same for people.
    """
    splits, lines = {}, []
    for name in manifest.splits:
        pairs = open_pairs(manifest, name, max_unreadable=1.0, quiet=True)
        lines += [line for line in pairs.understood if line not in lines]
        left_out = {why: len(keys) for why, keys in pairs.left_out.items()}
        n_captions = sum(map(len, pairs.captions))
        splits[name] = {"images": len(pairs), "captions": n_captions, "left_out": left_out}
    facts = {"name": manifest.name, "kind": manifest.kind, "data_root": str(manifest.data_root)}
    return facts | {"splits": splits, "lines": lines}


def write_manifest(manifest: Manifest, path: str | Path) -> Path:
    """Write a manifest to a file whose folder is then its data root.

    Raises
    ------
    ValueError
        If the name does not end in .json, the source is an object of this session, or the data
        do not lie below the file's folder: a manifest cannot leave its data root.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"{path}: a manifest is written as .json")
    if manifest.kind == "objects":
        raise ValueError(f"{manifest.name}: an object cannot be named by a file; write it to one")

    def moved(place: str) -> str:
        return below(manifest.data_root / place, path.parent)

    content = manifest.model_dump(mode="json", exclude_defaults=True)
    if manifest.kind == "table":
        content["image_folder"] = moved(manifest.image_folder)
    for split in content["splits"].values():
        split |= {key: moved(split[key]) for key in _PATHS if split.get(key)}
        if split.get("shards"):
            split["shards"] = [moved(place) for place in split["shards"]]
    parse_manifest(content, f"{path}: data do not lie below its folder; write it above them")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
