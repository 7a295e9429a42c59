"""The corpus of ``benchmarks/fuzz.py`` and some changes of it: errors are ours, or there is none.

The fuzzer itself, atheris, need not be installed here.
"""

import io
import random
import warnings
import zipfile

import numpy as np
import pytest
from fuzz import CORPUS, TARGETS, is_ours

from zslkit.data.readers import tars

CHANGES = 60


def changed(data, rng):
    """Flip, cut, double or overwrite some bytes."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place, much = rng.randrange(len(data) + 1), rng.randrange(1, 9)
        kind = rng.randrange(4)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : place + much * 20]
        elif kind == 2:
            data[place:place] = data[place : place + much]
        else:
            data[place : place + much] = rng.randbytes(much)
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_stranger_wrote_raises_no_error_but_ours(name):
    function, rng = TARGETS[name][0], random.Random(0)
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    refused = 0
    for data in [*seeds, b"", *(changed(seed, rng) for seed in seeds for _ in range(CHANGES))]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of what it repairs
                function(data)
        except Exception as error:
            assert is_ours(error), (data, error)  # noqa: PT017
            refused += 1
    assert refused > CHANGES / 4
    for data in seeds:
        function(data)  # sound


def index_of(**columns):
    """Write an index of two samples, some columns changed; give its bytes."""
    samples = tars.Samples(
        b"0\0" + b"1\0", b"a\0b\0c\0", np.array([1, 2], np.uint32), np.zeros(2, tars.PLACE),
        b"", b"",
    )  # fmt: skip
    arrays = samples._asdict() | columns
    file = io.BytesIO()
    np.savez(file, **{
        name: np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        for name, part in arrays.items()
    })  # fmt: skip
    return file.getvalue()


@pytest.mark.parametrize(
    "columns",
    [
        {"keys": b"0\0"},
        {"keys": b"0\0" + b"1"},
        {"captions": b"a\0b\0"},
        {"captions": b"a\0b\0c\0d"},
        {"counts": np.array([1, 2], np.int64)},
        {"counts": np.array([[1, 2]], np.uint32)},
        {"places": np.zeros(2, np.uint32)},
        {"places": np.zeros(3, tars.PLACE)},
    ],
    ids=lambda columns: next(iter(columns)),
)
def test_an_index_whose_columns_do_not_fit_is_none(columns):
    assert len(tars.parse(io.BytesIO(index_of()), "x")[0].counts) == 2
    with pytest.raises(ValueError, match=r"no index \(its columns do not fit together\)"):
        tars.parse(io.BytesIO(index_of(**columns)), "x")


def test_what_numpy_and_zipfile_stumble_on_is_no_index(tmp_path):
    """Found by the fuzzer: EOFError and NotImplementedError came out, and opening failed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in tars.Samples._fields:
            archive.writestr(f"{name}.npy", b"\x93NUMPY")
    data = bytearray(index_of())
    for broken in (file.getvalue(), b"", data.replace(b"PK\x03\x04\x2d", b"PK\x03\x04\xa1")
                   .replace(b"PK\x01\x02\x2d\x03\x2d", b"PK\x01\x02\x2d\x03\xa1")):  # fmt: skip
        (tmp_path / "x.npz").write_bytes(broken)
        with pytest.raises(ValueError, match="no index"):
            tars.load(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError):
        tars.load(tmp_path / "none.npz")
