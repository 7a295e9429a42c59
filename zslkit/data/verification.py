"""Looking at every image and caption of a set: what is missing, broken, empty or double."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from PIL import Image
from tqdm.auto import tqdm

from zslkit.data.images import BrokenImageError, decode_image, open_image
from zslkit.data.manifests import Manifest
from zslkit.data.pairs import Pairs, open_pairs
from zslkit.data.schema import Problem

BOILERPLATE = {
    *("n/a", "na", "none", "null", "nan", "unknown", "untitled", "no caption", "no description"),
    *("image", "photo", "picture", "caption", "todo", "tbd", "test", "-", "?", ".", "..."),
    *("img", "jpg", "image not available", "photo not available", "image unavailable"),
}
"""Captions, in lower case, that say nothing of any image."""

_SUFFIX_OF = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "tiff": "TIFF", "heic": "HEIF"}
_SUFFIX_OF |= {"heif": "HEIF", "avif": "HEIF"}
_SAME = {"MPO": "JPEG", "AVIF": "HEIF"}  # a JPEG of several images; one container, two names


def look_through(manifest: Manifest, quiet: bool = False) -> tuple[list[Problem], int]:
    """Decode every image and read every caption of all splits.

    Beside what :meth:`Manifest.verify` finds: images that are ``missing`` or ``unreadable``, have
    the ``wrong suffix`` or occur in two images (``duplicate image``), and captions that are
    empty (``no caption``), ``boilerplate`` or in the same row twice (``duplicate row``).

    Parameters
    ----------
    quiet : bool
        No bar.

    Returns
    -------
    list of Problem, int
        In the order of the set, ``path`` being the key of the image; and how many images were
        looked at.
    """
    problems, seen, first_of = list(manifest.verify()), set(), {}
    for name in _splits_to_read(manifest):
        try:
            pairs = open_pairs(manifest, name, max_unreadable=1.0, quiet=True)
        except (ValueError, OSError) as error:
            if not isinstance(error, FileNotFoundError) or not problems:  # else named already
                problems.append(Problem(name, "unsound", str(error)))
            continue
        for why, keys in pairs.left_out.items():
            problems += [Problem(key, why, f"split {name}") for key in keys if key not in seen]
        problems += [Problem(name, "duplicate row", note) for note in pairs.notes]
        problems += _captions(pairs, seen)
        problems += _images(pairs, seen, first_of, quiet)
        seen.update(pairs.keys.tolist(), pairs.skipped)
    return problems, len(seen)


def problem_table(problems: list[Problem]) -> list[tuple[str, int, str]]:
    """Sum up problems by kind: how many (rows, of duplicate rows) and the first, most first."""
    counts, some = Counter(), {}
    for problem in problems:
        number = re.match(r"\d+", problem.detail) if problem.kind == "duplicate row" else None
        counts[problem.kind] += int(number[0]) if number else 1
        some.setdefault(problem.kind, []).append(f"{problem.path} ({problem.detail})")
    return [(kind, n, "; ".join(some[kind][:3])) for kind, n in counts.most_common()]


def _splits_to_read(manifest: Manifest) -> list[str]:
    """Name splits that together hold everything: not those that are drawn from another."""
    found = manifest.as_found()
    return [name for name, split in found.splits.items() if split.share is None] or [*found.splits]


def _captions(pairs: Pairs, seen: set[str]) -> Iterator[Problem]:
    if pairs.class_names:  # captions are then the names of classes
        return
    for key, group in zip(pairs.keys.tolist(), pairs.captions, strict=True):
        for text in group if key not in seen else ():
            if text.strip().strip(" .!").casefold() in BOILERPLATE or text.casefold() == "n/a":
                yield Problem(key, "boilerplate", f"caption {text!r}")


def _images(
    pairs: Pairs, seen: set[str], first_of: dict[str, str], quiet: bool
) -> Iterator[Problem]:
    rows = [i for i, key in enumerate(pairs.keys.tolist()) if key not in seen]

    def look(i: int) -> tuple[str, str, str]:
        """Give checksum of the file, format, and what is wrong with it."""
        try:
            if pairs.synthetic:
                pairs.read_pixels(i)
                return pairs.keys[i], "", ""
            data = pairs.read_file(i)
            decode_image(data)
            with open_image(data) as image:
                kind = _SAME.get(image.format, image.format or "")
            return hashlib.sha256(data).hexdigest(), kind, ""
        except (BrokenImageError, OSError) as error:
            return "", "", str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(look, rows), "looking at images", len(rows), unit="image",
                   leave=False, disable=quiet or None)  # fmt: skip
        for i, (checksum, kind, wrong) in zip(rows, bar, strict=True):
            key = pairs.keys[i]
            if wrong:
                yield Problem(key, "unreadable", wrong)
                continue
            if kind and (said := _said_by_suffix(pairs.file_name(i))) not in (None, kind):
                yield Problem(key, "wrong suffix", f"is {kind}, not {said}")
            if (first := first_of.setdefault(checksum, key)) != key:
                yield Problem(key, "duplicate image", f"equals {first}")


def _said_by_suffix(name: str) -> str | None:
    suffix = PurePosixPath(name).suffix[1:].lower()
    Image.init()
    known = Image.EXTENSION.get(f".{suffix}")
    kind = _SUFFIX_OF.get(suffix, known)
    return _SAME.get(kind, kind)
