"""Readers: one file a format, each a function of manifest, split and data root.

A reader gives a :class:`zslkit.data.source.Source`; nothing but the listing of the files is read.
A recogniser says of a file, folder or object without a manifest whether it is of its format, and
what the manifest would be: a :class:`zslkit.data.readers.finding.Found`, or None.
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
    "flickr8k": "flickr8k.read_flickr8k",
    "coco": "coco.read_coco",
    "sidecars": "sidecars.read_sidecars",
    "metadata_folder": "metadata.read_metadata",
    "parquet_images": "parquet_images.read_parquet_images",
    "objects": "objects.read_object",
    "saved_dataset": "saved.read_saved",
}
"""By the ``kind`` of a manifest: a function, or where it is; a format is imported when needed."""

RECOGNISERS: dict[str, str | Callable[..., Any]] = {
    "objects": "objects.recognise_object",
    "saved_dataset": "saved.recognise_saved",
    "coco": "coco.recognise_coco",
    "parquet_images": "parquet_images.recognise_parquet",
    "table": "tables.recognise_table",
    "metadata_folder": "metadata.recognise_metadata",
    "shards": "shards.recognise_shards",
    "sidecars": "sidecars.recognise_sidecars",
    "image_folder": "folders.recognise_folder",
}
"""Functions of a source and :class:`~zslkit.data.readers.finding.Hints`; the first that gives a
Found is believed, those added later before all others."""


def reader_of(kind: str) -> Callable[..., Any]:
    """Give the function that reads manifests of one kind."""
    return _function(READERS[kind])


def recognisers() -> list[Callable[..., Any]]:
    """Give the functions that recognise sources, in the order in which they are asked."""
    added = [name for name in RECOGNISERS if callable(RECOGNISERS[name])]
    rest = [name for name in RECOGNISERS if name not in added]
    return [_function(RECOGNISERS[name]) for name in (*added, *rest)]


def _function(place: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(place):
        return place
    module, _, name = place.rpartition(".")
    return getattr(import_module(f"{__name__}.{module}"), name)
