import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from zslkit.data.images import BrokenImageError
from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs

DOG, CAT, TENCH = "n02084071", "n02121620", "n01440764"
SYNSETS = f"{TENCH} tench, Tinca tinca\n{DOG} dog, domestic dog\n{CAT} cat, true cat\n"
# Of each class file, the numbers that pictures() draws: levels of grey that JPEG keeps exactly.
TRAIN = {f"{DOG}_1": 10, f"{DOG}_22": 20, f"{CAT}_3": 30, f"{TENCH}_18": 40}


def jpeg(level):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (level, level, level)).save(buffer, "JPEG")
    return buffer.getvalue()


def level_of(pixels):
    return round(pixels.float().mean().item())


def levels(pairs):
    return {pair.key: level_of(pair.pixels) for pair in pairs}


def manifest(tmp_path, kind, splits, **more):
    content = {"name": "mine", "kind": kind, "title": "Mine", "licence": "none"}
    content |= {"how_to_obtain": "ask Ann", "splits": splits, **more}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    return path


def write(tmp_path, files):
    for name, data in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def refused(path, message, split="train"):
    with pytest.raises(ValueError, match=message):
        open_pairs(path, split)


def test_every_kind_is_opened_by_open_pairs_with_arrays_that_survive_pickling(tmp_path):
    pairs = pickle.loads(pickle.dumps(open_pairs(folders(tmp_path), "train")))
    assert pairs.positives[0] == (pairs[0].label,)
    assert isinstance(pairs.positives.values, np.ndarray)
    few = open_pairs(folders(tmp_path), "train", max_pairs=2, seed=1)
    assert len(few) == len(few.positives) == len(few.captions) == 2
    assert [few.class_names[label] for label in few.labels] == [text for (text,) in few.captions]
    noisy = open_pairs(folders(tmp_path), "train", caption_noise=1.0)
    assert sorted(noisy.captions) == sorted(pairs.captions)
    assert list(noisy.captions) != list(pairs.captions)
    assert list(noisy.positives) == list(pairs.positives)


# --- ImageNet in folders


def folders(tmp_path, **more):
    write(tmp_path, {f"train/{k.partition('_')[0]}/{k}.JPEG": jpeg(v) for k, v in TRAIN.items()})
    write(tmp_path, {f"train/{DOG}/notes.txt": "no image", "synsets.txt": SYNSETS})
    more = {"class_list": "synsets.txt", **more}
    return manifest(tmp_path, "imagenet_folder", {"train": {"folder": "train"}}, **more)


def test_imagenet_folders(tmp_path):
    pairs = open_pairs(folders(tmp_path), "train")
    assert levels(pairs) == {f"{k.partition('_')[0]}/{k}.JPEG": v for k, v in TRAIN.items()}
    assert pairs.class_ids == (TENCH, DOG, CAT)  # in the order of the list
    assert pairs.class_names == ("tench", "dog", "cat")
    assert pairs.labels.tolist() == [0, 1, 1, 2]
    assert list(pairs.positives) == [(0,), (1,), (1,), (2,)]
    assert pairs.negatives is None
    assert pairs[0].captions == ("tench",)


def test_imagenet_classes_without_a_list_go_by_their_ids_in_order(tmp_path):
    pairs = open_pairs(folders(tmp_path, class_list=None), "train")
    assert (
        pairs.class_ids
        == pairs.class_names
        == (TENCH, DOG, CAT)
        == tuple(sorted([CAT, TENCH, DOG]))
    )
    assert pairs[3].captions == (CAT,)


def test_imagenet_folders_missing_extra_or_damaged_are_named(tmp_path):
    path = folders(tmp_path)
    file = tmp_path / "train" / CAT / f"{CAT}_3.JPEG"
    file.write_bytes(jpeg(30)[:-30])
    with pytest.raises(BrokenImageError, match=rf"image '{CAT}/{CAT}_3\.JPEG': not a readable"):
        _ = open_pairs(path, "train")[3].pixels
    file.write_bytes(b"")
    refused(path, rf"train: 1 images are empty; the first: {CAT}/{CAT}_3\.JPEG")
    file.unlink()
    refused(path, rf"1 of the 3 classes in class_list 'synsets\.txt' have no image.*: {CAT}")
    write(tmp_path, {f"train/{CAT}/a.JPEG": jpeg(1), "train/n99999999/b.JPEG": jpeg(1)})
    refused(path, r"1 classes are not in class_list 'synsets\.txt'; the first: n99999999")
    write(tmp_path, {"train/loose.JPEG": jpeg(1)})
    refused(path, r"'loose\.JPEG' is no synset such as n01440764; images lie in a folder or tar")


@pytest.mark.parametrize("line", [f"{DOG} dog again", "dog n02084071"])
def test_imagenet_class_list_must_name_each_synset_once(tmp_path, line):
    path = folders(tmp_path)
    (tmp_path / "synsets.txt").write_text(SYNSETS + line)
    refused(path, "must have lines such as 'n01440764 tench, Tinca tinca', each synset once")


def test_a_place_without_images_is_refused(tmp_path):
    path = folders(tmp_path)
    (tmp_path / "empty").mkdir()
    path.write_text(path.read_text().replace('"train"}', '"empty"}'))
    refused(path, r"empty holds no image \(avif, bmp, gif")


# --- ImageNet's flat validation images


def validation(tmp_path, truth, class_list="synsets.txt", n=4):
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, n + 1)]
    write(tmp_path, {f"val/{name}": jpeg(10 * i) for i, name in enumerate(names)})
    write(tmp_path, {"synsets.txt": SYNSETS, "truth.txt": "".join(f"{t}\n" for t in truth)})
    splits = {"val": {"folder": "val", "labels": "truth.txt"}}
    return manifest(tmp_path, "imagenet_folder", splits, class_list=class_list)


def devkit(tmp_path):
    """Write meta.mat as ILSVRC2012_devkit_t12 has it; its ids are not in the order of synsets."""
    savemat = pytest.importorskip("scipy.io").savemat
    rows = [(1, CAT, "cat, true cat", 0), (2, TENCH, "tench, Tinca tinca", 0)]
    rows += [(3, DOG, "dog, domestic dog", 0), (4, "n00015388", "animal", 3)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    synsets = np.empty((len(rows), 1), dtype=[*kinds, ("num_children", "O")])
    for i, (number, wnid, words, n_children) in enumerate(rows):
        synsets[i, 0] = (number, wnid, words, "a gloss", n_children)
    (tmp_path / "data").mkdir(parents=True)
    savemat(tmp_path / "data" / "meta.mat", {"synsets": synsets})
    return "data/meta.mat"


def test_validation_truth_in_synsets(tmp_path):
    pairs = open_pairs(validation(tmp_path, [CAT, TENCH, DOG, CAT]), "val")
    assert pairs.labels.tolist() == [2, 0, 1, 2]
    assert list(levels(pairs).values()) == [0, 10, 20, 30]
    assert pairs.keys[0] == "ILSVRC2012_val_00000001.JPEG"


def test_validation_truth_of_the_devkit_is_read_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import imagenet

    meta = devkit(tmp_path)
    pairs = open_pairs(validation(tmp_path, [1, 2, 3, 1], meta), "val")
    number_to_wnid, names = imagenet_meta(imagenet, tmp_path)
    assert [pairs.class_ids[i] for i in pairs.labels] == [number_to_wnid[i] for i in (1, 2, 3, 1)]
    assert pairs.class_ids == tuple(sorted(names))
    assert pairs.class_names == tuple(names[wnid][0] for wnid in sorted(names))


def imagenet_meta(imagenet, tmp_path):
    import shutil

    root = tmp_path / "devkit"
    inner = root / "ILSVRC2012_devkit_t12" / "data"
    inner.mkdir(parents=True)
    shutil.copy(tmp_path / "data" / "meta.mat", inner)
    truth = inner / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n3\n")
    archive = root / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(inner.parent, "ILSVRC2012_devkit_t12")
    import hashlib

    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    known, imagenet.ARCHIVE_META["devkit"] = imagenet.ARCHIVE_META["devkit"], (archive.name, md5)
    try:
        imagenet.parse_devkit_archive(root)
    finally:
        imagenet.ARCHIVE_META["devkit"] = known
    names, wnids = imagenet.load_meta_file(root)
    return dict(enumerate(wnids, 1)), names


def test_validation_numbers_need_the_devkit(tmp_path):
    refused(
        validation(tmp_path, [1, 2, 3, 1]),
        r"truth\.txt holds ILSVRC2012_IDs; class_list must name the devkit's meta\.mat.*synsets",
        "val",
    )
    path = validation(tmp_path, [1, 2, 3, 1861], devkit(tmp_path))
    refused(path, r"truth\.txt: no class has ILSVRC2012_ID 1861", "val")


def test_validation_images_missing_extra_or_without_truth_are_named(tmp_path):
    path = validation(tmp_path, [CAT, TENCH, DOG, CAT])
    (tmp_path / "val" / "extra.JPEG").write_bytes(jpeg(1))
    refused(path, r"truth\.txt has 4 lines for the 5 images in val; .* without: extra\.JPEG", "val")
    (tmp_path / "val" / "extra.JPEG").unlink()
    (tmp_path / "truth.txt").write_text(f"{CAT}\n{TENCH}\n{DOG}\n")  # cut short
    refused(path, r"3 lines for the 4 images .*: ILSVRC2012_val_00000004\.JPEG", "val")
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    refused(
        path, r"1 of the 3 images listed in .*truth\.txt are not in val; .*_00000002\.JPEG", "val"
    )


# --- ImageNet in tars


def class_tars(name_of=lambda wnid, name: f"{name}.JPEG"):
    by_class = {}
    for name, level in TRAIN.items():
        wnid = name.partition("_")[0]
        by_class.setdefault(wnid, {})[name_of(wnid, name)] = jpeg(level)
    return {wnid: tar(members) for wnid, members in by_class.items()}


def tars(tmp_path, files, shards, **split):
    write(tmp_path, files)
    return manifest(tmp_path, "imagenet_tar", {"train": {"shards": shards, **split}})


def per_class(tmp_path):
    files = {f"winter21_whole/{wnid}.tar": data for wnid, data in class_tars().items()}
    return tars(tmp_path, files, ["winter21_whole/*.tar"])


def test_winter21_tars_equal_the_folders(tmp_path):
    pairs, loose = open_pairs(per_class(tmp_path), "train"), open_pairs(folders(tmp_path), "train")
    assert levels(pairs) == levels(loose)
    assert pairs.class_ids == (TENCH, DOG, CAT)
    assert pairs.labels.tolist() == [0, 1, 1, 2]
    assert pairs._source.places.nbytes == 16 * 4


def test_a_tar_of_tars_is_read_without_unpacking(tmp_path):
    inner = {f"winter21_whole/{wnid}.tar": data for wnid, data in class_tars().items()}
    path = tars(tmp_path, {"whole.tar": tar(inner)}, ["whole.tar"])
    pairs = open_pairs(path, "train")
    assert levels(pairs) == levels(open_pairs(folders(tmp_path), "train"))


def test_the_official_validation_tar(tmp_path):
    members = {f"ILSVRC2012_val_{i + 1:08}.JPEG": jpeg(10 * i) for i in range(3)}
    files = {"ILSVRC2012_img_val.tar": tar(members), "truth.txt": f"{CAT}\n{DOG}\n{CAT}\n"}
    path = tars(tmp_path, files, ["ILSVRC2012_img_val.tar"], labels="truth.txt")
    pairs = open_pairs(path, "train")
    assert [pairs.class_ids[i] for i in pairs.labels] == [CAT, DOG, CAT]
    assert list(levels(pairs).values()) == [0, 10, 20]


@pytest.mark.parametrize("n_lost", [512, 1024 + 8192, 10240])
def test_a_truncated_tar_is_named(tmp_path, n_lost):
    path = per_class(tmp_path)
    file = tmp_path / "winter21_whole" / f"{DOG}.tar"
    whole = file.read_bytes().rstrip(b"\0")
    for size in (len(whole) - 100, -(-len(whole) // 512) * 512):  # in an image, and just after it
        file.write_bytes(whole.ljust(size, b"\0")[:size])
        refused(path, rf"winter21_whole/{DOG}\.tar is truncated, or no tar file")


def test_a_truncated_tar_in_a_tar_is_named(tmp_path):
    inner = class_tars()
    inner[CAT] = inner[CAT].rstrip(b"\0")[:-100]
    whole = tar({f"{wnid}.tar": data for wnid, data in inner.items()})
    path = tars(tmp_path, {"whole.tar": whole}, ["whole.tar"])
    refused(path, rf"whole\.tar/{CAT}\.tar is truncated")
    cut = whole[: whole.index(f"{CAT}.tar".encode()) + 700]
    refused(tars(tmp_path, {"whole.tar": cut}, ["whole.tar"]), r"whole\.tar.* is truncated")


def test_missing_and_extra_tars_are_named(tmp_path):
    path = per_class(tmp_path)
    write(tmp_path, {"synsets.txt": SYNSETS})
    path.write_text(path.read_text()[:-1] + ', "class_list": "synsets.txt"}')
    assert len(open_pairs(path, "train")) == 4
    (tmp_path / "winter21_whole" / f"{CAT}.tar").rename(tmp_path / "winter21_whole/n00000001.tar")
    refused(path, r"1 classes are not in class_list 'synsets\.txt'; the first: n00000001")
    (tmp_path / "winter21_whole/n00000001.tar").unlink()
    refused(path, rf"class_list 'synsets\.txt' have no image; the first: {CAT}")


def test_verify_opens_every_split(tmp_path):
    path = per_class(tmp_path)
    assert load_manifest(path).verify() == []
    file = tmp_path / "winter21_whole" / f"{DOG}.tar"
    file.write_bytes(file.read_bytes()[:600])
    (problem,) = load_manifest(path).verify()
    assert (problem.path, problem.kind) == ("train", "unsound")
    assert f"{DOG}.tar is truncated" in problem.detail


def test_a_compressed_tar_must_be_unpacked(tmp_path):
    import gzip

    path = tars(tmp_path, {"winter21_whole.tar.gz": gzip.compress(tar({}))}, ["winter21_whole.*"])
    refused(path, r"is compressed, .*unpack it first: tar -xzf winter21_whole\.tar\.gz")


def test_an_image_that_two_tars_hold_is_refused(tmp_path):
    files = {f"{part}.tar": tar({"ILSVRC2012_val_00000001.JPEG": jpeg(1)}) for part in "ab"}
    path = tars(tmp_path, {**files, "truth.txt": CAT}, ["*.tar"], labels="truth.txt")
    refused(path, r"\*\.tar has more than one image 'ILSVRC2012_val_00000001\.JPEG'")


# --- Tencent ML-Images

CATEGORIES = f"""category_index\tcategory_id\tindex_of_parent_category\tcategory name
0\tn00015388\t-1\tanimal, animate being
1\t{DOG}\t0\tdog, domestic dog
2\t{CAT}\t0\tcat, true cat
3\t{TENCH}\t0\ttench, Tinca tinca
"""
TENCENT = f"{DOG}/{DOG}_22.JPEG\t1:1\t0:1\n{CAT}/{CAT}_3.JPEG\t2:1\t1:0.9\t3:0\t0:1.0\n"


def tencent(tmp_path, listed=TENCENT, categories=CATEGORIES, images=None):
    folders(tmp_path)
    write(tmp_path, {"list.txt": listed, "categories.txt": categories})
    split = {"labels": "list.txt", **({"folder": "train"} if images is None else images)}
    return manifest(tmp_path, "tencent", {"train": split}, class_list="categories.txt")


def test_tencent_lists(tmp_path):
    pairs = open_pairs(tencent(tmp_path), "train")
    assert levels(pairs) == {f"{DOG}/{DOG}_22.JPEG": 20, f"{CAT}/{CAT}_3.JPEG": 30}
    assert pairs.class_ids == ("n00015388", DOG, CAT, TENCH)
    assert pairs.class_names == ("animal", "dog", "cat", "tench")
    assert list(pairs.positives) == [(0, 1), (0, 1, 2)]
    assert pairs.captions[1] == ("animal", "dog", "cat")
    assert pairs.labels is pairs.negatives is pairs[0].label is None


def test_tencent_lists_over_tars(tmp_path):
    per_class(tmp_path)
    path = tencent(tmp_path, images={"shards": ["winter21_whole/*.tar"]})
    assert list(levels(open_pairs(path, "train")).values()) == [20, 30]


def test_tencent_lists_are_read_as_a_plain_loop_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    lines, expected = [], []
    for i in range(70_000):  # more than one block
        chosen = rng.choice(9, size=rng.integers(1, 5), replace=False)
        lines.append(f"n/{i}.JPEG\t" + "\t".join(f"{c}:{rng.choice([0.8, 1])}" for c in chosen))
        expected.append(set(chosen.tolist()))
    (tmp_path / "list.txt").write_text("\n".join(lines))
    from zslkit.data.readers.labelled import group
    from zslkit.data.readers.tencent import _read_tencent_list

    names, numbers, confidences, counts = _read_tencent_list(tmp_path / "list.txt")
    groups = group(np.repeat(np.arange(len(names)), counts), numbers, len(names), 9)
    assert [set(group) for group in groups] == expected
    assert names[69_999] == "n/69999.JPEG"
    assert set(np.round(confidences, 3).tolist()) == {0.8, 1.0} or len(set(confidences)) == 2


def test_tencent_images_missing_or_extra_are_named(tmp_path):
    path = tencent(tmp_path, TENCENT + f"{DOG}/{DOG}_7.JPEG\t1:1\n")
    refused(path, rf"1 of the 3 images listed in .*list\.txt are not in train; .*{DOG}_7\.JPEG")
    (problem,) = load_manifest(tencent(tmp_path)).verify()
    assert (problem.path, problem.kind) == ("train", "extra")
    assert problem.detail == f"2 images are in no list: {TENCH}/{TENCH}_18.JPEG, {DOG}/{DOG}_1.JPEG"


def test_extra_means_in_no_list_of_any_split(tmp_path):
    path = tencent(tmp_path)
    content = json.loads(path.read_text())
    content["splits"]["val"] = {"labels": "val.txt", "folder": "train"}
    path.write_text(json.dumps(content))
    write(tmp_path, {"val.txt": f"{DOG}/{DOG}_1.JPEG\t1:1\n{TENCH}/{TENCH}_18.JPEG\t3:1\n"})
    assert load_manifest(path).verify() == []
    (tmp_path / "val.txt").unlink()
    assert [problem.kind for problem in load_manifest(path).verify()] == ["missing"]


@pytest.mark.parametrize("end", ["", "\t", "\t1", "\t1:", "\t1:1\t2", "\t1:1\tx:1", "\t1:1\t2:0."])
def test_a_tencent_list_cut_in_a_row_is_named(tmp_path, end):
    path = tencent(tmp_path, f"{TENCENT}{DOG}/{DOG}_1.JPEG{end}")
    refused(path, rf"list\.txt, line 3: '{DOG}/{DOG}_1\.JPEG.*' is cut short or not 'image")


def test_tencent_categories_must_be_there(tmp_path):
    path = tencent(tmp_path, TENCENT.replace("2:1", "4:1"))
    refused(path, r"list\.txt: category 4 is not among the 4 of categories\.txt")
    path = tencent(tmp_path, "a.JPEG\t-1:1\n" + TENCENT)
    refused(path, r"list\.txt: category -1 is not among the 4 of categories\.txt")
    refused(tencent(tmp_path, ""), r"list\.txt is empty; it needs lines of 'image<tab>category")
    path = tencent(tmp_path, categories=CATEGORIES[:-19])
    refused(path, r"categories\.txt, line 5: .* is cut short")
    with pytest.raises(ValueError, match=r"class_list must name dictionary_and_semantic_hier"):
        load_manifest(manifest(tmp_path, "tencent", {"train": {"labels": "list.txt"}}))


def test_a_split_must_say_where_its_images_are(tmp_path):
    refused(tencent(tmp_path, images={}), "a split needs 'folder' or 'shards'")


# --- Open Images

DESCRIPTIONS = 'LabelName,DisplayName\n/m/0bt9lr,Dog\n/m/01yrx,Cat\n/m/0jbk,Animal\n/m/1,"A, b"\n'
LABELS = """ImageID,Source,LabelName,Confidence
000b,verification,/m/0bt9lr,1
000b,verification,/m/0jbk,1
000b,crowdsource-verification,/m/0jbk,1
000b,verification,/m/01yrx,0
000a,verification,/m/01yrx,1
000a,crowdsource-verification,/m/01yrx,0
000a,verification,/m/1,1
000c,verification,/m/0bt9lr,0
"""
LISTED = """ImageID,Subset,OriginalURL,Title
000a,test,https://x/a.jpg,"one, two"
000b,test,https://x/b.jpg,
000c,test,https://x/c.jpg,three
000d,train,https://x/d.jpg,four
"""


def open_images(tmp_path, labels=LABELS, descriptions=DESCRIPTIONS, listed=None, **more):
    write(tmp_path, {f"test/000{c}.jpg": jpeg(10 * i) for i, c in enumerate("abc")})
    write(tmp_path, {"labels.csv": labels, "classes.csv": descriptions})
    split = {"folder": "test", "labels": "labels.csv"}
    if listed is not None:
        write(tmp_path, {"images.csv": listed})
        split |= {"image_list": "images.csv", "where": {"Subset": "test"}}
    more = {"class_descriptions": "classes.csv", **more}
    return manifest(tmp_path, "open_images", {"train": split}, **more)


def test_open_images(tmp_path):
    pairs = open_pairs(open_images(tmp_path), "train")
    assert levels(pairs) == {"000a": 0, "000b": 10}  # 000c shows nothing that anyone confirmed
    assert pairs.class_ids == ("/m/0bt9lr", "/m/01yrx", "/m/0jbk", "/m/1")
    assert pairs.class_names == ("Dog", "Cat", "Animal", "A, b")
    assert list(pairs.positives) == [(1, 3), (0, 2)]
    assert list(pairs.negatives) == [(), (1,)]  # a cat that was confirmed is no negative
    assert list(pairs.captions) == [("Cat", "A, b"), ("Dog", "Animal")]
    assert pairs.labels is None
    few = open_pairs(open_images(tmp_path), "train", max_pairs=1, seed=0)
    row = list(pairs.keys).index(few.keys[0])
    assert (few.positives[0], few.negatives[0]) == (pairs.positives[row], pairs.negatives[row])


@pytest.mark.parametrize("seed", range(3))
def test_open_images_labels_are_read_as_a_plain_loop_reads_them(tmp_path, seed):
    rng = np.random.default_rng(seed)
    mids = [f"/m/{i}" for i in range(9)]
    rows = [(f"000{rng.choice(list('abc'))}", rng.choice(mids), rng.integers(2)) for _ in range(25)]
    shown, denied = {}, {}
    for image, mid, confidence in rows:
        (shown if confidence else denied).setdefault(image, set()).add(mid)
    labels = "".join(f"{image},v,{mid},{confidence}\n" for image, mid, confidence in rows)
    path = open_images(
        tmp_path,
        f"ImageID,Source,LabelName,Confidence\n{labels}",
        "".join(f"{mid},name {mid}\n" for mid in mids),
    )
    pairs = open_pairs(path, "train")
    assert set(pairs.keys) == set(shown)
    for key, positives, negatives in zip(pairs.keys, pairs.positives, pairs.negatives, strict=True):
        assert {pairs.class_ids[i] for i in positives} == shown[key]
        assert {pairs.class_ids[i] for i in negatives} == denied.get(key, set()) - shown[key]


def test_open_images_in_a_tar(tmp_path):
    path = open_images(tmp_path)
    write(tmp_path, {"test.tar": tar({f"test/000{c}.jpg": jpeg(10) for c in "abc"})})
    path.write_text(path.read_text().replace('"folder": "test"', '"shards": ["test.tar"]'))
    assert levels(open_pairs(path, "train")) == {"000a": 10, "000b": 10}


def test_open_images_trainable_classes_and_descriptions_without_header(tmp_path):
    write(tmp_path, {"trainable.txt": "/m/01yrx\n/m/0jbk\n"})
    descriptions = DESCRIPTIONS.partition("\n")[2]  # as V4 to V6 have it
    path = open_images(tmp_path, descriptions=descriptions, class_list="trainable.txt")
    pairs = open_pairs(path, "train")
    assert pairs.class_ids == ("/m/01yrx", "/m/0jbk")
    assert list(pairs.positives) == [(0,), (1,)]
    assert list(pairs.negatives) == [(), (0,)]
    write(tmp_path, {"trainable.txt": "/m/01yrx\n/m/none\n"})
    refused(path, r"class_list 'trainable\.txt': '/m/none' is not in classes\.csv")


def test_open_images_without_any_positive_hold_nothing(tmp_path):
    path = open_images(tmp_path, "ImageID,Source,LabelName,Confidence\n000a,v,/m/1,0\n")
    refused(path, "holds no image with a caption")


def test_open_images_missing_or_extra_are_named(tmp_path):
    path = open_images(tmp_path, listed=LISTED)
    assert list(open_pairs(path, "train").keys) == ["000a", "000b"]
    assert load_manifest(path).verify() == []
    (tmp_path / "test" / "more.jpg").write_bytes(jpeg(1))
    (problem,) = load_manifest(path).verify()
    assert str(problem) == "test: extra, 1 images are in no list: more.jpg"
    (tmp_path / "images.csv").write_text(LISTED.replace("000d,train", "000d,test"))
    refused(path, r"1 of the 4 images listed in .*images\.csv are not in test; the first: 000d")
    (tmp_path / "images.csv").write_text(LISTED.replace("000b,", "000e,"))
    refused(path, r"labels\.csv: image '000b' is not in images\.csv, where {'Subset': 'test'}")
    (tmp_path / "test" / "000c.jpg").unlink()
    refused(path, r"1 of the 3 images listed in .*labels\.csv are not in test; the first: 000c")


@pytest.mark.parametrize("n_lost", [2, 5, 12, 22, 28])
def test_open_images_labels_cut_in_a_row_are_named(tmp_path, n_lost):
    refused(
        open_images(tmp_path, LABELS[:-1][:-n_lost]),
        r"labels\.csv: the last row has \d of 4 fields \('000c.*'\); the file is cut short|"
        r"labels\.csv: the last row has 1 of 4",
    )


def test_open_images_tables_that_are_damaged_are_named(tmp_path):
    refused(open_images(tmp_path, listed=LISTED[:-8]), r"images\.csv: the last row has 3 of 4")
    for end in (10, 7, len(DESCRIPTIONS)):
        message = r"classes\.csv: '(/m|/m/1,|)' is cut short or not LabelName,DisplayName"
        refused(open_images(tmp_path, descriptions=DESCRIPTIONS[:-end]), message)
    refused(
        open_images(tmp_path, LABELS.replace("Confidence", "C")), r"no column 'Confidence'; its"
    )
    broken = LABELS.replace("000b,verification,/m/0jbk,1", "000b,verification,/m/0jbk,")
    refused(open_images(tmp_path, broken), r"labels\.csv: could not convert string to float")


def test_open_images_labels_by_machines_or_of_unknown_classes_are_refused(tmp_path):
    path = open_images(tmp_path, LABELS.replace("/m/0bt9lr,1", "/m/0bt9lr,0.6"))
    refused(path, r"labels\.csv, row 2: Confidence is 0\.6.*; people say 0 or 1")
    refused(open_images(tmp_path, LABELS.replace("/m/1,", "/m/2,")), r"'/m/2' is not in classes")
    with pytest.raises(ValueError, match="class_descriptions must name the file of LabelName"):
        load_manifest(open_images(tmp_path, class_descriptions=None))


# --- torchvision


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Write CIFAR-10's files, five images each, and tell torchvision their checksums."""
    import hashlib

    from torchvision.datasets import CIFAR10

    rng, folder = np.random.default_rng(0), tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def dump(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    meta = {"num_cases_per_batch": 5, "label_names": names, "num_vis": 3072}
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": dump("batches.meta", meta)})
    pixels = {}
    for part in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(CIFAR10, part):
            pixels[name] = rng.integers(0, 256, (5, 3072), dtype=np.uint8)
            content = {"data": pixels[name], "labels": rng.integers(0, 10, 5).tolist()}
            content |= {"batch_label": name, "filenames": [f"{name}_{i}.png" for i in range(5)]}
            pixels[f"{name} labels"] = content["labels"]
            files.append([name, dump(name, content)])
        monkeypatch.setattr(CIFAR10, part, files)
    return pixels


def cifar(tmp_path, dataset="CIFAR10", **arguments):
    splits = {"train": {"dataset": dataset, "arguments": arguments}}
    return manifest(tmp_path, "torchvision", splits)


def test_cifar10(tmp_path, cifar10):
    pairs = open_pairs(cifar(tmp_path, train=False), "train")
    expected = torch.from_numpy(cifar10["test_batch"].reshape(5, 3, 32, 32))
    assert torch.equal(torch.stack([pair.pixels for pair in pairs]), expected)
    assert pairs[0].pixels.dtype == torch.uint8
    assert pairs.labels.tolist() == cifar10["test_batch labels"]
    assert pairs.class_names == pairs.class_ids
    assert pairs.class_names[3] == "cat"
    assert pairs[1].captions == (pairs.class_names[pairs[1].label],)
    train = open_pairs(cifar(tmp_path, train=True), "train")
    assert len(train) == 25
    assert train.fingerprint != pairs.fingerprint
    assert torch.equal(pickle.loads(pickle.dumps(train))[7].pixels, train[7].pixels)


def test_cifar10_files_missing_or_damaged_are_named_and_others_do_not_matter(tmp_path, cifar10):
    path, folder = cifar(tmp_path, train=True), tmp_path / "cifar-10-batches-py"
    before = open_pairs(path, "train").fingerprint
    (folder / "readme.html").write_text("extra")
    assert open_pairs(path, "train").fingerprint == before
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    message = r"CIFAR10 in .*data_batch_3 is missing or has another md5; how to obtain it: ask Ann"
    refused(path, message)
    file.unlink()
    refused(path, message)


def test_torchvision_names_that_do_not_fit_are_refused(tmp_path, cifar10):
    refused(cifar(tmp_path, "CIFAR11"), "dataset='CIFAR11': torchvision.datasets has no such class")
    refused(cifar(tmp_path, download=True), "nothing is downloaded on opening; see how_to_obtain")
    refused(cifar(tmp_path, colour=1), "'CIFAR10', arguments: .*unexpected .*'colour'")
    refused(cifar(tmp_path, "Caltech101"), r"Caltech101 in .*: Dataset not found.*: ask Ann")


def test_torchvision_sets_without_one_name_per_class_are_refused(tmp_path):
    write(tmp_path, {"gtsrb/GTSRB/Training/00000/0.ppm": jpeg(1)})  # no names
    refused(cifar(tmp_path, "GTSRB"), "'GTSRB' does not tell one name per class and one class per")


def test_torchvision_sets_that_unpickle_unchecked_files_are_refused(tmp_path):
    message = "'ImageNet': torchvision.datasets has no such class that is read here"
    refused(cifar(tmp_path, "ImageNet", split="val"), message)


def test_caltech101(tmp_path):
    """Grey images and a background class, as the official folder has them."""
    for name, n in {"BACKGROUND_Google": 1, "Faces": 2, "accordion": 1}.items():
        for i in range(n):
            grey = io.BytesIO()
            Image.new("L", (12, 8), 10 * i).save(grey, "JPEG")
            file = f"caltech101/101_ObjectCategories/{name}/image_{i + 1:04}.jpg"
            write(tmp_path, {file: grey.getvalue()})
    pairs = open_pairs(cifar(tmp_path, "Caltech101"), "train")
    assert pairs.class_names == ("Faces", "accordion")
    assert pairs.labels.tolist() == [0, 0, 1]
    assert [level_of(pair.pixels) for pair in pairs] == [0, 10, 0]
    assert pairs[0].pixels.shape == (3, 8, 12)
