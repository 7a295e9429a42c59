"""What a manifest may say: splits, files and their checks."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from zslkit.data.strict import Strict

# Of the keys of a split, the one that each kind of manifest cannot do without.
LABELLED = {
    **{"imagenet_folder": "folder", "imagenet_tar": "shards", "tencent": "labels"},
    **{"open_images": "labels", "torchvision": "dataset"},
}


_NEEDED = {"toy": "scenes", "shards": "shards", "table": "table", "image_folder": "folder"}
_NEEDED |= LABELLED


# Of the keys of the manifest, the same; and what it names.
_NAMED = {
    "table": {"caption_field": "a column"},
    "tencent": {"class_list": "dictionary_and_semantic_hierarchy.txt"},
    "open_images": {"class_descriptions": "the file of LabelName,DisplayName"},
}


# Fields that came after checksums were first recorded: unset, they do not count, so that
# recorded checksums and cached features stay valid.
_LATER = {"class_descriptions", "image_list", "dataset", "arguments", "md5"}


Kind = Literal[
    "toy", "shards", "table", "image_folder", "imagenet_folder", "imagenet_tar", "tencent",
    "open_images", "torchvision",
]  # fmt: skip


class FileEntry(Strict):
    """One file of a data set; without size and checksum only its presence can be checked."""

    path: str  # relative to the data root, with forward slashes
    size: int | None = Field(None, ge=0)  # bytes
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")  # where its publisher gives no other


class Split(Strict):
    """Where the pairs of one split are; each kind of manifest has keys of its own."""

    shards: tuple[str, ...] = ()  # shards, or images of a labelled set: tars, or part/*.tar
    table: str | None = None  # table: CSV or Parquet, one caption per row
    folder: str | None = None  # image_folder: holds one folder per class; or just the images
    labels: str | None = None  # image_folder: CSV of file,class_name; or the set's own list
    image_list: str | None = None  # open_images: CSV with an ImageID for every image
    dataset: str | None = None  # torchvision: name of the class in torchvision.datasets
    arguments: dict[str, Any] = Field({})  # torchvision: what else that class is given
    where: dict[str, str] = Field({})  # table, labels, image_list: keep the rows with these values
    scenes: Literal["train", "dev", "test", "seen"] | None = None  # toy: group of classes
    n: int = Field(1000, ge=1)  # toy: number of scenes
    seed: int = Field(0, ge=0)  # toy: draws the scenes

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path or pattern of the split."""
        named = (*self.shards, self.table, self.folder, self.labels, self.image_list)
        return tuple(filter(None, named))


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file, or with one split (unsound) or folder (extra) of files."""

    path: str
    kind: Literal["missing", "short", "changed", "unsound", "extra"]
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}, {self.detail}"


class ManifestFields(Strict):
    """What a manifest says of one data set."""

    name: str
    kind: Kind
    title: str
    description: str = ""
    licence: str  # or a plain statement that there is none
    terms: str = ""
    citation: str = ""
    how_to_obtain: str  # commands or prose
    splits: dict[str, Split] = Field(min_length=1)
    files: tuple[FileEntry, ...] = ()
    caption_field: str | None = None  # shards: field of .json, null for .txt; table: column
    image_field: str = "image"  # table: column of image paths
    image_folder: str = "."  # table: folder that those paths start from
    class_list: str | None = None  # text file, a class per line: its name, wnid and names, or MID
    class_descriptions: str | None = None  # open_images: CSV of LabelName,DisplayName
    image_size: int = Field(64, ge=16)  # toy: pixels
    _data_root: Path = PrivateAttr(Path("."))

    @model_validator(mode="after")
    def _complete(self) -> "ManifestFields":
        key = _NEEDED[self.kind]
        for name, split in self.splits.items():
            if not getattr(split, key):
                raise ValueError(f"split {name!r} needs {key!r}, as kind is {self.kind!r}")
        for field, what in _NAMED.get(self.kind, {}).items():
            if getattr(self, field) is None:
                raise ValueError(f"{field} must name {what}, as kind is {self.kind!r}")
        for path in self.paths:
            if PurePosixPath(path).is_absolute():
                raise ValueError(f"path {path!r} must be relative to the data root")
        return self

    @property
    def data_root(self) -> Path:
        """Folder that all paths start from."""
        return self._data_root

    @property
    def checksum(self) -> str:
        """Sha256 of the content in canonical form, whatever the data root."""
        content = json.dumps(_as_recorded(self.model_dump(mode="json")), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def paths(self) -> dict[str, None]:
        """Every path or pattern that the manifest names, once each, in order of mention."""
        paths = [entry.path for entry in self.files]
        paths += [path for split in self.splits.values() for path in split.paths]
        paths += [path for path in (self.class_list, self.class_descriptions) if path]
        paths += [self.image_folder] if self.kind == "table" else []
        return dict.fromkeys(paths)


def _as_recorded(content: Any) -> Any:
    if isinstance(content, list):
        return [_as_recorded(item) for item in content]
    if not isinstance(content, dict):
        return content
    kept = {name: value for name, value in content.items() if value or name not in _LATER}
    return {name: _as_recorded(value) for name, value in kept.items()}
