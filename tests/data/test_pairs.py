import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import zslkit.data.pairs
from zslkit.data.images import BrokenImageError
from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs
from zslkit.data.sampling import check_broken


def jpeg(level):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (level, level, level)).save(buffer, "JPEG")
    return buffer.getvalue()


def level_of(pixels):
    return round(pixels.float().mean().item())


def manifest(tmp_path, kind, split, **more):
    content = {
        "name": "mine",
        "kind": kind,
        "title": "Mine",
        "licence": "none",
        "how_to_obtain": "ask Ann",
        "splits": {"train": split},
        **more,
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    return path


def shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def table(tmp_path, rows, columns=("image", "caption"), images=None):
    """Write pairs.csv, the images it names (level 10 × its number), and the manifest."""
    frame = pd.DataFrame(rows, columns=list(columns))
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    names = list(dict.fromkeys(frame[columns[0]])) if images is None else images
    for number, name in enumerate(names):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(10 * number))
    return manifest(
        tmp_path,
        "table",
        {"table": "pairs.csv"},
        image_field=columns[0],
        caption_field=columns[1],
        image_folder="images",
    )


def many(tmp_path, n=40):
    """A table of n images with two captions each that carry the image's number."""
    rows = [(f"{i:03}.jpg", f"caption {c} of {i}") for i in range(n) for c in "ab"]
    return table(tmp_path, rows)


# --- tar shards


def test_shards_with_captions_in_txt_as_img2dataset_writes_them(tmp_path):
    shard(tmp_path / "s/0.tar", [("000.txt", "a dog\n"), ("000.json", "{}"), ("000.jpg", jpeg(7))])
    shard(
        tmp_path / "s/1.tar", [("./a/1.x.JPG", jpeg(0)), ("./a/1.JPG", jpeg(9)), ("./a/1.txt", "é")]
    )
    pairs = open_pairs(manifest(tmp_path, "shards", {"shards": ["s/*.tar"]}), "train")
    assert [pair.key for pair in pairs] == ["000", "./a/1"]
    assert [pair.captions for pair in pairs] == [("a dog",), ("é",)] == list(pairs.captions)
    assert [level_of(pair.pixels) for pair in pairs] == [7, 9]
    assert pairs.labels is None
    assert pairs[0].label is None
    assert pairs.class_names == ()


def test_shards_with_captions_in_a_json_field(tmp_path):
    record = {"captions": ["one", " ", "two "], "caption": "three"}
    members = [("0.jpg", jpeg(1)), ("0.json", json.dumps(record)), ("0.txt", "four")]
    shard(tmp_path / "0.tar", members)
    for field, expected in [
        ("captions", ("one", "two")),
        ("caption", ("three",)),
        (None, ("four",)),
    ]:
        path = manifest(tmp_path, "shards", {"shards": ["0.tar"]}, caption_field=field)
        assert open_pairs(path, "train")[0].captions == expected
    path = manifest(tmp_path, "shards", {"shards": ["0.tar"]}, caption_field="text")
    with pytest.raises(ValueError, match="no field 'text'; its fields: captions, caption"):
        open_pairs(path, "train")


def test_index_costs_16_bytes_per_image(tmp_path):
    shard(tmp_path / "0.tar", [("0.jpg", jpeg(1)), ("0.txt", "a")])
    pairs = open_pairs(manifest(tmp_path, "shards", {"shards": ["0.tar"]}), "train")
    assert pairs._source.places.nbytes == 16


def test_a_few_incomplete_samples_are_left_out_and_named(tmp_path):
    members = [(f"{i:03}.{s}", d) for i in range(200) for s, d in (("jpg", jpeg(i)), ("txt", "a"))]
    members[1] = ("000.txt", " ")
    del members[4]  # 002.jpg
    shard(tmp_path / "0.tar", members)
    pairs = open_pairs(manifest(tmp_path, "shards", {"shards": ["0.tar"]}), "train")
    assert pairs.skipped == ("000", "002")
    assert (len(pairs), level_of(pairs[1].pixels)) == (198, 3)


def test_shards_without_captions_or_without_images_are_refused(tmp_path):
    path = manifest(tmp_path, "shards", {"shards": ["0.tar"]})
    shard(tmp_path / "0.tar", [("0.jpg", jpeg(1)), ("1.jpg", jpeg(2)), ("1.txt", "")])
    with pytest.raises(ValueError, match=r"none of its 2 samples has a caption in \.txt members"):
        open_pairs(path, "train")
    shard(tmp_path / "0.tar", [("0.txt", "a"), ("1.txt", "b"), ("1.jpg", jpeg(1))])
    with pytest.raises(
        ValueError, match=r"1 of 2 .* lack a caption.*limit of 5\.0%, max_unr.*: 0$"
    ):
        open_pairs(path, "train")


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(ValueError, match=r"0\.tar is not a sound uncompressed tar"):
        open_pairs(manifest(tmp_path, "shards", {"shards": ["0.tar"]}), "train")


def test_flickr8k(shared_data):
    pairs = open_pairs("flickr8k", "test", data_root=shared_data)
    frame = pd.read_csv(shared_data / "flickr8k" / "captions.csv", keep_default_na=False)
    expected = frame.groupby("image")["caption"].agg(tuple)
    splits = pd.read_csv(shared_data / "flickr8k" / "splits.csv")
    assert {f"{key}.jpg" for key in pairs.keys} == set(splits.image[splits.split == "test"])
    assert all(expected[f"{pair.key}.jpg"] == pair.captions for pair in pairs)
    with tarfile.open(shared_data / "flickr8k" / "flickr8k-000007.tar") as tar:
        image = Image.open(tar.extractfile(f"{pairs.keys[700]}.jpg"))
        assert np.array_equal(np.array(image), np.array(pairs[700].image))
    counts = {s: len(open_pairs("flickr8k", s, data_root=shared_data)) for s in ("train", "extra")}
    assert counts == {"train": 6000, "extra": 91}


# --- tables


def test_rows_with_the_same_image_become_its_captions(tmp_path):
    rows = [("b/x.jpg", "one"), ("a.jpg", "None"), ("b/x.jpg", "two, three")]
    pairs = open_pairs(table(tmp_path, rows), "train")
    assert list(pairs.keys) == ["b/x.jpg", "a.jpg"]
    assert list(pairs.captions) == [("one", "two, three"), ("None",)]
    assert [level_of(pair.pixels) for pair in pairs] == [0, 10]


def test_parquet_with_lists_and_a_split_column(tmp_path):
    pytest.importorskip("pyarrow")
    many(tmp_path, 4)
    frame = pd.DataFrame({"image": ["000.jpg", "001.jpg", "002.jpg"], "part": [1, 2, 1]})
    frame["caption"] = [["a", "b"], ["c"], ["d"]]
    frame.to_parquet(tmp_path / "pairs.parquet")
    split = {"table": "pairs.parquet", "where": {"part": "1"}}
    path = manifest(tmp_path, "table", split, caption_field="caption", image_folder="images")
    assert list(open_pairs(path, "train").captions) == [("a", "b"), ("d",)]


@pytest.mark.parametrize("text", ["", "image,caption\n"])
def test_empty_caption_file_is_refused(tmp_path, text):
    path = many(tmp_path)
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=r"is empty; it needs columns image|holds no image with a"):
        open_pairs(path, "train")


def test_captions_without_images_are_refused(tmp_path):
    path = table(tmp_path, [("a.jpg", "x"), ("b.jpg", "y"), ("c.jpg", "z")], images=["b.jpg"])
    with pytest.raises(
        ValueError, match=r"2 of 3 images are unreadable or lack.*max_unreadable.*a\.jpg, c"
    ):
        open_pairs(path, "train")
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"none of the 3 image files .* pairs\.csv .*a\.jpg"):
        open_pairs(path, "train", max_unreadable=1)


def test_up_to_max_unreadable_is_left_out_and_counted_by_reason(tmp_path):
    rows = [("a.jpg", "x"), ("b.jpg", " "), ("c.jpg", "z"), ("d.jpg", "z"), ("d.jpg", "z")]
    path = table(tmp_path, rows, images=["a.jpg", "b.jpg", "d.jpg"])
    pairs = open_pairs(path, "train", max_unreadable=0.5)
    assert list(pairs.captions) == [("x",), ("z",)]
    assert pairs.left_out == {"no caption": ["b.jpg"], "missing": ["c.jpg"]}
    assert "1 no caption; 1 missing; 1 rows that repeat another" in pairs.understood[1]


def test_images_without_captions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 2 images .* lack a caption.*first: b\.jpg"):
        open_pairs(table(tmp_path, [("a.jpg", "x"), ("b.jpg", " ")]), "train")


def test_unknown_column_is_refused_with_the_columns(tmp_path):
    path = table(tmp_path, [("a.jpg", "x")], columns=("file", "text"))
    path.write_text(path.read_text().replace('"text"', '"caption"'))
    with pytest.raises(ValueError, match="no column 'caption'; its columns: file, text"):
        open_pairs(path, "train")


# --- labelled folders


def labelled(tmp_path, **more):
    for number, name in enumerate(
        ("stop_sign/1.jpg", "dog/2.jpg", "dog/deep/3.PNG", "dog/notes.txt")
    ):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(10 * number))
    return manifest(tmp_path, "image_folder", {"folder": "photos"}, **more)


def test_folder_names_are_class_names(tmp_path):
    pairs = open_pairs(labelled(tmp_path), "train")
    assert list(pairs.keys) == ["dog/2.jpg", "dog/deep/3.PNG", "stop_sign/1.jpg"]
    assert pairs.class_names == ("dog", "stop sign")
    assert pairs.labels.tolist() == [0, 0, 1]
    assert (pairs[2].label, pairs[2].captions) == (1, ("stop sign",))
    assert level_of(pairs[2].pixels) == 0


def test_class_list_fixes_the_order(tmp_path):
    path = labelled(tmp_path, class_list="classes.txt")
    classes = tmp_path / "classes.txt"
    classes.write_text("stop sign\ncat\ndog\n")
    assert open_pairs(path, "train").labels.tolist() == [2, 2, 0]
    classes.write_text("stop sign\ndog\ncat\ndog\n")
    with pytest.raises(ValueError, match=r"1 classes are listed more than once \(dog\)"):
        open_pairs(path, "train")
    classes.write_text("stop sign\ncat\n")
    with pytest.raises(ValueError, match=r"'classes\.txt' lacks the class 'dog'"):
        open_pairs(path, "train")


def test_labels_replace_the_folder_names(tmp_path):
    labelled(tmp_path)
    rows = "file,class_name,part\ndog/2.jpg,a dalmatian,x\nstop_sign/1.jpg,a sign,y\n"
    (tmp_path / "labels.csv").write_text(rows)
    split = {"folder": "photos", "labels": "labels.csv"}
    pairs = open_pairs(manifest(tmp_path, "image_folder", split), "train")
    assert [pairs.class_names[label] for label in pairs.labels] == ["a dalmatian", "a sign"]
    split["where"] = {"part": "y"}
    pairs = open_pairs(manifest(tmp_path, "image_folder", split), "train")
    assert (list(pairs.keys), pairs.class_names) == (["stop_sign/1.jpg"], ("a sign",))


def test_caltech20(shared_data):
    pairs = open_pairs("caltech20", "all", data_root=shared_data)
    assert len(pairs.class_names) == 20
    assert np.bincount(pairs.labels).tolist() == [40] * 20
    for i in range(0, 800, 37):
        assert pairs.keys[i].split("/")[0].replace("_", " ") == pairs.class_names[pairs[i].label]


# --- the toy set


def test_toy_scenes():
    from zslkit.data.toy import ToyScenes

    pairs = open_pairs("toy", "dev")
    split = load_manifest("toy").splits["dev"]
    scenes = ToyScenes("dev", split.n, split.seed, 64)
    assert len(pairs) == split.n
    assert pairs.class_names == tuple(scenes.class_names)
    for i in (0, 5, len(pairs) - 1):
        assert pairs[i].label == scenes.class_index(i)
        assert pairs[i].captions == tuple(scenes.captions(i))
        assert np.array_equal(np.array(pairs[i].image), scenes.render(i))
    few = open_pairs("toy", "dev", max_pairs=3, seed=1)
    for pair in few:
        assert torch.equal(pair.pixels, pairs[int(pair.key.split("-")[1])].pixels)


# --- whatever the source


def test_pairs_are_a_sequence_that_survives_pickling(tmp_path):
    pairs = open_pairs(many(tmp_path, 5), "train")
    copy = pickle.loads(pickle.dumps(pairs))
    assert copy[-1].key == pairs[4].key == "004.jpg"
    assert torch.equal(copy[3].pixels, pairs[3].pixels)
    assert pairs[3].pixels.shape == (3, 8, 12)
    assert (pairs[3].image.size, pairs[3].image.mode) == ((12, 8), "RGB")
    assert list(pairs.captions) == [pair.captions for pair in pairs]
    with pytest.raises(IndexError):
        pairs[5]


def test_images_are_read_when_asked_for(tmp_path):
    pairs = open_pairs(many(tmp_path, 3), "train")
    (tmp_path / "images" / "001.jpg").write_bytes(b"gone bad")
    pair = pairs[1]
    assert pair.captions == ("caption a of 1", "caption b of 1")
    with pytest.raises(BrokenImageError, match=r"image '001\.jpg': not a readable image"):
        _ = pair.pixels
    (tmp_path / "images" / "001.jpg").unlink()
    with pytest.raises(BrokenImageError, match=r"image '001\.jpg': .*No such file"):
        _ = pairs[1].image


def test_max_pairs_draws_with_the_seed(tmp_path):
    path = many(tmp_path)
    chosen = {n: set(open_pairs(path, "train", max_pairs=n, seed=1).keys) for n in (7, 20, 99)}
    assert [len(keys) for keys in chosen.values()] == [7, 20, 40]
    assert chosen[7] < chosen[20]
    assert chosen[7] != set(open_pairs(path, "train", max_pairs=7, seed=2).keys)
    pairs = open_pairs(path, "train", max_pairs=7, seed=1)
    assert all(pair.captions[0].endswith(f" {int(pair.key[:3])}") for pair in pairs)


@pytest.mark.parametrize(("noise", "n_swapped"), [(0.0, 0), (0.01, 2), (0.5, 20), (1.0, 40)])
def test_caption_noise_exchanges_all_captions_of_the_chosen_images(tmp_path, noise, n_swapped):
    path = many(tmp_path)
    clean = open_pairs(path, "train")
    noisy = open_pairs(path, "train", caption_noise=noise, seed=3)
    assert noisy.swapped.sum() == n_swapped
    changed = [a != b for a, b in zip(clean.captions, noisy.captions, strict=True)]
    assert changed == noisy.swapped.tolist()
    assert sorted(clean.captions) == sorted(noisy.captions)
    assert list(clean.keys) == list(noisy.keys)
    assert (
        noisy[int(noisy.swapped.argmax())].captions == noisy.captions[int(noisy.swapped.argmax())]
    )
    assert torch.equal(clean[5].pixels, noisy[5].pixels)


def test_caption_noise_depends_on_the_seed(tmp_path):
    path = many(tmp_path)
    one, same, other = (
        list(open_pairs(path, "train", caption_noise=0.5, seed=seed).captions) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_fingerprint_is_that_of_the_content(tmp_path):
    path = many(tmp_path)
    plain = open_pairs(path, "train")
    assert open_pairs(path, "train", seed=5).fingerprint == plain.fingerprint  # seed has no effect
    noisy = open_pairs(path, "train", caption_noise=0.5)
    assert noisy.fingerprint != plain.fingerprint
    assert noisy.image_fingerprint == plain.image_fingerprint
    assert open_pairs(path, "train", caption_noise=0.5, seed=1).fingerprint != noisy.fingerprint
    few = [open_pairs(path, "train", max_pairs=9, seed=seed).image_fingerprint for seed in (0, 1)]
    assert len({*few, plain.image_fingerprint}) == 3
    with (tmp_path / "images" / "007.jpg").open("ab") as file:
        file.write(b"more")
    assert open_pairs(path, "train").image_fingerprint != plain.image_fingerprint


def test_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="split='val': 'toy' has no such split; known: train, dev"):
        open_pairs("toy", "val")


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_caption_noise_must_be_a_share(noise):
    with pytest.raises(ValueError, match=r"caption_noise=.* must lie between 0 and 1"):
        open_pairs("toy", "dev", caption_noise=noise)


def test_max_pairs_must_be_positive():
    with pytest.raises(ValueError, match="max_pairs=0 must be at least 1"):
        open_pairs("toy", "dev", max_pairs=0)


def test_absent_data_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_root='.*'; how to obtain it: ask Ann"):
        open_pairs(manifest(tmp_path, "shards", {"shards": ["x/*.tar"]}), "train")


def test_check_broken_counts_against_the_limit():
    check_broken(["a"], 100, 0.01)
    check_broken([], 0, 0.0)
    with pytest.raises(ValueError, match=r"4 of 100 images .* limit of 2\.5%.*: a, b, c$"):
        check_broken(list("abcd"), 100, 0.025)


def test_fingerprints_are_those_of_the_whole_list_as_json():
    pairs = open_pairs("toy", "test", max_pairs=9)
    first = pairs._source.read(0)
    stamp = pairs._source.places["size"][pairs._rows].tobytes() + first.numpy().tobytes()
    content = json.dumps([pairs.manifest.checksum, "test", *pairs.keys]).encode()
    assert pairs.image_fingerprint == hashlib.sha256(content + stamp).hexdigest()
    content = json.dumps([pairs.image_fingerprint, *pairs.captions]).encode()
    assert pairs.fingerprint == hashlib.sha256(content).hexdigest()
    many = [str(i) for i in range(70_000)]  # more than one piece
    expected = hashlib.sha256(json.dumps(many).encode()).hexdigest()
    assert zslkit.data.pairs._sha256(many) == expected
