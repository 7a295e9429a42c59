"""Published sets in their authors' files, of which the tests make small copies."""

import io

import numpy as np
import pytest
from PIL import Image

from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs
from zslkit.data.verification import look_through

# Pictures of the twenty folders of 101_ObjectCategories (Fei-Fei, Fergus and Perona 2004)
COUNTS = {"airplanes": 800, "butterfly": 91, "camera": 50, "chair": 62, "dalmatian": 67}
COUNTS |= {"electric_guitar": 75, "elephant": 64, "flamingo": 67, "grand_piano": 99}
COUNTS |= {"helicopter": 88, "kangaroo": 86, "laptop": 81, "Motorbikes": 798, "pizza": 53}
COUNTS |= {"rooster": 49, "sea_horse": 57, "soccer_ball": 64, "stop_sign": 64}
COUNTS |= {"sunflower": 85, "umbrella": 75}


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def flickr8k(tmp_path):
    folder = tmp_path / "flickr8k" / "Flicker8k_Dataset"
    folder.mkdir(parents=True)
    keys = [f"{n}_ab" for n in range(6)]
    for n, key in enumerate(keys):
        (folder / f"{key}.jpg").write_bytes(jpeg(n))
    lines = [f"{key}.jpg#{c}\tcaption {c} of {key} ." for key in keys for c in range(5)]
    (tmp_path / "flickr8k" / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n\n")
    for split, part in (("train", keys[:3]), ("dev", keys[3:4]), ("test", keys[4:])):
        path = tmp_path / "flickr8k" / f"Flickr_8k.{split}Images.txt"
        path.write_text("".join(f"{key}.jpg\n" for key in part))
    return tmp_path


def test_flickr8k_is_read_from_its_authors_files(flickr8k):
    pairs = open_pairs("flickr8k", "test", data_root=flickr8k)
    assert list(pairs.keys) == ["4_ab", "5_ab"]  # as the shards call them
    assert pairs.captions[1] == tuple(f"caption {c} of 5_ab ." for c in range(5))
    assert pairs[0].pixels.shape == (3, 8, 12)
    assert len(open_pairs("flickr8k", "train", data_root=flickr8k)) == 3
    with pytest.raises(ValueError, match=r"split='extra'.* in the form that is under"):
        open_pairs("flickr8k", "extra", data_root=flickr8k)
    assert look_through(load_manifest("flickr8k", flickr8k)) == ([], 6)
    (flickr8k / "flickr8k" / "Flicker8k_Dataset" / "5_ab.jpg").unlink()
    ((problem,), _) = look_through(load_manifest("flickr8k", flickr8k))
    assert (problem.path, problem.kind) == ("5_ab", "missing")


def test_flickr8k_with_a_line_that_is_none_is_refused(flickr8k):
    path = flickr8k / "flickr8k" / "Flickr8k.token.txt"
    path.write_text(path.read_text().replace("3_ab.jpg#0\t", "3_ab.jpg 0 "))
    with pytest.raises(ValueError, match=r"token\.txt, line 16: '3_ab.* is not 'NAME\.jpg#N<tab>"):
        open_pairs("flickr8k", "train", data_root=flickr8k)


def test_caltech20_takes_from_the_original_folders_what_its_small_copy_holds(tmp_path):
    for folder, count in COUNTS.items():
        (tmp_path / "caltech101" / "101_ObjectCategories" / folder).mkdir(parents=True)
        for n in range(1, count + 1):
            name = f"caltech101/101_ObjectCategories/{folder}/image_{n:04}.jpg"
            (tmp_path / name).write_bytes(b"")
    pairs = open_pairs("caltech20", "all", data_root=tmp_path)
    listed = {entry.path for entry in load_manifest("caltech20").files}
    small = {"airplanes": "airplane", "Motorbikes": "motorbike"}
    ours = set()
    for key in pairs.keys.tolist():
        folder, name = key.split("/")
        ours.add(f"zeroshot_small/{small.get(folder, folder)}/{name}")
    assert ours == listed - {"zeroshot_small/labels.csv"}
    assert len(pairs.class_names) == 20
    assert {pairs.class_names[label] for label in pairs.labels[:40]} == {"airplane"}


def test_the_small_copy_and_the_originals_name_the_same_classes(shared_data, tmp_path):
    classes = load_manifest("caltech20").layouts[0].splits["all"].classes
    pairs = open_pairs("caltech20", "all", data_root=shared_data)
    assert set(classes.values()) == set(pairs.class_names)
