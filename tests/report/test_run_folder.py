"""Runs are portable: used from elsewhere, or moved, they find what they were trained on."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import zslkit as zk
from zslkit.__main__ import app
from zslkit.report.run_folder import config_of_run


@pytest.fixture
def project(tmp_path, tiny_settings, monkeypatch):
    """A folder with pairs and a run on them, trained there by relative names."""
    folder = tmp_path / "project"
    (folder / "data" / "photos").mkdir(parents=True)
    rows = ["image,caption"]
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / "photos" / f"{number}.png")
        rows.append(f"photos/{number}.png,noise number {number}")
    (folder / "data" / "mine.csv").write_text("\n".join(rows))
    monkeypatch.chdir(folder)
    settings = tiny_settings | {"manifest": "data/mine.csv", "zeroshot_manifest": None}
    settings |= {"split_shares": {"train": 0.5, "test": 0.5}, "max_steps": 1, "cache_dir": "cache"}
    zk.train(zk.RunConfig(**settings, output_dir="runs/first"))
    return folder


def n_test(run_dir):
    return len(zk.data.held_out_pairs(config_of_run(run_dir)))


def test_a_run_is_used_from_another_folder_moved_and_moved_with_its_data(
    project, tmp_path, monkeypatch
):
    """Once manifest='data/mine.csv' was looked for in whatever folder one stood in."""
    expected = n_test("runs/first")
    assert config_of_run("runs/first").manifest == "data/mine.csv"  # at home nothing changes
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere" / "data" / "mine.csv").write_text("image,caption\n")  # another's
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = zk.load_run(project / "runs" / "first").config
    assert found.manifest == str(project / "data" / "mine.csv")
    line = CliRunner().invoke(app, ["evaluate", str(project / "runs" / "first")])
    assert line.exit_code == 0, line.output
    recall = json.loads(line.stdout)["retrieval"]["text_to_image"]["recall@1"]
    assert recall["n"] == expected
    shutil.move(project / "runs" / "first", tmp_path / "taken")  # the run alone
    assert n_test(tmp_path / "taken") == expected
    shutil.move(tmp_path / "taken", project / "runs" / "first")
    shutil.move(project, tmp_path / "archive")  # with its data
    assert n_test(tmp_path / "archive" / "runs" / "first") == expected


def test_a_notebook_reads_a_run_from_another_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = ['run_dir: str = "x"  # folder', f'run_dir = "{project}/runs/first"']
    config, own = zk.notebook.start([*cells, "config, own = zk.notebook.start(In)"])
    assert config.manifest == str(project / "data" / "mine.csv")
    assert own["run_dir"] == f"{project}/runs/first"


def test_a_run_of_an_older_version_is_read_as_it_stands(project):
    for name in ("places.json", "checksums.json"):
        (project / "runs" / "first" / name).unlink()
    assert config_of_run("runs/first").manifest == "data/mine.csv"


def test_images_named_from_the_folder_around_the_table_are_found(project, tmp_path, monkeypatch):
    table = project / "data" / "mine.csv"
    table.write_text(table.read_text().replace("photos/", "data/photos/"))
    monkeypatch.chdir(tmp_path)
    assert len(zk.open_pairs(table)) == 24
