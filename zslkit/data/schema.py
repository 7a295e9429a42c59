"""What a manifest may say: splits, files and their checks."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from zslkit.data.readers import READERS
from zslkit.data.strict import Strict, nearest

# Of the keys of a split, the one that each kind of manifest cannot do without.
LABELLED = {
    **{"imagenet_folder": "folder", "imagenet_tar": "shards", "tencent": "labels"},
    **{"open_images": "labels", "torchvision": "dataset"},
}


_NEEDED = {"toy": "scenes", "shards": "shards", "table": "table", "image_folder": "folder"}
_NEEDED |= {"flickr8k": "captions", "parquet_images": "shards"}
_NEEDED |= LABELLED  # any other kind: "source"


# Of the keys of the manifest, the same; and what it names.
_NAMED = {
    "table": {"caption_field": "a column"},
    "tencent": {"class_list": "dictionary_and_semantic_hierarchy.txt"},
    "open_images": {"class_descriptions": "the file of LabelName,DisplayName"},
}


# Fields that came after checksums were first recorded: unset, they do not count, so that
# recorded checksums and cached features stay valid.
_LATER = {"class_descriptions", "image_list", "dataset", "arguments", "md5"}
_LATER |= {"source", "captions", "classes", "per_class", "share", "split_seed", "layouts"}


def _known_kind(kind: str) -> str:
    if kind not in READERS:
        raise ValueError(f"no such kind; {nearest(kind, READERS)}")
    return kind


Kind = Annotated[str, AfterValidator(_known_kind)]
"""A key of :data:`zslkit.data.readers.READERS`, to which further formats may be added."""
CaptionNoise = Literal["image", "caption", "similar", "words", "boilerplate"]
"""What of the captions is made wrong on purpose; :mod:`zslkit.data.noise` plants it."""


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
    source: str | None = None  # any other kind: the file or folder that its reader opens
    captions: str | None = None  # flickr8k: Flickr8k.token.txt
    classes: dict[str, str] = Field({})  # image_folder: class names by folder; no other is read
    per_class: int | None = Field(None, ge=1)  # image_folder: those of least sha1 of folder/file
    share: tuple[float, float] | None = None  # images whose seeded hash lies in this part of [0, 1)
    scenes: Literal["train", "dev", "test", "seen"] | None = None  # toy: group of classes
    n: int = Field(1000, ge=1)  # toy: number of scenes
    seed: int = Field(0, ge=0)  # toy: draws the scenes

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path or pattern of the split."""
        named = (*self.shards, self.table, self.folder, self.labels, self.image_list)
        named += (self.source, self.captions)
        return tuple(filter(None, named))


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file, image or caption.

    ``kind`` is missing, short or changed for a file; unsound for a split and extra for a folder of
    a labelled set; and what :func:`zslkit.data.verification.look_through` says of images.
    """

    path: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}, {self.detail}"


class Layout(Strict):
    """Another form in which the same set may lie on disk, such as that of its publisher."""

    kind: Kind
    splits: dict[str, Split] = Field(min_length=1)
    files: tuple[FileEntry, ...] = ()


class ManifestFields(Strict):
    """What a manifest says of one data set."""

    name: str
    kind: Kind
    title: str
    description: str = ""
    licence: str = ""  # or a plain statement that there is none; a private set needs neither
    terms: str = ""
    citation: str = ""
    how_to_obtain: str = ""  # commands or prose
    splits: dict[str, Split] = Field(min_length=1)
    split_seed: int = Field(0, ge=0)  # of the hashes that draw splits with a share
    files: tuple[FileEntry, ...] = ()
    layouts: tuple[Layout, ...] = ()  # other forms of the set; the first that is there is read
    caption_field: str | None = None  # shards: field of .json, null for .txt; table: column
    image_field: str = "image"  # table: column of image paths
    image_folder: str = "."  # table: folder that those paths start from
    class_list: str | None = None  # text file, a class per line: its name, wnid and names, or MID
    class_descriptions: str | None = None  # open_images: CSV of LabelName,DisplayName
    image_size: int = Field(64, ge=16)  # toy: pixels
    _data_root: Path = PrivateAttr(Path("."))
    _understood: str = PrivateAttr("")

    @model_validator(mode="after")
    def _complete(self) -> "ManifestFields":
        key = _NEEDED.get(self.kind, "source")
        for name, split in self.splits.items():
            if not getattr(split, key):
                raise ValueError(f"split {name!r} needs {key!r}, as kind is {self.kind!r}")
        for field, what in _NAMED.get(self.kind, {}).items():
            if getattr(self, field) is None:
                raise ValueError(f"{field} must name {what}, as kind is {self.kind!r}")
        for path in self.paths:
            if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
                raise ValueError(f"path {path!r} must be relative to the data root")
        return self

    @property
    def data_root(self) -> Path:
        """Folder that all paths start from."""
        return self._data_root

    @property
    def understood(self) -> str:
        """How a source without a manifest was read, in one line; empty for a manifest."""
        return self._understood

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
