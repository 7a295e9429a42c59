import hashlib
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zslkit.config import RunConfig
from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs
from zslkit.data.splits import difference_hash, group_near, rows_of_share


def picture(number, size=(90, 80)):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def packed(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def table(folder, n):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(packed(picture(i)))
    rows = [(f"{i}.jpg", f"{i} {c}") for i in range(n) for c in "ab"]
    pd.DataFrame(rows, columns=["image", "caption"]).to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def split_of(path, **options):
    found = {}
    for split in load_manifest(path, **options).splits:
        if split != "all":
            found |= dict.fromkeys(open_pairs(path, split, **options).keys.tolist(), split)
    return found


def test_every_image_is_in_one_split_by_a_hash_of_seed_and_file(tmp_path):
    owner = split_of(table(tmp_path, 60))
    assert len(owner) == 60
    for i in range(60):
        checksum = hashlib.sha256((tmp_path / f"{i}.jpg").read_bytes()).hexdigest()
        unit = int(hashlib.sha256(f"0:{checksum}".encode()).hexdigest()[:13], 16) / 16**13
        assert owner[f"{i}.jpg"] == ("train" if unit < 0.8 else "dev" if unit < 0.9 else "test")


def test_a_share_stays_where_it_is_when_images_are_added(tmp_path):
    before = split_of(table(tmp_path, 60))
    after = split_of(table(tmp_path, 90))
    assert before.items() <= after.items()


def test_where_a_set_was_cut_is_kept_in_the_cache(tmp_path, monkeypatch):
    """The second opening, in another process, does not look through the images again."""
    path, cache = table(tmp_path, 30), tmp_path / "cache"
    first = open_pairs(path, "train", cache_dir=cache).keys.tolist()
    assert len(list(cache.glob("splits-*.npy"))) == 1
    monkeypatch.setattr("zslkit.data.splits._KNOWN", {})
    monkeypatch.setattr("zslkit.data.splits._look", None)
    assert open_pairs(path, "train", cache_dir=cache).keys.tolist() == first
    assert (
        open_pairs(path, "train", **RunConfig(cache_dir=str(cache)).source).keys.tolist() == first
    )
    (tmp_path / "3.jpg").write_bytes(packed(picture(3, (190, 180))))  # another image is seen
    with pytest.raises(TypeError):
        open_pairs(path, "train", cache_dir=cache)


def test_shares_and_seed_can_be_chosen(tmp_path):
    path = table(tmp_path, 60)
    owner = split_of(path, split_shares={"train": 0.5, "test": 0.5})
    assert set(owner.values()) == {"train", "test"}
    assert 20 <= list(owner.values()).count("train") <= 40
    content = load_manifest(path).model_dump(mode="json")
    assert load_manifest(path).splits["dev"].share == (0.8, 0.9)
    other = type(load_manifest(path)).model_validate({**content, "split_seed": 1})
    other._data_root = tmp_path
    drawn = set(open_pairs(other, "train").keys)
    assert drawn != {key for key, split in split_of(path).items() if split == "train"}
    for shares in ({"train": 0.5}, {"train": 1.2, "test": -0.2}):
        with pytest.raises(ValueError, match="split_shares=.* must be positive and make 1"):
            open_pairs(path, split_shares=shares)


def test_copies_of_an_image_are_on_one_side(tmp_path):
    path = table(tmp_path, 40)
    frame = pd.read_csv(path)
    copies = []
    for i in range(40):
        image = picture(i)
        (tmp_path / f"copy_{i}.jpg").write_bytes((tmp_path / f"{i}.jpg").read_bytes())
        (tmp_path / f"small_{i}.png").write_bytes(packed(image.resize((60, 53)), "PNG"))
        (tmp_path / f"poor_{i}.jpg").write_bytes(packed(image, quality=30))
        copies += [(f"{kind}_{i}.{s}", "x") for kind, s in
                   (("copy", "jpg"), ("small", "png"), ("poor", "jpg"))]  # fmt: skip
    more = pd.DataFrame(copies, columns=["image", "caption"])
    pd.concat([frame, more]).to_csv(path, index=False)
    owner = split_of(path)
    assert len(set(owner.values())) == 3
    for i in range(40):
        names = (f"{i}.jpg", f"copy_{i}.jpg", f"small_{i}.png", f"poor_{i}.jpg")
        assert len({owner[name] for name in names}) == 1


def test_near_hashes_are_grouped_as_by_comparing_all_with_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    for i in range(30, 60):  # each a few bits from an earlier one
        bits = rng.choice(64, rng.integers(1, 7), replace=False)
        hashes[i] = hashes[i - 30] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))
    groups = group_near([str(i) for i in range(60)], hashes)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= 3
    reach = near.copy()
    for _ in range(6):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    assert ((groups[:, None] == groups) == reach).all()
    assert near.sum() > 60


def test_plain_surfaces_are_not_near():
    plain = [packed(Image.new("RGB", (40, 40), color)) for color in ("red", "blue")]
    hashes = np.array([difference_hash(data) for data in plain], dtype=np.uint64)
    assert len(set(group_near(["a", "b"], hashes).tolist())) == 2
    assert len(set(group_near(["a", "a"], hashes).tolist())) == 1
    assert difference_hash(b"no image") == 0


def test_no_share_of_a_small_set_is_empty():
    shares = [(0.0, 0.8), (0.8, 0.9), (0.9, 1.0)]
    places = np.array([0.1, 0.2, 0.3, 0.3, 0.7])
    rows = [rows_of_share(places, shares, which).tolist() for which in range(3)]
    assert sorted(row for part in rows for row in part) == [0, 1, 2, 3, 4]
    assert rows == [[0, 1], [4], [2, 3]]  # both images at 0.3 go together
    assert rows_of_share(places[:1], shares, 1).tolist() == []
