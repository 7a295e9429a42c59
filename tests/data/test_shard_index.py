import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from zslkit.data.pairs import open_pairs
from zslkit.data.readers import shard_index, tars


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_tar(members, **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shards(folder, n_shards=2, n=150):
    """Shards of n complete samples each, with captions that say which."""
    folder.mkdir(exist_ok=True)
    for s in range(n_shards):
        members = []
        for i in range(n):
            members += [(f"{s}{i:04}.jpg", jpeg()), (f"{s}{i:04}.txt", f"shard {s}, no {i} é")]
        (folder / f"{s}.tar").write_bytes(make_tar(members))
    return manifest(folder)


def manifest(folder, **more):
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    splits = {"train": {"shards": ["*.tar"]}}
    path = folder / "mine.json"
    path.write_text(
        json.dumps({"name": "mine", "kind": "shards", **words, "splits": splits} | more)
    )
    return path


def listed(path):
    return [(pair.key, pair.captions) for pair in open_pairs(path, "train")]


@pytest.fixture
def small_worth(monkeypatch, tmp_path):
    monkeypatch.setattr(shard_index, "_WORTH", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def scans(monkeypatch):
    """Count the shards that are scanned."""
    counted, scan = [], tars.scan
    monkeypatch.setattr(tars, "scan", lambda path, *rest: counted.append(path) or scan(path, *rest))
    return counted


def test_a_second_opening_reads_the_index_and_gives_the_same(tmp_path, small_worth, scans):
    path = shards(tmp_path / "s")
    first = open_pairs(path, "train")
    assert len(scans) == 2
    second = open_pairs(path, "train")
    assert len(scans) == 2
    assert second.fingerprint == first.fingerprint
    assert list(second.captions) == list(first.captions)
    assert second[299].captions == ("shard 1, no 149 é",)
    assert second[299].pixels.shape == (3, 8, 12)
    assert len(list((tmp_path / "s" / ".zslkit-index").iterdir())) == 1


def test_small_sets_get_no_index(tmp_path, scans):
    path = shards(tmp_path / "s", n=5)
    assert listed(path) == listed(path)
    assert len(scans) == 4
    assert not (tmp_path / "s" / ".zslkit-index").exists()


@pytest.mark.parametrize("change", ["time", "size", "more", "field", "damage"])
def test_an_index_of_another_state_is_not_used(change, tmp_path, small_worth, scans):
    path = shards(tmp_path / "s")
    before = listed(path)
    scans.clear()
    shard = tmp_path / "s" / "1.tar"
    if change == "time":
        os.utime(shard, ns=(1, 1))
    elif change == "size":
        shard.write_bytes(shard.read_bytes() + bytes(512))
    elif change == "more":
        (tmp_path / "s" / "2.tar").write_bytes(make_tar([("x.jpg", jpeg()), ("x.txt", "new")]))
    elif change == "field":
        path = manifest(tmp_path / "s", caption_field="c")
        with pytest.raises(ValueError, match="none of its 150 samples has a caption in field 'c'"):
            open_pairs(path, "train")
        assert scans
        return
    else:
        (index,) = (tmp_path / "s" / ".zslkit-index").iterdir()
        data = bytearray(index.read_bytes())
        data[len(data) // 3] ^= 1
        index.write_bytes(data)
    after = listed(path)
    assert len(scans) >= 2
    assert after == before + ([("x", ("new",))] if change == "more" else [])


def test_where_nothing_can_be_written_the_cache_folder_takes_it(
    tmp_path, small_worth, scans, monkeypatch
):
    path, write = shards(tmp_path / "s"), shard_index._write

    def read_only(folder, *rest):
        if folder.parent == tmp_path / "s":
            raise PermissionError(folder)  # whoever runs the tests may write everywhere
        write(folder, *rest)

    monkeypatch.setattr(shard_index, "_write", read_only)
    assert listed(path) == listed(path)
    assert len(scans) == 2
    assert len(list((tmp_path / "cache" / "zslkit" / "shards").iterdir())) == 1


def test_many_shards_are_scanned_by_several_processes(tmp_path, monkeypatch, small_worth):
    path = shards(tmp_path / "s", n_shards=3)
    alone = open_pairs(path, "train")
    monkeypatch.setattr(shard_index, "_PARALLEL", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for index in (tmp_path / "s" / ".zslkit-index").iterdir():
        index.unlink()
    together = open_pairs(path, "train")
    assert together.fingerprint == alone.fingerprint
    assert np.array_equal(together._source.places, alone._source.places)
    shard = tmp_path / "s" / "2.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"2\.tar is not a sound uncompressed tar .*at offset"):
        open_pairs(path, "train")


def test_keys_that_two_shards_share_and_members_that_occur_twice_are_reported(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    sample = [("a.jpg", jpeg()), ("a.txt", "one")]
    (folder / "0.tar").write_bytes(make_tar(sample))
    (folder / "1.tar").write_bytes(make_tar([*sample, ("a.txt", "two")]))
    pairs = open_pairs(manifest(folder), "train")
    assert list(pairs.captions) == [("one",), ("one",)]
    twice, shared = pairs.faults
    assert twice.endswith("1.tar, a.txt: occurs twice; the first is kept")
    assert shared == "1 keys occur in more than one shard: a"


BAD_RECORDS = {
    "deep": ('{"c": ' + "[" * 100_000 + "]" * 100_000 + "}", "not readable JSON"),
    "surrogate": (r'{"c": "\ud800 dog"}', "half a surrogate pair"),
    "nul": (r'{"c": "a\u0000b"}', "a caption has a NUL"),
    "list of lists": ('{"c": [["a"]]}', "must be a text or a list of texts, it has a list"),
    "object": ('{"c": {"a": 1}}', "it has a dict"),
    "truth": ('{"c": true}', "it has a bool"),
    "no object": ('["c"]', "must be a JSON object, not list"),
    "no JSON": ("{", "not readable JSON .JSONDecodeError"),
    "no UTF-8": (b'{"c": "\xff"}', "not UTF-8 text"),
    "another field": ('{"d": "a"}', "no field 'c'; its fields: d"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_caption_that_is_no_text_is_left_out_counted_and_said_why(name, tmp_path):
    record, message = BAD_RECORDS[name]
    members = [m for i in range(150) for m in ((f"{i}.jpg", jpeg()), (f"{i}.json", '{"c": "a"}'))]
    members[7] = ("3.json", record)
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    pairs = open_pairs(manifest(tmp_path, caption_field="c"), "train")
    assert (len(pairs), pairs.skipped) == (149, ("3",))
    assert "0.tar, 3.json: " in pairs.faults[0]
    with pytest.raises(AssertionError, match=message):  # pytest.raises matches messages for us
        raise AssertionError(pairs.faults[0])
    members[9] = ("4.json", record)  # above the limit it is refused, with the reasons
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    with pytest.raises(ValueError, match=rf"2 of 150 images (.|\n)*3\.json: .*{message}"):
        open_pairs(manifest(tmp_path, caption_field="c"), "train", max_unreadable=0.01)


def test_numbers_and_null_are_texts_as_before():
    assert tars.read_captions(b'{"c": [2012, null, 1.5, " a "]}', "c") == ["2012", "1.5", "a"]


def damaged(tmp_path, data, message):
    path = tmp_path / "0.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        tars.scan(path, 0, None)
    assert str(path) in str(caught.value)


def test_each_way_a_tar_can_be_unsound_is_named_with_its_offset(tmp_path):
    sound = make_tar([("a.jpg", jpeg()), ("a.txt", "one"), ("b.jpg", jpeg()), ("b.txt", "two")])
    second = 512 + -(-len(jpeg()) // 512) * 512
    flipped = bytearray(sound)
    flipped[second + 3] ^= 4
    damaged(tmp_path, bytes(flipped), rf"at offset {second:,} the header's sum is \d+, it says")
    damaged(tmp_path, sound[: second + 100], f"at offset {second:,} its end mark is missing")
    damaged(tmp_path, sound[: second + 512], f"at offset {second:,} a member of 3 bytes ends 3 ")
    damaged(tmp_path, sound[: second + 513], "a member of 3 bytes ends 2 bytes after .* cut")
    damaged(tmp_path, sound + sound, "there is more after its end mark: two tars in one file")
    damaged(tmp_path, b"", "at offset 0 its end mark is missing")
    octal = bytearray(sound)
    octal[148:150] = b"9z"
    damaged(tmp_path, bytes(octal), "is no octal number")


def repaired(header):
    """Write the sum that belongs to a header."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def extended(kind, content):
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[156:157] = kind
    header[124:136] = b"%011o\0" % len(content)
    return repaired(header) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (b"x", b"x" * 70_000, "an extended header has 70000 bytes"),
        (b"L", b"x" * 70_000, "an extended header has 70000 bytes"),
        (b"x", b"99 path=a\n", "is no PAX record"),
        (b"x", b"no record at all", "is no PAX record"),
        (b"x", b"13 size=-123\n", "is no PAX size"),
    ],
)
def test_extended_headers_that_are_none_are_refused(kind, content, message, tmp_path):
    damaged(tmp_path, extended(kind, content) + make_tar([("a.txt", "one")]), message)


def test_a_chain_of_extended_headers_is_walked_without_recursion(tmp_path):
    chain = extended(b"x", b"14 comment=ab\n") * 5000
    path = tmp_path / "0.tar"
    path.write_bytes(chain + make_tar([("a.jpg", jpeg()), ("a.txt", "one")]))
    assert tars.scan(path, 0, None).captions == b"one\0"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_that_tarfile_lists(form, tmp_path):
    folder = "d" * 90 + "/" + "e" * 60
    names = ["a.txt", f"{folder}/b.txt", f"{folder}/" + "f" * 90 + ".txt"]
    names += [] if form == tarfile.USTAR_FORMAT else ["é" * 120 + ".txt"]
    data = make_tar([(name, name) for name in names], format=form)
    found = list(tars.walk(tmp_path, data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [tuple(member) for member in found] == [
            (m.name, m.offset_data, m.size) for m in tar.getmembers()
        ]


def test_folders_and_links_are_passed_over_and_large_numbers_read(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("x.txt")
            info.type, info.linkname = kind, "y"
            tar.addfile(info)
        info = tarfile.TarInfo("a.txt")
        info.size, info.mtime = 1, 1 << 40  # of base 256
        tar.addfile(info, io.BytesIO(b"b"))
    assert [member.name for member in tars.walk(tmp_path, buffer.getvalue())] == ["a.txt"]
    header = bytearray(tarfile.TarInfo("a.txt").tobuf())
    header[124:136] = b"\x80" + (1).to_bytes(11, "big")
    data = repaired(header) + b"b".ljust(512, b"\0") + bytes(1024)
    assert [member.size for member in tars.walk(tmp_path, data)] == [1]


def test_img2datasets_count_is_compared(tmp_path):
    path = shards(tmp_path / "s", n_shards=1)
    stats = tmp_path / "s" / "0_stats.json"
    stats.write_text(json.dumps({"successes": 150}))
    assert open_pairs(path, "train").faults == ()
    stats.write_text(json.dumps({"successes": 151}))
    with pytest.raises(ValueError, match=r"0\.tar holds 150 images, 0_stats\.json says 151"):
        open_pairs(path, "train")
    stats.write_text("[]")
    assert "0_stats.json: holds no count of successes" in open_pairs(path, "train").faults[0]


def test_the_scanning_program_needs_no_torch():
    script = "import sys; from zslkit.data.readers import tars; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
