"""Tar shards in WebDataset layout, as img2dataset writes them."""

import json
import re
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

from zslkit.data.files import find_files
from zslkit.data.readers.finding import CAPTION_COLUMNS, Found, Hints, find_column, named_splits
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import IMAGE_SUFFIXES, Source

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # WebDataset: the key ends at the first dot


def read_shards(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Index tar shards, as img2dataset and webdataset write them, by one scan of their headers."""
    paths = [path for pattern in split.shards for path in find_files(root, pattern)]
    scans = (_scan(path, number, manifest.caption_field) for number, path in enumerate(paths))
    return Source([row for rows in scans for row in rows], paths)


def recognise_shards(path: Any, hints: Hints) -> Found | None:
    """Take a tar, or a folder of tars; captions are in .txt members, or a usual field of .json."""
    if not isinstance(path, Path):
        return None
    files = [path] if path.suffix == ".tar" and path.is_file() else []
    files = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]) if path.is_dir() else files
    if not files:
        return None
    field = hints.caption_field or _caption_field(files[0])
    root = path if path.is_dir() else path.parent
    names = [file.relative_to(root).as_posix() for file in files]
    groups = named_splits(names) if path.is_dir() else {}
    splits = {split: {"shards": part} for split, part in groups.items()}
    words = f"{len(files)} tar shards, captions from " + (f".json {field!r}" if field else ".txt")
    return Found("shards", words, root, {"shards": names}, splits, {"caption_field": field})


def _caption_field(path: Path) -> str | None:
    """Look into the first members of a tar for captions: None means .txt."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in islice(tar, 64):
                suffix = member.name.rpartition(".")[2].lower()
                if suffix == "txt":
                    return None
                if suffix == "json":
                    fields = json.loads(tar.extractfile(member).read())
                    field = find_column(list(fields), None, CAPTION_COLUMNS)
                    if field is not None:
                        return field
    except tarfile.TarError:
        pass  # the reader says what is wrong with the file
    return None


def _scan(path: Path, number: int, caption_field: str | None) -> list[list]:
    samples: dict[str, list] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                key, suffix = match[1], match[2].lower()
                sample = samples.setdefault(key, [key, [], None])
                if suffix in IMAGE_SUFFIXES:
                    sample[2] = (number, member.offset_data, member.size)
                elif suffix == ("txt" if caption_field is None else "json"):
                    text = tar.extractfile(member).read().decode("utf-8", "replace")
                    sample[1] = _captions(text, caption_field, f"{path}, {member.name}")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a sound uncompressed tar file ({error})") from error
    if not any(caption for sample in samples.values() for caption in sample[1]):
        where = ".txt members" if caption_field is None else f"field {caption_field!r} of .json"
        raise ValueError(
            f"{path}: none of its {len(samples)} samples has a caption in {where}; caption_field "
            "in the manifest names a field of .json members, null means .txt members"
        )
    return list(samples.values())


def _captions(text: str, caption_field: str | None, where: str) -> list[str]:
    if caption_field is None:
        return [text.strip()]
    record = json.loads(text)
    if caption_field not in record:
        raise ValueError(f"{where}: no field {caption_field!r}; its fields: {', '.join(record)}")
    value = record[caption_field]
    return [str(item or "").strip() for item in (value if isinstance(value, list) else [value])]
