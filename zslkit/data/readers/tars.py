"""Members of tar shards, every header checked; as a program, the samples of many shards.

Needs nothing but numpy, so that ``python -m zslkit.data.readers.tars`` starts in a moment: a first
opening of many shards runs several of them (see :mod:`zslkit.data.readers.shard_index`).
"""

import json
import mmap
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import adler32

import numpy as np

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
PLACE = np.dtype([("file", "<u4"), ("offset", "<u8"), ("size", "<u4")])  # 16 bytes per image
END = "\0"  # between texts in one piece of bytes; no caption may hold it

_BLOCK = 512
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # WebDataset: the key ends at the first dot
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_LONGEST_NAME = 1 << 16  # bytes of a GNU long name or of PAX records; paths have 4,096 at most
_WITHOUT_DATA = b"123456"  # links, devices, folders


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int


class Samples(NamedTuple):
    """Complete samples of shards, and what was wrong with the others; texts end with ``END``."""

    keys: bytes
    captions: bytes
    counts: np.ndarray  # (n,) uint32 captions of each sample
    places: np.ndarray  # (n,) of PLACE; file counts from the first shard
    skipped: bytes  # keys of samples without a readable caption or without an image
    faults: bytes  # why, and other things that were wrong


def walk(path: Path, data) -> Iterator[Member]:
    """Yield the files of an uncompressed tar, each header checked against its sum.

    Python's ``tarfile`` takes a damaged header for the end of the archive. POSIX ustar, GNU long
    names and PAX paths and sizes are understood.

    Raises
    ------
    ValueError
        At the first header that is damaged, cut or not understood; names file and offset.
    """
    offset, given = 0, {}
    while True:
        header = data[offset : offset + _BLOCK]
        if len(header) < _BLOCK:
            raise _damaged(path, offset, "its end mark is missing: it was cut here")
        if header == bytes(_BLOCK):
            break
        _check_sum(path, offset, header)
        size = given.pop("size", None)
        size = _number(path, offset, header[124:136]) if size is None else size
        kind, start = header[156:157], offset + _BLOCK
        length = 0 if kind in _WITHOUT_DATA else size
        if start + length > len(data):
            raise _damaged(
                path, offset, f"a member of {size} bytes ends {start + length - len(data)} bytes "
                "after the file does: it was cut"
            )  # fmt: skip
        if kind in b"xLgK":
            if size > _LONGEST_NAME:
                raise _damaged(path, offset, f"an extended header has {size} bytes")
            content = bytes(data[start : start + size])
            if kind == b"L":
                given["path"] = _text(content.rstrip(b"\0"))
            elif kind == b"x":
                given |= _pax(path, offset, content)
        else:
            name = given.pop("path", None) or _name(header)
            given.clear()
            if kind in b"\0" + b"07":
                yield Member(name, start, size)
        offset = start + -(-length // _BLOCK) * _BLOCK
    if data[offset:].strip(b"\0"):
        raise _damaged(path, offset, "there is more after its end mark: two tars in one file")


def scan(path: Path, number: int, caption_field: str | None) -> Samples:
    """List the samples of one shard.

    Raises
    ------
    ValueError
        If the file is no sound uncompressed tar, or holds no caption at all.
    """
    samples: dict[str, list] = {}
    wanted = "txt" if caption_field is None else "json"
    faults, seen = [], set()
    with open(path, "rb") as file:
        empty = not file.seek(0, 2)
        data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for member in walk(path, data):
        match = _MEMBER.fullmatch(member.name)
        if match is None:
            continue
        key, suffix = match[1], match[2].lower()
        sample = samples.setdefault(key, [[], None])
        if suffix != wanted and suffix not in IMAGE_SUFFIXES:
            continue
        if (key, suffix) in seen:
            faults.append(f"{path}, {member.name}: occurs twice; the first is kept")
            continue
        seen.add((key, suffix))
        if suffix != wanted:
            sample[1] = (number, member.offset, member.size)
            continue
        try:
            content = data[member.offset : member.offset + member.size]
            sample[0] = read_captions(content, caption_field)
        except ValueError as error:
            faults.append(f"{path}, {member.name}: {error}")
    _check_counts(path, samples, faults)
    if not any(captions for captions, _ in samples.values()):
        where = ".txt members" if caption_field is None else f"field {caption_field!r} of .json"
        raise ValueError(
            f"{path}: none of its {len(samples)} samples has a caption in {where}; caption_field "
            "in the manifest names a field of .json members, null means .txt members"
            + (f". The first of {len(faults)} faults: {faults[0]}" if faults else "")
        )
    return _pack(samples, faults)


def read_captions(content: bytes, caption_field: str | None) -> list[str]:
    """Read the captions of a .txt or .json member; those that are blank are left out.

    Raises
    ------
    ValueError
        If it is not UTF-8 or JSON, lacks the field, or holds something other than text there.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error})") from None
    values = [text]
    if caption_field is not None:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not readable JSON ({type(error).__name__}: {error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"must be a JSON object, not {type(record).__name__}")
        if caption_field not in record:
            raise ValueError(f"no field {caption_field!r}; its fields: {', '.join(record)}")
        value = record[caption_field]
        values = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, bool) or not isinstance(item, str | int | float | None):
                raise ValueError(
                    f"field {caption_field!r} must be a text or a list of texts, it has a "
                    f"{type(item).__name__}"
                )
    captions = ["" if item is None else str(item).strip() for item in values]
    _check_captions(captions)
    return [caption for caption in captions if caption]


def _check_captions(captions: list[str]) -> None:
    for caption in captions:
        plain = caption.isascii() and END not in caption  # quicker than the search
        if not plain and _UNSTORABLE.search(caption):
            raise ValueError(f"a caption has a NUL or half a surrogate pair: {caption!r:.80}")


def join(parts: list[Samples]) -> Samples:
    """Put the samples of consecutive shards together."""
    columns = zip(*parts, strict=True)
    return Samples(
        *(b"".join(c) if isinstance(c[0], bytes) else np.concatenate(c) for c in columns)
    )


def _pack(samples: dict[str, list], faults: list[str]) -> Samples:
    whole = {key: row for key, row in samples.items() if row[0] and row[1] is not None}
    return Samples(
        _bytes(whole),
        _bytes(text for captions, _ in whole.values() for text in captions),
        np.array([len(captions) for captions, _ in whole.values()], np.uint32),
        np.array([place for _, place in whole.values()], PLACE),
        _bytes(key for key in samples if key not in whole),
        _bytes(faults),
    )


def _bytes(texts) -> bytes:
    return "".join(text + END for text in texts).encode(errors="backslashreplace")


def _check_counts(path: Path, samples: dict[str, list], faults: list[str]) -> None:
    """Compare with the number of successes that img2dataset notes beside a shard, if it did."""
    stats = path.with_name(f"{path.stem}_stats.json")
    if not stats.is_file():
        return
    images = sum(place is not None for _, place in samples.values())
    try:
        expected = json.loads(stats.read_text(encoding="utf-8"))["successes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        faults.append(f"{stats}: holds no count of successes ({type(error).__name__}: {error})")
        return
    if images != expected:
        raise ValueError(
            f"{path} holds {images} images, {stats.name} says {expected}; fetch the shard again, "
            "or delete that file if the shard was meant to be changed"
        )


def _check_sum(path: Path, offset: int, header: bytes) -> None:
    if adler32(header) & 0xFFFF == _low_half(header[148:156]):
        return
    noted = _number(path, offset, header[148:156])
    rest = header[:148] + header[156:]
    total = 8 * 32 + sum(rest)  # the sum itself counts as eight blanks
    if noted != total and noted != total - 256 * sum(byte > 127 for byte in rest):
        raise _damaged(path, offset, f"the header's sum is {total}, it says {noted}")


@lru_cache(maxsize=4096)
def _low_half(field: bytes) -> int:
    """Give the low half of Adler-32 of a header that notes its sum in these eight bytes.

    It is 1 + the sum of all bytes modulo 65,521, and many times as quick as sum(). -1 where the
    field is not written as nearly all write it: the sum is then compared by itself.
    """
    digits = field[:6]
    if not digits.isdigit() or b"8" in digits or b"9" in digits or field[6] not in b"\0 ":
        return -1
    return (1 + int(digits, 8) - 8 * 32 + sum(field)) % 65521


def _number(path: Path, offset: int, field: bytes) -> int:
    if field[0] & 0x80:  # GNU: large numbers in base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not re.fullmatch(b"[0-7]*", digits):
        raise _damaged(path, offset, f"{digits!r} is no octal number")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _pax(path: Path, offset: int, content: bytes) -> dict[str, str | int]:
    """Read path and size of a PAX header: records of "length keyword=value"."""
    found: dict[str, str | int] = {}
    while content.strip(b"\0"):
        match = re.match(rb"(\d{1,6}) ([^=]+)=", content)
        length = int(match[1]) if match else 0
        if not match or not match.end() < length <= len(content) or content[length - 1] != 10:
            raise _damaged(path, offset, f"{content[:40]!r} is no PAX record")
        value = content[match.end() : length - 1]
        if match[2] == b"path":
            found["path"] = _text(value)
        elif match[2] == b"size":
            if not re.fullmatch(rb"\d{1,15}", value):
                raise _damaged(path, offset, f"{value[:20]!r} is no PAX size")
            found["size"] = int(value)
        content = content[length:]
    return found


def _damaged(path: Path, offset: int, what: str) -> ValueError:
    return ValueError(
        f"{path} is not a sound uncompressed tar file: at offset {offset:,} {what}; fetch it again"
    )


def main(job: str, output: str) -> None:
    """Scan the shards that a JSON file lists, and write their samples as an .npz file."""
    task = json.loads(Path(job).read_text(encoding="utf-8"))
    parts = [scan(Path(path), n, task["caption_field"]) for n, path in task["shards"]]
    save(Path(output), join(parts))


def save(path: Path, samples: Samples, **more: bytes) -> None:
    """Write samples; texts as arrays of bytes, each with a checksum by the zip format."""
    columns = samples._asdict() | more
    arrays = {
        k: np.frombuffer(v, np.uint8) if isinstance(v, bytes) else v for k, v in columns.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> tuple[Samples, bytes]:
    """Read what :func:`save` wrote, and ``signature`` if that was given.

    Raises
    ------
    ValueError
        If the file is not that, or damaged.
    OSError
        If it cannot be opened.
    """
    with open(path, "rb") as file:
        return parse(file, path)


def parse(file: BinaryIO, path: Path) -> tuple[Samples, bytes]:
    """Read an open index, whoever wrote it; a ValueError names ``path`` where it is none."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in arrays.files}
        signature = read.pop("signature", np.empty(0, np.uint8)).tobytes()
        for name in ("keys", "captions", "skipped", "faults"):
            read[name] = read.pop(name).tobytes()  # one at a time: two copies of all is much memory
        samples = Samples(**read)
    except Exception as error:  # numpy and zipfile raise whatever they stumble on
        raise ValueError(f"{path}: no index ({type(error).__name__}: {error})") from error
    if not _fit_together(samples):
        raise ValueError(f"{path}: no index (its columns do not fit together)")
    return samples, signature


def _fit_together(samples: Samples) -> bool:
    """Tell whether the columns are of one set: a foreign index would end as errors elsewhere."""
    end = END.encode()
    n = samples.keys.count(end)
    kinds = (samples.counts.dtype, samples.places.dtype) == (np.uint32, PLACE)
    if not kinds or samples.counts.shape != (n,) or samples.places.shape != (n,):
        return False
    whole = all(not texts or texts.endswith(end) for texts in samples if isinstance(texts, bytes))
    return whole and samples.captions.count(end) == samples.counts.sum(dtype=np.int64)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
