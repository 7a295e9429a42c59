"""Manifest → Pairs: one sequence over tar shards, tables, image folders and toy scenes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from torch import Tensor

from zslkit.data.files import find_files
from zslkit.data.images import BrokenImageError, to_pil
from zslkit.data.manifests import Manifest, load_manifest
from zslkit.data.noise import CaptionNoise, plant, read_indices
from zslkit.data.readers import reader_of
from zslkit.data.sampling import check_broken
from zslkit.data.source import Source

_MAX_SKIPPED = 0.01  # share of a harvest that may lack image or caption; it is left out


@dataclass(frozen=True)
class Pair:
    """One image and its captions; the image is read when first asked for."""

    key: str
    captions: tuple[str, ...]
    label: int | None
    _read: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def pixels(self) -> Tensor:
        """Tensor of shape (3, H, W), uint8, RGB."""
        return self._read()

    @cached_property
    def image(self):
        """PIL image, RGB."""
        return to_pil(self.pixels)


class Pairs(Sequence):
    """Sequence of pairs; open it with :func:`open_pairs`. No file stays open between reads.

    Attributes
    ----------
    manifest, split
        What the pairs were opened from.
    keys : ndarray of str, captions : Sequence of tuple of str
        Per image; no image is decoded for them.
    labels : ndarray of int64 or None
        Position of each image's class in the tuple ``class_names``, if each has one.
    class_ids : tuple of str
        What the set's own lists call the classes: WordNet synsets, MIDs; else their names.
    positives, negatives : Sequence of tuple of int, or None
        Per image the classes that it shows, and those that people found absent, if known.
    swapped : ndarray of bool
        Images with a caption made wrong on purpose. For reports, never for training.
    wrong : ndarray of bool
        The same per caption, those of each image in turn.
    skipped : tuple of str
        Keys left out because the source lacks the image or every caption.
    """

    def __init__(
        self, manifest, split, source: "Source", caption_noise, seed, max_pairs,
        kind: CaptionNoise = "image", indices: np.ndarray | None = None,
    ):  # fmt: skip
        rng, n = np.random.default_rng(seed), len(source.keys)
        # Sorted, so that reading runs forward through the shards.
        rows = np.arange(n) if max_pairs is None else np.sort(rng.permutation(n)[:max_pairs])
        caption_rows, self.swapped = rows.copy(), np.zeros(len(rows), dtype=bool)
        whole = kind == "image" and indices is None
        if whole and caption_noise > 0 and len(rows) > 1:
            chosen = rng.permutation(len(rows))[: max(2, round(caption_noise * len(rows)))]
            caption_rows[chosen] = rows[np.roll(chosen, 1)]  # one cycle: none keeps its own
            self.swapped[chosen] = True
        self.manifest, self.split, self.skipped = manifest, split, source.skipped
        self.keys, self.captions = source.keys[rows], source.captions.take(caption_rows)
        if whole:
            self.wrong = np.repeat(self.swapped, [len(group) for group in self.captions])
        elif caption_noise > 0 or indices is not None:
            planted = plant(self.captions, caption_noise, kind, rng, indices)
            self.captions, self.wrong, self.swapped = planted
        self.labels = None if source.labels is None else source.labels[rows]
        self.class_names, self.class_ids = source.class_names, source.class_ids
        self.positives, self.negatives = (
            None if groups is None else groups.take(rows)
            for groups in (source.positives, source.negatives)
        )
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Pair:
        i = range(len(self))[i]  # understands -1 and raises IndexError
        label = None if self.labels is None else int(self.labels[i])
        return Pair(self.keys[i], self.captions[i], label, partial(self.read_pixels, i))

    def read_pixels(self, i: int) -> Tensor:
        """Decode image ``i``: (3, H, W) uint8, or a BrokenImageError that names its key."""
        try:
            return self._source.read(int(self._rows[i]))
        except (BrokenImageError, OSError) as error:
            raise BrokenImageError(f"image {self.keys[i]!r}: {error}") from error

    @cached_property
    def image_fingerprint(self) -> str:
        """Sha256 of which images these are, whatever their captions: a key for cached features."""
        stamp = self._source.stamp(self._rows)
        return _sha256(chain((self.manifest.checksum, self.split), self.keys), stamp)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of images and captions, and so of the noise, seed and max_pairs in effect."""
        return _sha256(chain((self.image_fingerprint,), self.captions))


def open_pairs(
    manifest: Manifest | str | Path,
    split: str,
    *,
    data_root: str | Path | None = None,
    caption_noise: float = 0.0,
    caption_noise_kind: CaptionNoise = "image",
    caption_noise_file: str | Path | None = None,
    seed: int = 0,
    max_pairs: int | None = None,
) -> Pairs:
    """Open one split of a data set.

    Parameters
    ----------
    manifest : Manifest, str or Path
        A manifest, or its name or file for :func:`zslkit.data.manifests.load_manifest`.
    split : str
        One of ``manifest.splits``.
    data_root : str or Path, optional
        Folder that the manifest's paths start from.
    caption_noise : float in [0, 1]
        Share of images, or for other kinds than ``image`` of captions, that are made wrong.
    caption_noise_kind : str
        ``image`` exchanges the captions of images, all of an image together; the others,
        ``caption``, ``similar``, ``words``, ``boilerplate``, are described in
        :func:`zslkit.data.noise.plant`.
    caption_noise_file : path, optional
        Instead: which caption stands in each place, see :func:`zslkit.data.noise.read_indices`.
    seed : int
        Draws the images for ``max_pairs`` and ``caption_noise``; no effect otherwise.
    max_pairs : int, optional
        Keep this many images; a larger number keeps them and more.

    Raises
    ------
    ValueError
        If the split, a column, caption_noise or max_pairs is out of question, a class is listed
        twice, or images or captions are missing.
    FileNotFoundError
        If a file that the manifest names is missing.
    """
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest, data_root)
    if split not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise ValueError(f"split={split!r}: {manifest.name!r} has no such split; known: {known}")
    if not 0 <= caption_noise <= 1:
        raise ValueError(f"caption_noise={caption_noise} must lie between 0 and 1")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs} must be at least 1, or None for all")
    root = manifest.data_root if data_root is None else Path(data_root)
    for path in manifest.splits[split].paths:
        if not find_files(root, path):
            raise FileNotFoundError(
                f"{path!r} of manifest {manifest.name!r} is not under data_root={str(root)!r}; "
                f"how to obtain it: {manifest.how_to_obtain}"
            )
    source = reader_of(manifest.kind)(manifest, manifest.splits[split], root)
    check_broken(source.skipped, len(source.keys) + len(source.skipped), _MAX_SKIPPED)
    if len(source.keys) == 0:
        raise ValueError(f"split {split!r} of {manifest.name!r} holds no image with a caption")
    indices = None if caption_noise_file is None else read_indices(caption_noise_file)
    return Pairs(
        manifest, split, source, caption_noise, seed, max_pairs, caption_noise_kind, indices
    )


def _sha256(texts: Iterable, data: bytes = b"") -> str:
    """Hash the JSON text of a list, in pieces: of millions of keys it would fill gigabytes."""
    digest, texts, comma = hashlib.sha256(b"["), iter(texts), ""
    while some := list(islice(texts, 65536)):
        digest.update((comma + json.dumps(some)[1:-1]).encode())
        comma = ", "
    digest.update(b"]" + data)
    return digest.hexdigest()
