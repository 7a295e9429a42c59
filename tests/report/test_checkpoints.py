"""Which checkpoints stay, and damage to the other files of a run."""

import random
import shutil

import pytest

from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.report.checkpoints import best_step, lasting_steps
from zslkit.trainer import train


def config_of(settings, folder, **changes):
    return RunConfig(**{**settings, "epochs": 2, "output_dir": str(folder), **changes})


def steps_in(folder):
    return [
        int(path.name.removeprefix("step-")) for path in sorted((folder / "checkpoints").iterdir())
    ]


@pytest.fixture(scope="module")
def trained(tiny_settings, tmp_path_factory):
    """A run of eight steps."""
    return train(config_of(tiny_settings, tmp_path_factory.mktemp("run")))


@pytest.fixture
def copied(trained, tmp_path):
    """Its folder, to be spoilt, and a configuration that goes on there."""
    folder = shutil.copytree(trained.run_dir, tmp_path / "copied")
    return folder, trained.config.model_copy(update={"resume": True, "output_dir": str(folder)})


def measured(run, row):
    """What a callback would measure on held-out pairs: best at step 3."""
    return (
        {"held-out recall@10": {2: 0.2, 3: 0.9, 5: 0.4}[row["step"]]}
        if row["step"] in (2, 3, 5)
        else {}
    )


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [3, 7, 8]),
        ({"best_by": None}, [7, 8]),
        ({"best_by": "held-out other"}, [7, 8]),
        ({"keep_every": 2}, [2, 3, 4, 6, 7, 8]),
        ({"keep_checkpoints": 1}, [3, 8]),
        ({"checkpoint_every": 3}, [3, 6, 8]),
    ],
    ids=str,
)
def test_the_last_the_best_and_every_nth_stay(tiny_settings, tmp_path, changes, kept):
    train(config_of(tiny_settings, tmp_path, **{"checkpoint_every": 1, **changes}), [measured])
    assert steps_in(tmp_path) == kept


def test_the_best_is_written_between_two_others_and_can_be_loaded(tiny_settings, tmp_path):
    weights = {}

    def note(run, row):
        weights[row["step"]] = run.model.text_projection[1].weight.detach().clone()
        return measured(run, row)

    train(config_of(tiny_settings, tmp_path), [note])
    assert steps_in(tmp_path) == [3, 8]
    best = load_run(tmp_path, best_step(load_run(tmp_path).history, "held-out recall@10"))
    assert best.model.text_projection[1].weight.equal(weights[3])
    assert [row["step"] for row in best.history] == [1, 2, 3]
    with pytest.raises(FileNotFoundError, match="step=4: .* keeps no such checkpoint: 3, 8"):
        load_run(tmp_path, 4)
    (tmp_path / "checkpoints" / "step-000000003" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="step-000000003': state.json has"):
        load_run(tmp_path, 3)


def test_the_first_of_equal_figures_is_the_best():
    rows = [{"step": n, "x": x} for n, x in ((1, 0.1), (2, 0.5), (3, 0.5))]
    assert best_step(rows, "x") == 2
    assert best_step(rows, "y") is None
    assert best_step([], None) is None
    config = RunConfig(keep_every=2, checkpoint_every=10, best_by="x")
    assert lasting_steps(rows, config, 65) == {2, 20, 40, 60}


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["config.json", "inputs.json", "checksums.json"])
def test_a_flipped_bit_in_what_a_run_needs_is_an_error_that_names_the_file(copied, name):
    folder, config = copied
    sound, rng = (folder / name).read_bytes(), random.Random(0)
    for _ in range(10):
        (folder / name).write_bytes(sound)
        flip(folder / name, rng)
        for attempt in (lambda: load_run(folder), lambda: train(config)):
            with pytest.raises(ValueError, match=name):
                attempt()
    (folder / "checksums.json").unlink()  # as an older version, or somebody who edits, leaves it
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json' is damaged .*restore it"):
        load_run(folder)


@pytest.mark.parametrize("name", ["run.json", "card.md"])
def test_a_flipped_bit_in_what_a_run_says_is_named_and_the_run_loads(copied, trained, name):
    folder, _ = copied
    flip(folder / name, random.Random(1))
    with pytest.warns(UserWarning, match=f"{name}': its SHA-256 differs"):
        facts = load_run(folder).facts
    assert facts.steps == 8
    assert (facts == trained.facts) == (name == "card.md")


def test_rows_lost_or_changed_since_the_checkpoint_are_noticed(copied, trained):
    folder, config = copied
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[5:]))
    with pytest.warns(UserWarning, match="metrics.jsonl': 2 of 8 rows are lost"):
        assert len(load_run(folder).history) == 6
    path.write_text("".join(lines).replace('"epoch": 1', '"epoch": 0'))
    with pytest.warns(UserWarning, match="metrics.jsonl': rows changed"):
        load_run(folder)
    rng = random.Random(2)
    for _ in range(20):
        path.write_text("".join(lines))
        flip(path, rng)
        with pytest.warns(UserWarning, match="metrics.jsonl'"):
            load_run(folder)
    path.unlink()
    with pytest.warns(UserWarning, match="8 of 8 rows are lost"):
        run = train(config)
    assert run.model.text_projection[1].weight.equal(trained.model.text_projection[1].weight)
