"""Manifest → Pairs: one sequence over tar shards, tables, image folders and toy scenes."""

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zslkit.data.files import find_files
from zslkit.data.images import BrokenImageError, to_pil
from zslkit.data.manifests import Manifest, load_manifest
from zslkit.data.noise import plant, read_indices
from zslkit.data.readers import reader_of
from zslkit.data.review import Decision, apply_decisions
from zslkit.data.sampling import check_broken
from zslkit.data.schema import CaptionNoise
from zslkit.data.showing import SHOWN, Shown, figure
from zslkit.data.source import Groups, Source

MAX_UNREADABLE = 0.05
"""Share of images that may be missing, unreadable or without caption, unless asked otherwise."""


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

    def _repr_html_(self) -> str:
        try:
            image = self.image
        except BrokenImageError:
            image = None  # a grid shows what can be read
        return figure(image, " · ".join(self.captions))


class Pairs(Shown, Sequence):
    """Sequence of pairs; open it with :func:`open_pairs`. No file stays open between reads.

    An index gives one pair, a slice the same set with fewer: ``pairs[:5]``.

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
    unreviewed : Pairs or None
        The pairs before :meth:`reviewed`; of these they are the rows ``reviewed_rows``.
    skipped : tuple of str
        Keys left out because the source lacks the image or every caption.
    left_out : dict of str to list of str
        The same keys, by what is wrong with them.
    understood : tuple of str
        Two lines for people: how the source was read, and what was left out.
    faults : tuple of str
        What else was wrong with the files: captions that cannot be read, keys that occur twice.
    """

    def __init__(
        self, manifest, split, source: "Source", caption_noise, seed, max_pairs, rows,
        kind: CaptionNoise = "image", indices: np.ndarray | None = None,
    ):  # fmt: skip
        rng, n = np.random.default_rng(seed), len(rows)
        # Sorted, so that reading runs forward through the shards.
        rows = rows if max_pairs is None else np.sort(rows[rng.permutation(n)[:max_pairs]])
        caption_rows, self.swapped = rows.copy(), np.zeros(len(rows), dtype=bool)
        whole = kind == "image" and indices is None
        if whole and caption_noise > 0 and len(rows) > 1:
            chosen = rng.permutation(len(rows))[: max(2, round(caption_noise * len(rows)))]
            caption_rows[chosen] = rows[np.roll(chosen, 1)]  # one cycle: none keeps its own
            self.swapped[chosen] = True
        self.manifest, self.split, self.skipped = manifest, split, source.skipped
        self.left_out = {why: list(keys) for why, keys in source.left_out.items()}
        self.faults: tuple[str, ...] = source.faults
        self.keys, self.captions = source.keys[rows], source.captions.take(caption_rows)
        if whole or (caption_noise == 0 and indices is None):
            self.wrong = np.repeat(self.swapped, self.captions.sizes)
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
        self.unreviewed: Pairs | None = None
        self.reviewed_rows, self.decided = np.arange(len(rows)), {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int | slice) -> "Pair | Pairs":
        i = range(len(self))[i]  # understands -1 and slices, and raises IndexError
        if isinstance(i, range):
            return self._take(np.arange(i.start, i.stop, i.step))
        label = None if self.labels is None else int(self.labels[i])
        return Pair(self.keys[i], self.captions[i], label, partial(self.read_pixels, i))

    def _take(self, chosen: np.ndarray) -> "Pairs":
        """Give these rows, of the same source."""
        part = copy.copy(self)
        for name in ("image_fingerprint", "fingerprint"):
            part.__dict__.pop(name, None)  # those of other images
        part._rows, part.keys = self._rows[chosen], self.keys[chosen]
        part.swapped, part.captions = self.swapped[chosen], self.captions.take(chosen)
        ends = np.cumsum(self.captions.stops - self.captions.starts)
        starts = np.concatenate([[0], ends[:-1]])
        part.wrong = Groups(self.wrong, starts, ends).take(chosen).spread()[1]
        part.unreviewed, part.decided = None, {}
        part.labels = None if self.labels is None else self.labels[chosen]
        part.positives, part.negatives = (
            None if groups is None else groups.take(chosen)
            for groups in (self.positives, self.negatives)
        )
        return part

    def with_classes(self, labels: Sequence[int], class_names: Sequence[str]) -> "Pairs":
        """Give the same images with classes of their own: ``labels`` (N,), numbers of names."""
        part = self._take(np.arange(len(self)))
        part.labels = np.asarray(labels, dtype=np.int64)
        part.class_names = part.class_ids = tuple(class_names)
        places = np.arange(len(self) + 1)
        part.positives, part.negatives = Groups(part.labels, places[:-1], places[1:]), None
        return part

    def take(self, rows: Sequence[int]) -> "Pairs":
        """Give the images at these places."""
        return self._take(np.asarray(rows, dtype=np.int64))

    def reviewed(self, decisions: Iterable[Decision]) -> "Pairs":
        """Give the pairs as people decided on their captions; see :mod:`zslkit.data.review`.

        An image without a caption left is left out. A caption with other words, or on another
        image, counts as right.

        Raises
        ------
        ValueError
            If no caption is left.
        """
        found = apply_decisions(self.keys, self.captions, decisions)
        if len(found.rows) == 0:
            raise ValueError(f"review: no caption is left of {len(self)} images")
        part = self._take(found.rows)
        part.captions, part.wrong = found.captions, self.wrong[found.origin] & ~found.settled
        owner = np.repeat(np.arange(len(part)), part.captions.stops - part.captions.starts)
        part.swapped = np.bincount(owner[part.wrong], minlength=len(part)) > 0
        part.unreviewed, part.reviewed_rows, part.decided = self, found.rows, found.counts
        return part

    def _facts(self) -> dict[str, object]:
        captions = int((self.captions.stops - self.captions.starts).sum())
        facts = {"manifest": self.manifest.name, "split": self.split, "images": len(self)}
        facts |= {"captions": captions} if self.labels is None else {}
        facts |= {} if self.labels is None else {"classes": len(self.class_names)}
        counts = {"swapped": int(self.swapped.sum()), "left_out": len(self.skipped)}
        return facts | {name: n for name, n in counts.items() if n}

    def _repr_html_(self) -> str:
        grid = "".join(pair._repr_html_() for pair in self[:SHOWN])
        more = f"<p>… and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return super()._repr_html_() + grid + more

    def read_pixels(self, i: int) -> Tensor:
        """Decode image ``i``: (3, H, W) uint8, or a BrokenImageError that names its key."""
        try:
            return self._source.read(int(self._rows[i]))
        except (BrokenImageError, OSError) as error:
            raise BrokenImageError(f"image {self.keys[i]!r}: {error}") from error

    def read_file(self, i: int) -> bytes:
        """Give the bytes of the file of image ``i``."""
        return self._source.raw(int(self._rows[i]))

    def file_name(self, i: int) -> str:
        """Name the file of image ``i`` where it is one of its own, else its key."""
        name = self._source.file_name(int(self._rows[i]))
        return self.keys[i] if name is None else name

    @property
    def synthetic(self) -> bool:
        """Whether images are drawn, or read by another library, rather than from files."""
        return self._source.scenes is not None or not self._source.has_files

    @property
    def notes(self) -> tuple[str, ...]:
        """What else the reader left out, for people."""
        return tuple(self._source.notes)

    @property
    def understood(self) -> tuple[str, str]:  # noqa: D102 - described above
        manifest, n_all = self.manifest, len(self._source.keys)
        n_captions = int((self.captions.stops - self.captions.starts).sum())
        if self.labels is not None:
            what = f"{len(self)} labelled images of {len(self.class_names)} classes"
        else:
            what = f"{len(self)} images with {n_captions} captions"
        how = manifest.understood or manifest.description.partition(".")[0]
        lost = [f"{len(keys)} {why}" for why, keys in self.left_out.items()]
        lost = "; ".join([*lost, *self._source.notes]) or "nothing"
        decided = ", ".join(f"{n} {action}" for action, n in self.decided.items())
        lost += f"; decisions on captions: {decided}" if decided else ""
        share = manifest.splits.get(self.split) and manifest.splits[self.split].share
        drawn = (
            f", drawn from {n_all} by a hash of the images with seed {manifest.split_seed}, near "
            f"duplicates together"
            if share
            else ""
        )
        return (
            f"{manifest.name}: {how}",
            f"split {self.split!r}: {what}{drawn}; left out: {lost}",
        )

    @cached_property
    def image_fingerprint(self) -> str:
        """Sha256 of what the images hold, whatever their captions: a key for cached features."""
        stamp = self._source.stamp(self._rows) + self._source.content(self._rows)
        return _sha256(chain((self.manifest.checksum, self.split), self.keys), stamp)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of images and captions, and so of the noise, seed and max_pairs in effect."""
        return _sha256(chain((self.image_fingerprint,), self.captions))


def open_pairs(
    manifest: Any,
    split: str | None = None,
    *,
    data_root: str | Path | None = None,
    caption_noise: float = 0.0,
    caption_noise_kind: CaptionNoise = "image",
    caption_noise_file: str | Path | None = None,
    seed: int = 0,
    max_pairs: int | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    image_field: str | None = None,
    caption_field: str | None = None,
    split_shares: Mapping[str, float] | None = None,
    cache_dir: str | Path | None = None,
    quiet: bool = False,
) -> Pairs:
    """Open one split of a data set, or of any file, folder or object with images and captions.

    Parameters
    ----------
    manifest : Manifest, str, Path, DataFrame or Dataset
        A manifest, its name or file, or a source without one:
        see :func:`zslkit.data.manifests.load_manifest`.
    split : str, optional
        One of ``manifest.splits``; by default ``train``, or ``all`` where splits are drawn.
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
    max_unreadable : float in [0, 1]
        Share of images that may be missing or without caption; they are left out.
    image_field, caption_field, split_shares
        See :func:`zslkit.data.manifests.load_manifest`.
    cache_dir : path, optional
        Keeps where splits were drawn, so that the images are looked through once.
    quiet : bool
        Do not say how a source without a manifest was understood; ``Pairs.understood`` does.

    Raises
    ------
    ValueError
        If the split, a column, caption_noise or max_pairs is out of question, a class is listed
        twice, or more than ``max_unreadable`` of images or captions are missing.
    FileNotFoundError
        If a file that the manifest names is missing.
    """
    fields = {"image_field": image_field, "caption_field": caption_field}
    manifest = load_manifest(manifest, data_root, **fields, split_shares=split_shares)
    split = default_split(manifest) if split is None else split
    if split not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise ValueError(f"split={split!r}: {manifest.name!r} has no such split; known: {known}")
    if not 0 <= caption_noise <= 1:
        raise ValueError(f"caption_noise={caption_noise} must lie between 0 and 1")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs} must be at least 1, or None for all")
    source, rows = _open_source(manifest, split, manifest.data_root, cache_dir)
    n_listed = len(source.keys) + len(source.skipped)
    check_broken(source.skipped, n_listed, max_unreadable, source.faults)
    if len(rows) == 0:
        raise ValueError(f"split {split!r} of {manifest.name!r} holds no image with a caption")
    indices = None if caption_noise_file is None else read_indices(caption_noise_file)
    noise = caption_noise_kind, indices
    pairs = Pairs(manifest, split, source, caption_noise, seed, max_pairs, rows, *noise)
    for line in pairs.understood if manifest.understood and not quiet else ():
        if line not in _SAID:
            _SAID.add(line)
            print(line, file=sys.stderr)
    return pairs


_SAID: set[str] = set()  # a line is printed once in a process


def default_split(manifest: Manifest) -> str:
    """Name the split that is opened when none is asked for."""
    drawn = any(split.share for split in manifest.splits.values())
    order = ("all", "train") if drawn else ("train", "all")
    return next((name for name in order if name in manifest.splits), next(iter(manifest.splits)))


def _open_source(
    manifest: Manifest, split: str, root: Path, cache_dir: str | Path | None = None
) -> tuple[Source, np.ndarray]:
    """Read a split in the layout that is there; give it and the rows that belong to the split."""
    found = manifest.as_found(root)
    if split not in found.splits:
        known = ", ".join(found.splits)
        raise ValueError(
            f"split={split!r}: {manifest.name!r} has none in the form that is under "
            f"data_root={str(root)!r}; known: {known}"
        )
    chosen = found.splits[split]
    for path in chosen.paths if found.kind != "objects" else ():
        if not find_files(root, path):
            how = manifest.how_to_obtain and f"; how to obtain it: {manifest.how_to_obtain}"
            raise FileNotFoundError(
                f"{path!r} of manifest {manifest.name!r} is not under data_root={str(root)!r}{how}"
            )
    source = reader_of(found.kind)(found, chosen, root)
    if chosen.share is None:
        return source, np.arange(len(source.keys))
    from zslkit.data.splits import positions_of, rows_of_share

    everything = np.arange(len(source.keys))
    named = (str(root), manifest.name, *chosen.paths)
    key = _sha256(chain(named, source.keys), source.stamp(everything))
    positions = positions_of(key, manifest.split_seed, source, cache_dir)
    shares = [other.share for other in found.splits.values() if other.share is not None]
    return source, rows_of_share(positions, shares, shares.index(chosen.share))


def _sha256(texts: Iterable, data: bytes = b"") -> str:
    """Hash the JSON text of a list, in pieces: of millions of keys it would fill gigabytes."""
    digest, texts, comma = hashlib.sha256(b"["), iter(texts), ""
    while some := list(islice(texts, 65536)):
        digest.update((comma + json.dumps(some)[1:-1]).encode())
        comma = ", "
    digest.update(b"]" + data)
    return digest.hexdigest()
