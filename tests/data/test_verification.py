import io
import json
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from zslkit.__main__ import app
from zslkit.data.images import BrokenImageError, decode_image
from zslkit.data.manifests import load_manifest
from zslkit.data.schema import Problem
from zslkit.data.verification import look_through, problem_table


def packed(number, kind="JPEG"):
    pixels = np.random.default_rng(number).integers(0, 256, (16, 18, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def faulty(tmp_path):
    """A table of 20 photos with one fault of each kind."""
    for i in range(20):
        (tmp_path / f"{i:02}.jpg").write_bytes(packed(i))
    frame = pd.DataFrame({"image": [f"{i:02}.jpg" for i in range(20)], "caption": "a photo of it"})
    (tmp_path / "01.jpg").unlink()
    (tmp_path / "02.jpg").write_bytes(packed(2)[:-200])
    (tmp_path / "03.jpg").write_bytes(packed(3, "PNG"))
    (tmp_path / "04.jpg").write_bytes(packed(5))
    frame.loc[6, "caption"] = " "
    frame.loc[7, "caption"] = "N/A"
    frame = pd.concat([frame, frame[8:10]])
    frame.to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


EXPECTED = {"missing": "01.jpg", "unreadable": "02.jpg", "wrong suffix": "03.jpg"}
EXPECTED |= {"no caption": "06.jpg", "boilerplate": "07.jpg", "duplicate image": "05.jpg"}


def test_every_fault_is_found_once(faulty):
    problems, n_images = look_through(load_manifest(faulty))
    found = {problem.kind: problem.path for problem in problems}
    assert found == EXPECTED | {"duplicate row": "all"}
    assert (len(problems), n_images) == (7, 20)
    details = {problem.kind: problem.detail for problem in problems}
    assert details["wrong suffix"] == "is PNG, not JPEG"
    assert details["duplicate image"] == "equals 04.jpg"
    assert details["boilerplate"] == "caption 'N/A'"


def test_the_table_counts_rows_and_names_the_first():
    problems = [Problem("all", "duplicate row", "32 rows that repeat another")]
    problems += [Problem(f"{i}.jpg", "missing", "x") for i in range(4)]
    assert problem_table(problems) == [
        ("duplicate row", 32, "all (32 rows that repeat another)"),
        ("missing", 4, "0.jpg (x); 1.jpg (x); 2.jpg (x)"),
    ]


def test_the_command_prints_a_table_or_json_and_exits_with_1(faulty):
    done = CliRunner().invoke(app, ["data", "verify", str(faulty)])
    assert done.exit_code == 1
    assert "mine: 20 images looked at" in done.stdout
    assert all(kind in done.stdout for kind in EXPECTED)
    done = CliRunner().invoke(app, ["data", "verify", str(faulty), "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 1
    assert facts["counts"] == dict.fromkeys(EXPECTED, 1) | {"duplicate row": 2}
    assert {"path": "01.jpg", "kind": "missing", "detail": "split all"} in facts["problems"]


def test_sound_sets_exit_with_0(faulty):
    pd.read_csv(faulty)[8:15].to_csv(faulty, index=False)
    done = CliRunner().invoke(app, ["data", "verify", str(faulty)])
    assert (done.exit_code, done.stdout) == (
        0,
        "mine: 7 images and 0 files listed, all sound\n",
    )
    done = CliRunner().invoke(app, ["data", "verify", "toy"])
    assert done.exit_code == 0


def test_a_split_that_cannot_be_opened_is_unsound(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\n")
    content = {"name": "mine", "title": "Mine", "kind": "table", "caption_field": "caption"}
    content |= {"splits": {"train": {"table": "a.csv"}}}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    ((problem,), n_images) = look_through(load_manifest(tmp_path / "mine.json"))
    assert (problem.kind, n_images) == ("unsound", 0)


def test_describe_prints_what_was_understood_and_writes_it(faulty):
    arguments = ["data", "describe", str(faulty), "--write", str(faulty.with_suffix(".json"))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "images from column 'image', captions from column 'caption'" in done.stdout
    assert "left out: 1 missing; 1 no caption; 2 rows that repeat another" in done.stdout
    assert load_manifest(faulty.with_suffix(".json")).kind == "table"
    shares = ["--json", "--split-shares", '{"train": 0.5, "test": 0.5}']
    done = CliRunner().invoke(app, ["data", "describe", str(faulty), *shares])
    assert set(json.loads(done.stdout)["splits"]) == {"train", "test", "all"}


def test_heic_and_avif_are_read_or_the_package_is_named(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((64, 48, 3), dtype=np.uint8)
    pixels[:, :24] = (200, 30, 40)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=90)
    decoded = decode_image(buffer.getvalue()).permute(1, 2, 0).numpy()
    assert np.abs(decoded.astype(int) - pixels).mean() < 5
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(BrokenImageError, match="a HEIC file: to read it, install .*pillow-heif"):
        decode_image(buffer.getvalue())
