"""Splits of a set that names none: a seeded hash of the images, near duplicates together."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from zslkit.data.files import whole
from zslkit.data.source import Source

MAX_LOOKED_AT = 50_000
"""Images up to which near duplicates are looked for; above, equal files alone are kept together."""
MAX_READ = 500_000
"""Images up to which files are read at all; above, the hash is that of the key."""

NEAR = 3
"""Bits of 64 in which the hashes of near duplicates may differ."""


def split_positions(source: Source, seed: int) -> np.ndarray:
    """Give every image its place in [0, 1), the same for all that are near duplicates, (N,).

    A group's place is a hash of ``seed`` and of its least file checksum, so it stays where it is
    when other images come and go. Near are images whose difference hashes (signs of the
    horizontal steps of an 8 x 9 grey copy; N. Krawetz 2013, hackerfactor.com, "Kind of like
    that") differ in at most ``NEAR`` of 64 bits; plain surfaces are left alone.
    """
    checksums, hashes = _look(source)
    groups = group_near(checksums, hashes)
    least: dict[int, str] = {}
    for group, checksum in zip(groups.tolist(), checksums, strict=True):
        least[group] = min(checksum, least.get(group, checksum))
    place = {group: _unit(f"{seed}:{checksum}") for group, checksum in least.items()}
    return np.array([place[group] for group in groups.tolist()])


def rows_of_share(positions: np.ndarray, shares: Iterable[tuple[float, float]], which: int):
    """Give the rows whose place lies in one of several shares, int64.

    A share in which no place lies, as happens in a set of a few images, takes over the places
    nearest to it from a share that has another to spare.
    """
    shares = list(shares)
    owner = np.full(len(positions), -1)
    for number, (start, stop) in enumerate(shares):
        owner[(start <= positions) & (positions < stop)] = number
    for number, (start, stop) in enumerate(shares):
        if (owner == number).any():
            continue
        for place in sorted(set(positions.tolist()), key=lambda x: abs(x - (start + stop) / 2)):
            loser = owner[positions == place][0]
            if len(set(positions[owner == loser].tolist())) > 1:
                owner[positions == place] = number
                break
    return np.flatnonzero(owner == which)


def group_near(checksums: list[str], hashes: np.ndarray) -> np.ndarray:
    """Find groups of images with equal files or near hashes; their numbers, (N,) int64.

    Of two hashes that differ in at most 3 bits, one of the four quarters is equal: only images
    that share a quarter are compared.
    """
    parent = np.arange(len(checksums))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, checksum in enumerate(checksums):
        parent[root(i)] = root(first.setdefault(checksum, i))
    telling = np.flatnonzero(np.bitwise_count(hashes) >= 8)  # the others are of plain surfaces
    telling = telling[np.bitwise_count(hashes[telling]) <= 56]
    for quarter in range(4):
        part = (hashes[telling] >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = telling[np.argsort(part, kind="stable")]
        bounds = np.flatnonzero(np.diff(np.sort(part))) + 1
        for members in np.split(order, bounds):
            for at, i in enumerate(members[:-1].tolist()):
                others = members[at + 1 :]
                for j in others[np.bitwise_count(hashes[others] ^ hashes[i]) <= NEAR].tolist():
                    parent[root(j)] = root(i)
    return np.array([root(i) for i in range(len(parent))], dtype=np.int64)


def difference_hash(data: bytes) -> int:
    """Hash an image by the signs of horizontal steps in a tiny grey copy; 0 if unreadable."""
    try:
        with Image.open(BytesIO(data)) as image:
            image.draft("L", (64, 64))  # JPEG is then decoded at an eighth of its size
            small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    except Exception:  # PIL's readers raise whatever their parser stumbled on
        return 0
    return int(np.packbits(small[:, 1:] > small[:, :-1]).view(">u8")[0])


def positions_of(
    key: str, seed: int, source: Source, cache_dir: str | Path | None = None
) -> np.ndarray:
    """Give :func:`split_positions`, once for the train, dev and test splits that are opened.

    ``key`` tells one set of images from another; by it ``cache_dir`` keeps them for later.
    """
    if (key, seed) not in _KNOWN:
        while len(_KNOWN) >= 8:
            del _KNOWN[next(iter(_KNOWN))]
        path = Path(cache_dir) / f"splits-{key[:32]}-{seed}.npy" if cache_dir is not None else None
        if path is not None and path.is_file():
            _KNOWN[key, seed] = np.load(path)
        else:
            _KNOWN[key, seed] = split_positions(source, seed)
            if path is not None and source.has_files and source.scenes is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole(path) as temporary, temporary.open("wb") as file:
                    np.save(file, _KNOWN[key, seed])
    return _KNOWN[key, seed]


_KNOWN: dict[tuple[str, int], np.ndarray] = {}


def _look(source: Source) -> tuple[list[str], np.ndarray]:
    """Give checksums of the files, and difference hashes where there are not too many."""
    n = len(source.keys)
    if n > MAX_READ or source.scenes is not None or not source.has_files:
        return [_sha256(key.encode()) for key in source.keys.tolist()], np.zeros(n, np.uint64)

    def look(row: int) -> tuple[str, int]:
        try:
            data = source.raw(row)
        except OSError:
            return _sha256(source.keys[row].encode()), 0
        return _sha256(data), difference_hash(data) if n <= MAX_LOOKED_AT else 0

    with ThreadPoolExecutor() as pool:
        options = {"leave": False, "delay": 2, "unit": "image"}
        seen = tqdm(pool.map(look, range(n)), "splitting", n, disable=None, **options)
        found = list(seen)
    return [checksum for checksum, _ in found], np.array([bits for _, bits in found], np.uint64)


def _unit(text: str) -> float:
    return int(_sha256(text.encode())[:13], 16) / 16**13


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
