"""Flickr8k in its authors' files."""

from pathlib import Path

from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source, files_in


def read_flickr8k(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images of a list such as Flickr_8k.trainImages.txt, with their captions.

    ``captions`` has lines of ``NAME.jpg#N<tab>caption``; without ``image_list`` all are read.
    """
    captions: dict[str, list[str]] = {}
    path = root / split.captions
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        image, sign, text = line.partition("\t")
        name, mark, _ = image.rpartition("#")
        if not (sign and mark):
            raise ValueError(f"{path}, line {number}: {line!r} is not 'NAME.jpg#N<tab>caption'")
        captions.setdefault(name, []).append(text.strip())
    listed = list(captions)
    if split.image_list is not None:
        listed = (root / split.image_list).read_text("utf-8").split()
    found = {name: captions.get(name, []) for name in listed}
    source = files_in(root / split.folder, found, split.image_list or split.captions)
    return source.rename(lambda name: name.rpartition(".")[0])  # as in the shards
