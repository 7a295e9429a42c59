"""Folders of images with a .txt beside each, as img2dataset's output format ``files``."""

import os
from pathlib import Path
from typing import Any

from zslkit.data.readers.finding import Found, Hints, is_image
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source


def read_sidecars(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images in any depth; the caption is the text of the file that differs in its suffix."""
    folder = root / split.source
    images, texts = _list(folder)
    rows, paths = [], []
    for key in sorted(images.keys() | texts.keys()):
        caption = texts[key].read_text("utf-8", "replace").strip() if key in texts else ""
        place: Any = "no image"
        if key in images:
            place = (len(paths), 0, images[key].stat().st_size)
            paths.append(images[key])
        rows.append((key, [caption], place))
    return Source(rows, paths)


def recognise_sidecars(path: Any, hints: Hints) -> Found | None:
    """Take a folder in which at least half of the images have such a text."""
    if not isinstance(path, Path) or not path.is_dir():
        return None
    images, texts = _list(path)
    if not images or 2 * len(images.keys() & texts.keys()) < len(images):
        return None
    words = "image files, captions from the .txt beside each"
    return Found("sidecars", words, path, {"source": "."})


def _list(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Give images and texts by their path without suffix."""
    images, texts = {}, {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            key = path.relative_to(folder).with_suffix("").as_posix()
            if is_image(path):
                images[key] = path
            elif path.suffix.lower() == ".txt":
                texts[key] = path
    return images, texts
