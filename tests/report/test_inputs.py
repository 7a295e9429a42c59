"""What a run read is known by content: a resume that would mix is refused with the names."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.data.sealed import note, read_sealed, write_sealed
from zslkit.report.inputs import changed_inputs, fingerprint_inputs, same_code
from zslkit.trainer import train


@pytest.fixture(scope="module")
def begun(tiny_settings, tmp_path_factory):
    """A run on sixteen small files, and its configuration."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(16):
        Image.new("RGB", (40, 40), (10 * number, 90, 0)).save(folder / f"{number}.bmp")
    rows = [f"{number}.bmp,caption {number}" for number in range(16)]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    words = {"title": "t", "licence": "x", "how_to_obtain": "x", "caption_field": "caption"}
    content = {"name": "mine", "kind": "table", **words}
    content["splits"] = {"train": {"table": "pairs.csv"}}
    (folder / "mine.json").write_text(json.dumps(content))
    changes = {"manifest": str(folder / "mine.json"), "output_dir": str(folder / "run")}
    config = RunConfig(**{**tiny_settings, **changes, "max_steps": 1})
    train(config)
    return config.model_copy(update={"resume": True})


@pytest.fixture
def copied(begun, tmp_path):
    """The same in a folder of its own, to be changed."""
    folder = shutil.copytree(begun.manifest.removesuffix("/mine.json"), tmp_path / "files")
    changes = {"manifest": str(folder / "mine.json"), "output_dir": str(folder / "run")}
    with_folder = begun.model_copy(update=changes)
    # paths are settings too: the copy was begun where it lies
    (folder / "run" / "checksums.json").unlink()
    settings = with_folder.model_copy(update={"resume": False}).model_dump(mode="json")
    (folder / "run" / "config.json").write_text(json.dumps(settings))
    return folder, with_folder


def edit_caption(folder):
    path = folder / "pairs.csv"
    path.write_text(path.read_text().replace("caption 3", "caption E"))


def edit_image(folder):
    Image.new("RGB", (40, 40), (0, 0, 200)).save(folder / "5.bmp")


def edit_manifest(folder):
    path = folder / "mine.json"
    path.write_text(
        path.read_text().replace('"train": {', '"extra": {"table": "pairs.csv"}, "train": {')
    )


@pytest.mark.parametrize(
    ("edit", "name"),
    [(edit_caption, "captions"), (edit_image, "images"), (edit_manifest, "manifest")],
)
def test_data_that_changed_since_are_refused_by_name(copied, edit, name):
    folder, config = copied
    train(config)  # unchanged, it may go on
    edit(folder)
    with pytest.raises(
        ValueError, match=rf"since the run .* began, .*{name}.*allow_changed={name}$"
    ):
        train(config)
    train(config.model_copy(update={"allow_changed": name}))
    train(config)  # what was allowed is what the run has read by now


@pytest.mark.parametrize("name", ["code", "packages", "processes"])
def test_the_ground_that_changed_is_refused_unless_allowed(copied, name, monkeypatch, capsys):
    _, config = copied
    if name == "code":
        monkeypatch.setattr("zslkit.report.inputs.SOURCES", "another")
    elif name == "packages":
        monkeypatch.setattr("zslkit.report.inputs.installed", lambda: {"torch": "1.0"})
    else:
        path = Path(config.output_dir) / "inputs.json"
        write_sealed(path, read_sealed(path) | {"processes": 2})
        note(path)
    with pytest.raises(ValueError, match=f"{name}.*give allow_changed={name}$"):
        train(config)
    assert same_code(config.output_dir, config) == (name != "code")
    run = train(config.model_copy(update={"allow_changed": f"images, {name}"}))
    assert run.facts.steps == 1
    assert "as allow_changed has it" in capsys.readouterr().out


def test_an_older_version_left_nothing_to_compare(copied):
    folder, config = copied
    (folder / "run" / "inputs.json").unlink()
    assert changed_inputs(folder / "run", {}) == {}
    assert same_code(folder / "run", config)
    train(config)
    assert (folder / "run" / "inputs.json").is_file()


def test_names_that_are_no_inputs_are_refused():
    with pytest.raises(ValueError, match="'weather' is none of code|none of manifest"):
        RunConfig(allow_changed="code,weather")
    assert RunConfig(allow_changed="code, images").allowed_changes == {"code", "images"}
    assert RunConfig().allowed_changes == set()


def test_the_inputs_stand_in_the_folder_of_the_run(begun):
    from zslkit.data.named import training_pairs

    found = read_sealed(load_run(begun.output_dir).run_dir / "inputs.json")
    assert found == fingerprint_inputs(begun, training_pairs(begun))
    assert found["packages"].keys() >= {"python", "torch", "numpy"}


def test_going_on_and_starting_over_are_said(begun, tmp_path, capsys):
    train(begun.model_copy(update={"output_dir": str(tmp_path / "new")}))
    assert "no checkpoint yet: starting at step 0" in capsys.readouterr().out
    train(begun)
    assert "going on from step 1" in capsys.readouterr().out
