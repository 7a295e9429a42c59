"""Readers: one file a format, each a function of manifest, split and data root.

A reader gives a :class:`zslkit.data.source.Source`; nothing but the listing of the files is read.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

READERS: dict[str, str | Callable[..., Any]] = {
    "toy": "scenes.read_scenes",
    "shards": "shards.read_shards",
    "table": "tables.read_table",
    "image_folder": "folders.read_folder",
    "imagenet_folder": "imagenet.read_imagenet",
    "imagenet_tar": "imagenet.read_imagenet",
    "tencent": "tencent.read_tencent",
    "open_images": "open_images.read_open_images",
    "torchvision": "torchvision.read_torchvision",
}
"""By the ``kind`` of a manifest: a function, or where it is; a format is imported when needed."""


def reader_of(kind: str) -> Callable[..., Any]:
    """Give the function that reads manifests of one kind."""
    reader = READERS[kind]
    if callable(reader):
        return reader
    module, _, name = reader.rpartition(".")
    return getattr(import_module(f"{__name__}.{module}"), name)
