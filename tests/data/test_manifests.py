import hashlib
import json
import subprocess
import sys

import pytest

from zslkit.data.manifests import list_manifests, load_manifest
from zslkit.data.schema import Problem

COMMITTED = ["toy", "flickr8k", "caltech20", "my_pairs_example", "cc3m", "imagenet1k"]
COMMITTED += ["imagenet1k_folders", "imagenet21k_winter21", "tencent_ml_images", "open_images_v7"]
COMMITTED += ["cc12m", "cifar10", "cifar100", "caltech101"]


def written(tmp_path, **changes):
    """Write a small sound manifest with one file, and change it where asked."""
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    sha256 = hashlib.sha256(b"0123456789").hexdigest()
    content = {
        "name": "small",
        "kind": "shards",
        "title": "Small",
        "licence": "none",
        "how_to_obtain": "draw it",
        "splits": {"train": {"shards": ["a.tar"]}},
        "files": [{"path": "a.tar", "size": 10, "sha256": sha256}],
        **changes,
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_manifests_load_by_name_and_say_what_a_user_must_know(name):
    manifest = load_manifest(name)
    assert manifest.name == name
    assert manifest.title
    assert manifest.licence
    assert manifest.how_to_obtain
    assert name in list_manifests()


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_ready_shards_of_the_hub_are_the_training_split(name, tmp_path):
    """As they are named there; those of one's own img2dataset have a split of their own."""
    manifest = load_manifest(name, tmp_path)
    command = f"hf download pixparse/{name}-wds --repo-type dataset"
    assert command in manifest.how_to_obtain
    files = [f"{name}-wds/{name}-train-0000.tar", f"{name}/00000.tar"]
    files += [f"{name}-wds/{name}-validation-0000.tar"] if "validation" in manifest.splits else []
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert manifest.verify() == []
    found = {split: [*tmp_path.glob(s.shards[0])] for split, s in manifest.splits.items()}
    assert found["train"] == [tmp_path / files[0]]
    assert found["train_links"] == [tmp_path / files[1]]


def test_names_are_found_from_a_folder_below(tmp_path, monkeypatch):
    (tmp_path / "data_manifests").mkdir()
    written(tmp_path).rename(tmp_path / "data_manifests" / "mine.json")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert load_manifest("mine").title == "Small"
    assert load_manifest("toy").kind == "toy"  # beside the package, from any working folder


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'flikr8k' is not known.*; did you mean flickr8k\?"):
        load_manifest("flikr8k")
    with pytest.raises(ValueError, match=r"known: .*caltech20.*toy"):
        load_manifest("zzzz")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_manifest("nowhere/flickr8k.json")


def test_data_root_defaults_to_the_manifests_folder(tmp_path):
    path = written(tmp_path)
    assert load_manifest(path).data_root == tmp_path
    assert load_manifest(str(path), data_root="elsewhere").data_root.name == "elsewhere"


def test_checksum_depends_on_the_content_alone(tmp_path):
    splits = {"train": {"shards": ["a.tar"]}, "dev": {"shards": ["a.tar"]}}
    path = written(tmp_path, splits=splits)
    checksum = load_manifest(path).checksum
    assert load_manifest(path, data_root="elsewhere").checksum == checksum
    content = {**json.loads(path.read_text()), "splits": dict(reversed(splits.items()))}
    path.write_text(json.dumps(dict(reversed(content.items())), indent=3))
    assert load_manifest(path).checksum == checksum
    assert load_manifest(written(tmp_path, splits=splits, title="Smaller")).checksum != checksum


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "MIT"}, r"licens='MIT': no such key; did you mean licence\?"),
        ({"splits": {"train": {"shard": ["a"]}}}, r"no such key; did you mean shards"),
        ({"files": [{"path": "a", "sha": "00"}]}, r"sha='00': no such key; did you mean sha256"),
        ({"files": [{"path": "a", "sha256": "00"}]}, "match pattern"),
        ({"title": None}, "Field required"),
        ({"kind": "shard"}, r"kind='shard': no such kind; did you mean shards"),
        ({"kind": "table"}, "split 'train' needs 'table', as kind is 'table'"),
        (
            {"kind": "table", "splits": {"train": {"table": "a.csv"}}},
            "caption_field must name a column",
        ),
        ({"splits": {"train": {"shards": ["/data/a.tar"]}}}, "'/data/a.tar' must be relative"),
        ({"splits": {}}, "at least 1 item"),
    ],
)
def test_faulty_content_is_refused(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(path)
    assert "small.json" in str(caught.value)


def test_text_that_is_not_json_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{name: small}")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_manifest(path)


def test_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load_manifest(written(tmp_path)).title = "Other"


def test_verify_names_the_file_that_is_missing_short_or_changed(tmp_path):
    manifest = load_manifest(written(tmp_path))
    assert manifest.verify() == []
    file = tmp_path / "a.tar"
    file.write_bytes(b"012345678")
    assert manifest.verify() == [Problem("a.tar", "short", "expected 10 bytes, got 9")]
    file.write_bytes(b"0123456780")
    (problem,) = manifest.verify()
    assert problem.kind == "changed"
    assert str(problem).startswith("a.tar: changed, expected sha256 84d89877")
    file.write_bytes(b"0123456789x")
    assert manifest.verify() == [Problem("a.tar", "changed", "expected 10 bytes, got 11")]
    file.unlink()
    assert [(p.path, p.kind) for p in manifest.verify()] == [("a.tar", "missing")]


def test_verify_knows_md5_for_publishers_who_give_no_other(tmp_path):
    md5 = hashlib.md5(b"0123456789").hexdigest()
    manifest = load_manifest(written(tmp_path, files=[{"path": "a.tar", "md5": md5}]))
    assert manifest.verify() == []
    (tmp_path / "a.tar").write_bytes(b"0123456780")
    (problem,) = manifest.verify()
    assert str(problem).startswith(f"a.tar: changed, expected md5 {md5}, got ")


def test_checksums_of_published_sets_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.imagenet import ARCHIVE_META

    expected = {f"imagenet1k/{name}": md5 for name, md5 in ARCHIVE_META.values()}
    for kind in (CIFAR10, CIFAR100):
        meta = (kind.meta["filename"], kind.meta["md5"])
        for name, md5 in (*kind.train_list, *kind.test_list, meta):
            expected[f"cifar/{kind.base_folder}/{name}"] = md5
        assert kind.tgz_md5 in load_manifest(kind.__name__.lower()).how_to_obtain
    for name in ("imagenet1k", "cifar10", "cifar100"):
        entries = load_manifest(name).files
        assert entries
        assert all(entry.md5 == expected[entry.path] for entry in entries)


def test_verify_without_checksums_looks_for_presence(tmp_path):
    splits = {"train": {"shards": ["a.tar", "more/*.tar"]}}
    manifest = load_manifest(written(tmp_path, files=None, splits=splits))
    assert [(p.path, p.kind) for p in manifest.verify()] == [("more/*.tar", "missing")]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.tar").touch()
    assert manifest.verify() == []


@pytest.mark.parametrize("name", ["flickr8k", "caltech20"])
def test_shared_data_is_sound(shared_data, name):
    assert load_manifest(name, shared_data).verify() == []


def test_caltech20_lists_every_picture():
    paths = [entry.path for entry in load_manifest("caltech20").files]
    assert len(paths) == len(set(paths)) == 801
    assert all(entry.sha256 for entry in load_manifest("caltech20").files)


def test_reading_a_manifest_imports_nothing_heavy():
    code = (
        "import sys, zslkit; zslkit.load_manifest('toy');"
        "print({'torch', 'torchvision', 'pandas', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_checksum_that_was_recorded_once_stays_valid(tmp_path):
    # of this content, by the library as it was before manifests had kinds for any source
    recorded = "cecbfe0b7a35247b1bd73bbf1a692898d509db898b76fc2a836757a48dd9952e"
    assert load_manifest(written(tmp_path)).checksum == recorded


def test_a_private_manifest_needs_no_licence_and_no_way_to_obtain_it(tmp_path):
    manifest = load_manifest(written(tmp_path, licence=None, how_to_obtain=None))
    assert (manifest.licence, manifest.how_to_obtain) == ("", "")


def test_no_manifest_refers_to_a_folder_that_only_its_authors_have():
    for name in COMMITTED:
        words = load_manifest(name).model_dump()
        assert not any("shared" in str(words[key]) for key in ("how_to_obtain", "description"))
