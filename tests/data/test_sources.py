"""Sources without a manifest, each written by the tool that usually writes it."""

import io
import json
import shutil
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zslkit.config import RunConfig
from zslkit.data.description import describe, write_manifest
from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs
from zslkit.data.readers import READERS, RECOGNISERS
from zslkit.data.readers.finding import Found
from zslkit.data.source import files_in

N = 12


def picture(number):
    """Draw an image of its own: noise from its number, blown up so that JPEG keeps its looks."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    return small.resize((36, 32), Image.Resampling.NEAREST)


def captions_of(number):
    return [f"photo {number}, seen", f'the "{number}" again']


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(N):
        picture(number).save(folder / f"{number:02}.jpg", quality=95)
    return folder


@pytest.fixture
def frame(photos):
    rows = [(f"{n:02}.jpg", text) for n in range(N) for text in captions_of(n)]
    return pd.DataFrame(rows, columns=["image", "caption"])


def assert_whole(pairs, n_captions=2):
    """The pairs are those that were written, and each image has its own captions."""
    assert len(pairs) == N
    for pair in pairs:
        number = int(pair.captions[0].split()[1].strip(","))
        assert list(pair.captions) == captions_of(number)[:n_captions]
        written = np.asarray(picture(number), dtype=float)
        assert np.abs(written - np.asarray(pair.image, dtype=float)).mean() < 20


def write_csv(frame, folder):
    frame.to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def write_tsv(frame, folder):
    frame = frame.rename(columns={"image": "Filename", "caption": "title"})
    frame.to_csv(folder / "mine.tsv", sep="\t", index=False)
    return folder / "mine.tsv"


def write_semicolons(frame, folder):
    """As a spreadsheet saves it: semicolons and a byte order mark."""
    frame = frame.rename(columns={"image": "filepath", "caption": "text"})
    frame.to_csv(folder / "mine.csv", sep=";", index=False, encoding="utf-8-sig")
    return folder / "mine.csv"


def write_parquet(frame, folder):
    groups = frame.groupby("image", sort=False)["caption"].agg(list).reset_index()
    groups.to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


def write_jsonl(frame, folder):
    frame.to_json(folder / "mine.jsonl", orient="records", lines=True)
    return folder / "mine.jsonl"


def write_json_list(frame, folder):
    frame.to_json(folder / "mine.json", orient="records")
    return folder / "mine.json"


def write_coco(frame, folder):
    """Folders as of cocodataset.org: annotations/ beside the images."""
    names = list(dict.fromkeys(frame["image"]))
    images = [{"id": 7 + i, "file_name": name} for i, name in enumerate(names)]
    rows = zip(frame["image"], frame["caption"], strict=True)
    notes = [
        {"id": i, "image_id": 7 + names.index(n), "caption": c} for i, (n, c) in enumerate(rows)
    ]
    path = folder / "annotations" / "captions_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return path


TABLES = [write_csv, write_tsv, write_semicolons, write_parquet, write_jsonl, write_json_list]


@pytest.mark.parametrize("write", [*TABLES, write_coco])
def test_tables_open_without_a_manifest(frame, tmp_path, write):
    path = write(frame, tmp_path)
    assert_whole(open_pairs(path))
    assert_whole(open_pairs(str(path), data_root=tmp_path / "photos"))
    parts = [open_pairs(path, split) for split in ("train", "dev", "test")]
    assert sorted(key for part in parts for key in part.keys) == sorted(open_pairs(path).keys)
    assert all(len(part) for part in parts)


def test_a_folder_with_one_table_is_that_table(frame, tmp_path):
    write_csv(frame, tmp_path)
    assert_whole(open_pairs(tmp_path))


def test_columns_of_other_names_are_named(frame, tmp_path):
    frame = frame.rename(columns={"image": "bild", "caption": "worte"})
    path = write_csv(frame, tmp_path)
    with pytest.raises(ValueError, match="none of image, .* is among its columns, bild, worte; .*"):
        open_pairs(path)
    with pytest.raises(ValueError, match=r"no column 'Worte' is among .* caption_field"):
        open_pairs(path, image_field="bild", caption_field="Worte")
    assert_whole(open_pairs(path, image_field="bild", caption_field="worte"))
    config = RunConfig(manifest=str(path), image_field="bild", caption_field="worte")
    assert_whole(open_pairs(config.manifest, **config.source))


def test_a_column_split_names_the_splits(frame, tmp_path):
    names = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    path = write_csv(frame.assign(split=names), tmp_path)
    sizes = {split: len(open_pairs(path, split)) for split in load_manifest(path).splits}
    assert sizes == {"dev": 2, "test": 2, "train": 8}
    assert len(open_pairs(path)) == 8
    with pytest.raises(ValueError, match=r"split_shares=.*names its own splits, "):
        open_pairs(path, split_shares={"train": 1.0})


def test_links_and_images_elsewhere_are_refused_with_what_to_do(frame, tmp_path):
    links = frame.assign(url="https://example.org/" + frame["image"]).drop(columns="image")
    with pytest.raises(ValueError, match="holds links such as .*img2dataset"):
        open_pairs(write_csv(links, tmp_path))
    away = frame.assign(image="x" + frame["image"])
    with pytest.raises(ValueError, match=r"none of its first 24 images, .*data_root must name"):
        open_pairs(write_csv(away, tmp_path))


def test_tables_that_are_none_are_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("image,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.csv is not UTF-8 text"):
        open_pairs(path)
    path.write_text('image,caption\na.jpg,"b\n')
    with pytest.raises(ValueError, match=r"mine\.csv is not a sound table"):
        open_pairs(path)
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "b"}\n{"image": \n')
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: not valid JSON"):
        open_pairs(path)
    path.write_text('{"image": "a.jpg", "caption": "b"}\n3\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl, record 2: 3 is no JSON object"):
        open_pairs(path)
    path.write_text('[{"image": "a.jpg"')
    with pytest.raises(ValueError, match=r"mine\.jsonl: not valid JSON"):
        open_pairs(path)


def test_coco_without_captions_is_refused(frame, tmp_path):
    path = write_coco(frame, tmp_path)
    path.write_text(path.read_text().replace('"caption"', '"bbox"'))
    with pytest.raises(ValueError, match="its annotations have no field 'caption'"):
        open_pairs(path)


def test_tabs_with_a_quotation_mark_that_nothing_closes(photos, tmp_path):
    rows = "".join(f'{n:02}.jpg\tphoto {n} of 5" size\n' for n in range(N))
    (tmp_path / "mine.tsv").write_text("image\tcaption\n" + rows)
    pairs = open_pairs(tmp_path / "mine.tsv")
    assert (len(pairs), pairs.captions[3]) == (N, ('photo 3 of 5" size',))


def test_texts_beside_images_as_img2dataset_writes_them(photos, tmp_path):
    folder = tmp_path / "out"
    for n in range(N + 1):
        stem = folder / f"{n // 8:05}" / f"{n:09}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".txt").write_text(captions_of(n)[0])
        stem.with_suffix(".json").write_text("{}")
        if n < N:  # a dead link leaves no image
            picture(n).save(stem.with_suffix(".jpg"), quality=95)
    pairs = open_pairs(folder, max_unreadable=0.1)
    assert_whole(pairs, 1)
    assert pairs.left_out == {"no image": ["00001/000000012"]}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_image_folders_with_metadata(photos, frame, suffix):
    frame = frame.rename(columns={"image": "file_name", "caption": "text"})
    if suffix == "csv":
        frame.to_csv(photos / "metadata.csv", index=False)
    else:
        frame.to_json(photos / "metadata.jsonl", orient="records", lines=True)
    pairs = open_pairs(photos)
    assert pairs.manifest.kind == "metadata_folder"
    assert_whole(pairs)


def test_image_folders_with_metadata_by_split(tmp_path):
    for split, numbers in (("train", range(8)), ("validation", range(8, N))):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        for n in numbers:
            picture(n).save(folder / f"{n}.png")
        rows = [(f"{n}.png", f"photo {n}") for n in numbers]
        table = pd.DataFrame(rows, columns=["file_name", "text"])
        table.to_csv(folder / "metadata.csv", index=False)
    # where nothing is called test, what validates is what a run is measured on
    sizes = {s: len(open_pairs(tmp_path / "set", s)) for s in ("train", "test")}
    assert sizes == {"train": 8, "test": 4}
    assert "dev" not in load_manifest(tmp_path / "set").splits


def test_folder_of_tar_shards(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    for part in range(2):
        with tarfile.open(tmp_path / "shards" / f"{part:05}.tar", "w") as tar:
            for n in range(part * 6, part * 6 + 6):
                image = (photos / f"{n:02}.jpg").read_bytes()
                record = json.dumps({"caption": captions_of(n)[0], "url": "x"}).encode()
                for suffix, data in (("jpg", image), ("json", record)):
                    info = tarfile.TarInfo(f"{n:09}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        facts = pd.DataFrame({"url": ["x"], "caption": ["y"], "status": ["success"]})
        facts.to_parquet(tmp_path / "shards" / f"{part:05}.parquet")  # img2dataset's own ledger
    assert_whole(open_pairs(tmp_path / "shards"), 1)


@pytest.mark.parametrize("by_split", [False, True])
def test_folder_of_labelled_images(tmp_path, by_split):
    for n in range(N):
        split = ["train", "test"][n % 3 == 0] if by_split else ""
        folder = tmp_path / "set" / split / ("stop_sign" if n % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        picture(n).save(folder / f"{n}.png")
    pairs = open_pairs(tmp_path / "set")
    assert pairs.class_names == ("dog", "stop sign")
    assert len(pairs) == (8 if by_split else N)
    if not by_split:
        assert pairs.labels.tolist() == [0] * 6 + [1] * 6
        assert len(open_pairs(tmp_path / "set", "all")) == N


def dataset(photos):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [str(photos / f"{n:02}.jpg") for n in range(N)]}
    columns["caption"] = [captions_of(n) for n in range(N)]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


@pytest.mark.parametrize("embedded", [True, False])
def test_parquet_of_images_as_datasets_writes_it(photos, tmp_path, embedded):
    data = dataset(photos)
    if embedded:  # as in what is uploaded; to_parquet alone stores the paths of files
        images = [{"bytes": (photos / f"{n:02}.jpg").read_bytes(), "path": None} for n in range(N)]
        features, captions = data.features, data["caption"][:]
        columns = {"image": images, "caption": captions}
        data = type(data).from_dict(columns, features=features)
    data.to_parquet(tmp_path / "mine.parquet", batch_size=5)  # several groups of rows
    pairs = open_pairs(tmp_path / "mine.parquet")
    assert pairs.manifest.kind == "parquet_images"
    assert_whole(pairs)
    (tmp_path / "data").mkdir()
    data.select(range(8)).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    data.select(range(8, N)).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert [len(open_pairs(tmp_path / "data", s)) for s in ("train", "test")] == [8, 4]


def test_datasets_in_memory(photos):
    data = dataset(photos)
    assert_whole(open_pairs(data))
    parts = data.train_test_split(test_size=4, seed=0)
    assert {split: len(open_pairs(parts, split)) for split in ("train", "test")} == {
        "train": 8,
        "test": 4,
    }


def test_datasets_and_parquet_with_class_labels(photos, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = dataset(photos).remove_columns("caption")
    data = data.add_column("label", [n % 2 for n in range(N)])
    data = data.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    data.to_parquet(tmp_path / "mine.parquet")
    for source in (data, tmp_path / "mine.parquet"):
        pairs = open_pairs(source)
        assert pairs.class_names == ("cat", "dog")
        assert pairs.labels.tolist() == [n % 2 for n in range(N)]
        assert pairs[3].captions == ("dog",)


def test_data_frames_with_paths_images_or_bytes(frame, photos):
    assert_whole(open_pairs(frame.assign(image=str(photos) + "/" + frame["image"])))
    assert_whole(open_pairs(frame, data_root=photos))
    first = [captions_of(n)[0] for n in range(N)]
    for image in (picture, lambda n: (photos / f"{n:02}.jpg").read_bytes()):
        table = pd.DataFrame({"image": [image(n) for n in range(N)], "caption": first})
        assert_whole(open_pairs(table), 1)


def test_settings_name_objects_and_keep_their_content_apart(frame, photos):
    config = RunConfig(manifest=frame, data_root=str(photos))
    assert config.manifest.startswith("object:DataFrame-")
    assert RunConfig(**config.model_dump()) == config
    assert_whole(open_pairs(config.manifest, **config.source))
    assert RunConfig(manifest=frame[:-1]).manifest != config.manifest
    with pytest.raises(ValueError, match="was an object in another session"):
        open_pairs("object:DataFrame-00")
    with pytest.raises(ValueError, match="int is no source of pairs: give a path"):
        open_pairs(3)


def test_what_is_no_source_says_what_it_is(photos, tmp_path):
    with pytest.raises(ValueError, match=r"a folder of 12 images without captions: give each a"):
        open_pairs(photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a source that is understood .an empty folder"):
        open_pairs(tmp_path / "empty")
    (tmp_path / "a.pdf").touch()
    with pytest.raises(ValueError, match=r"a file ending in '\.pdf'"):
        open_pairs(tmp_path / "a.pdf")
    with pytest.raises(FileNotFoundError, match=r"'.*nowhere\.csv': there is no such file"):
        open_pairs(tmp_path / "nowhere.csv")


def test_two_lines_say_what_was_understood_once(frame, tmp_path, capsys):
    path = write_csv(pd.concat([frame, frame[:3]]), tmp_path)
    open_pairs(path)
    assert open_pairs(path).understood == (
        "mine: images from column 'image', captions from column 'caption'",
        "split 'all': 12 images with 24 captions; left out: 3 rows that repeat another",
    )
    assert capsys.readouterr().err.count("images from column") <= 1
    assert (
        "drawn from 12 by a hash of the images with seed 0" in open_pairs(path, "dev").understood[1]
    )


def test_described_sources_are_written_as_manifests(frame, tmp_path):
    manifest = load_manifest(write_csv(frame, tmp_path))
    facts = describe(manifest)
    assert facts["splits"]["all"] == {"images": N, "captions": 2 * N, "left_out": {}}
    with pytest.raises(ValueError, match=r"do not lie below its folder; .* must not lead out of"):
        write_manifest(manifest, tmp_path / "below" / "mine.json")
    assert not (tmp_path / "below").exists()
    path = write_manifest(manifest, tmp_path / "mine.json")
    assert_whole(open_pairs(path))
    for split in ("train", "dev", "test"):
        assert list(open_pairs(path, split).keys) == list(open_pairs(manifest, split).keys)
    with pytest.raises(ValueError, match=r"a manifest is written as \.json"):
        write_manifest(manifest, tmp_path / "mine.csv")
    with pytest.raises(ValueError, match="an object cannot be named by a file"):
        write_manifest(load_manifest(frame, tmp_path / "photos"), tmp_path / "mine.json")


def test_a_format_is_added_from_outside(photos, tmp_path, monkeypatch):
    def read(manifest, split, root):
        lines = (root / split.source).read_text().splitlines()
        rows = dict(line.split(" = ") for line in lines)
        return files_in(root, {name: [text] for name, text in rows.items()}, split.source)

    def recognise(path, hints):
        if path.suffix != ".lines":
            return None
        return Found("lines", "lines of image = caption", path.parent, {"source": path.name})

    monkeypatch.setitem(READERS, "lines", read)
    monkeypatch.setitem(RECOGNISERS, "lines", recognise)
    text = "".join(f"{n:02}.jpg = {captions_of(n)[0]}\n" for n in range(N))
    (photos / "mine.lines").write_text(text)
    assert_whole(open_pairs(photos / "mine.lines"), 1)
    content = {"name": "mine", "kind": "lines", "title": "Mine"}
    content |= {"splits": {"train": {"source": "mine.lines"}}}
    (photos / "mine.json").write_text(json.dumps(content))
    assert_whole(open_pairs(photos / "mine.json"), 1)


@pytest.mark.parametrize("by_split", [False, True])
def test_folders_of_save_to_disk(photos, tmp_path, by_split):
    data = dataset(photos)
    if by_split:
        data = data.train_test_split(test_size=4, seed=0)
    data.save_to_disk(tmp_path / "saved")
    if by_split:
        sizes = {split: len(open_pairs(tmp_path / "saved", split)) for split in ("train", "test")}
        assert sizes == {"train": 8, "test": 4}
    else:
        assert_whole(open_pairs(tmp_path / "saved"))
    path = write_manifest(load_manifest(tmp_path / "saved"), tmp_path / "mine.json")
    assert len(open_pairs(path, "train")) > 0


def test_folders_of_save_to_disk_say_what_reads_them(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="package datasets, which is not installed"):
        open_pairs(tmp_path)


def test_the_folders_of_coco(frame, photos, tmp_path):
    write_coco(frame[:16], tmp_path).rename(tmp_path / "annotations" / "captions_train2017.json")
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{}")
    (tmp_path / "val").mkdir()
    rest = write_coco(frame[16:], tmp_path / "val")
    rest.rename(tmp_path / "annotations" / rest.name)
    for split, numbers in (("train2017", range(8)), ("val2017", range(8, N))):
        (tmp_path / split).mkdir()
        for n in numbers:
            (photos / f"{n:02}.jpg").rename(tmp_path / split / f"{n:02}.jpg")
    shutil.rmtree(photos)
    shutil.rmtree(tmp_path / "val")
    sizes = {split: len(open_pairs(tmp_path, split)) for split in ("train", "test")}
    assert sizes == {"train": 8, "test": 4}
    assert open_pairs(tmp_path, "test")[0].captions == tuple(captions_of(8))


def test_links_that_img2dataset_could_not_follow_are_no_rows(frame, photos, tmp_path):
    """Its Parquet keeps them without an image: once they counted against max_unreadable."""
    status = ["success"] * 7 + ["failed_to_download"] * 3 + ["failed_to_resize"] * 2
    images = [(photos / f"{n:02}.jpg").read_bytes() if n < 7 else None for n in range(N)]
    facts = {"jpg": images, "caption": [captions_of(n)[0] for n in range(N)], "status": status}
    pd.DataFrame(facts).to_parquet(tmp_path / "00000.parquet")
    pairs = open_pairs(tmp_path / "00000.parquet")
    assert len(pairs) == 7
    assert pairs.understood[1].endswith("left out: 5 links that img2dataset could not follow")
    table = pd.DataFrame({"image": [f"{n:02}.jpg" for n in range(N)], "caption": facts["caption"]})
    table.assign(status=status).to_csv(tmp_path / "mine.csv", index=False)
    assert open_pairs(tmp_path / "mine.csv").notes == pairs.notes
    table.assign(status="married").to_csv(tmp_path / "other.csv", index=False)
    assert len(open_pairs(tmp_path / "other.csv")) == N


def test_a_set_that_names_one_split_gets_others(photos, tmp_path):
    (tmp_path / "data").mkdir()
    dataset(photos).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert list(load_manifest(tmp_path / "data").splits) == ["train", "dev", "test", "all"]
    assert len(open_pairs(tmp_path / "data")) == N
