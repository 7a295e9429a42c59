import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from zslkit.checkpoint import (
    LoopState,
    build_teacher,
    latest_checkpoint,
    load_run,
    restore_checkpoint,
    save_checkpoint,
)
from zslkit.config import RunConfig
from zslkit.data.files import write_json
from zslkit.data.sealed import seal
from zslkit.encoders.dual import build_dual_encoder
from zslkit.report.run_folder import RunFacts, read_history, run_folder
from zslkit.trainer import train
from zslkit.training.optim import build_optimizer

FROZEN = {"image_tower": "frozen", "text_tower": "frozen"}


def config_of(settings, folder, **changes):
    return RunConfig(**{**settings, "output_dir": str(folder), **changes})


@pytest.fixture(scope="module")
def trained(tiny_settings, tmp_path_factory):
    """A finished run of four steps; tests copy its folder before they spoil it."""
    return train(config_of(tiny_settings, tmp_path_factory.mktemp("trained")))


@pytest.fixture
def copied(trained, tmp_path):
    """The folder of that run, to be spoilt."""
    return shutil.copytree(trained.run_dir, tmp_path / "copied")


@pytest.fixture
def parts(tiny_settings):
    """Model, teacher and optimizer of a new run with frozen towers, which are small."""
    config = RunConfig(**{**tiny_settings, **FROZEN})
    model = build_dual_encoder(config)
    return SimpleNamespace(
        model=model, teacher=build_teacher(model, config), optimizer=build_optimizer(model, config)
    )


def save(run_dir, step, parts, keep=2, **state):
    state, parts = LoopState(step, **state), (parts.model, parts.teacher, parts.optimizer)
    return save_checkpoint(run_dir, state, *parts, keep=keep)


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    seal_again(path.parent)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    seal_again(path.parent)


def seal_again(folder):
    """Make what a test wrote look like what the run wrote."""
    if (folder / "manifest.json").is_file():
        (folder / "manifest.json").unlink()
        seal(folder)
    (folder / "checksums.json").unlink(missing_ok=True)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_is_tensors_and_json_and_nothing_is_unpickled(trained, monkeypatch):
    folder = latest_checkpoint(trained.run_dir)
    assert files_in(folder) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "teacher.safetensors",
    ]
    assert {path.suffix for path in trained.run_dir.rglob("*") if path.is_file()} == {
        ".json",
        ".jsonl",
        ".md",
        ".safetensors",
    }

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    assert load_run(trained.run_dir).history == trained.history


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_stay(parts, tmp_path, keep):
    for step in (9, 10, 100, 101):
        folder = save(tmp_path, step, parts, keep=keep)
        assert latest_checkpoint(tmp_path) == folder
    left = sorted(int(path.name.removeprefix("step-")) for path in folder.parent.iterdir())
    assert left == [9, 10, 100, 101][-keep:]


def test_the_highest_step_counts_where_an_older_one_was_not_yet_removed(parts, tmp_path):
    """SIGKILL between the rename and the removal, or in the middle of the latter."""
    new = save(tmp_path, 10, parts)
    (new.parent / "step-000000009").mkdir()
    assert latest_checkpoint(tmp_path) == new
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_a_checkpoint_cut_short_is_ignored_and_later_removed(parts, tmp_path, monkeypatch):
    first = save(tmp_path, 1, parts)

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("zslkit.checkpoint.write_json", die)  # its last file
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, parts)
    leftovers = [path for path in first.parent.iterdir() if path.name.startswith("writing-")]
    assert len(leftovers) == 1
    (first.parent / "writing-1-3").mkdir()  # of another process
    assert latest_checkpoint(tmp_path) == first
    second = save(tmp_path, 2, parts)
    assert sorted(first.parent.iterdir()) == [first, second]


def test_a_json_file_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "run.json", {"steps": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "run.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "run.json").read_text()) == {"steps": 1}


def test_everything_comes_back(parts, tmp_path, tiny_settings):
    features = torch.randn(4, parts.model.image_tower.feature_dim)
    parts.model.project_image(features)[0].sum().backward()
    parts.optimizer.param_groups[0]["lr"] = 0.125
    parts.optimizer.step()
    parts.teacher.update(parts.model)
    trust = torch.tensor([0.25, 1.0])
    folder = save(tmp_path, 5, parts, broken=["a"], seconds=2.5, trust=trust)
    drawn = torch.rand(3)

    config = RunConfig(**{**tiny_settings, **FROZEN})
    model = build_dual_encoder(config)
    teacher, optimizer = build_teacher(model, config), build_optimizer(model, config)
    state = restore_checkpoint(folder, model, teacher, optimizer)
    assert torch.equal(torch.rand(3), drawn)
    assert (state.step, state.broken, state.seconds) == (5, ["a"], 2.5)
    assert torch.equal(state.trust, trust)
    for new, old in ((model, parts.model), (teacher, parts.teacher)):
        for name, tensor in old.state_dict().items():
            assert torch.equal(new.state_dict()[name], tensor), name
    assert teacher.n_updates == 1
    new, old = optimizer.state_dict(), parts.optimizer.state_dict()
    assert json.dumps(new["param_groups"]) == json.dumps(old["param_groups"])
    assert new["state"].keys() == old["state"].keys()
    assert len(old["state"]) > 0
    for index, slots in old["state"].items():
        for slot, value in slots.items():
            assert torch.equal(new["state"][index][slot], torch.as_tensor(value)), slot


def test_frozen_towers_are_rebuilt_instead_of_stored(parts, tmp_path):
    folder = save(tmp_path, 1, parts)
    for name in ("model", "teacher"):
        stored = load_file(folder / f"{name}.safetensors")
        assert any("projection" in key for key in stored)
        assert not any("tower" in key for key in stored)


def test_a_run_with_frozen_towers_is_loaded_with_them(tiny_settings, tmp_path):
    run = train(config_of(tiny_settings, tmp_path, **FROZEN))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    loaded = load_run(tmp_path)
    assert torch.equal(loaded.model.encode_image(pixels), run.model.encode_image(pixels))
    assert torch.equal(
        loaded.teacher.model.encode_text(["a"]), run.teacher.model.encode_text(["a"])
    )


def test_a_tower_that_trained_needs_no_pretrained_weights_to_be_loaded(
    tiny_settings, tmp_path, monkeypatch
):
    """The checkpoint holds all its tensors; a download would be for nothing."""
    import timm

    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda name, **options: create(name))
    config = config_of(tiny_settings, tmp_path, image_weights="pretrained")
    run = train(config)

    def offline(name, pretrained=False):
        if pretrained:
            raise OSError("no network")
        return create(name)

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(OSError, match="could not download"):
        build_dual_encoder(config)
    loaded = load_run(tmp_path)
    assert loaded.config == config
    assert loaded.config.image_weights == "pretrained"
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


@pytest.fixture
def with_weights_file(tiny_settings, tmp_path):
    """A run whose frozen image tower comes from a file, and the file."""
    import timm

    path = tmp_path / "weights.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    config = config_of(tiny_settings, tmp_path / "run", image_weights=str(path), **FROZEN)
    train(config)
    return config, path


def test_frozen_weights_that_changed_since_the_training_are_refused(with_weights_file):
    config, path = with_weights_file
    load_run(config.output_dir)
    rewrite(path, lambda tensors: tensors["conv1.0.weight"].mul_(2))
    message = "frozen image encoder is not the one.*image_encoder and image_weights"
    with pytest.raises(ValueError, match=message):
        load_run(config.output_dir)
    with pytest.raises(ValueError, match=message):
        train(config.model_copy(update={"resume": True}))
    path.unlink()
    with pytest.raises(ValueError, match="no such file"):
        load_run(config.output_dir)


def test_a_frozen_text_encoder_that_changed_is_named(with_weights_file):
    config, _ = with_weights_file
    path = latest_checkpoint(config.output_dir) / "state.json"
    frozen = json.loads(path.read_text())["frozen"]
    assert frozen.keys() == {"image_tower", "text_tower"}
    edit_json(path, frozen={**frozen, "text_tower": "another"})
    with pytest.raises(ValueError, match="frozen text encoder .*text_encoder and text_weights"):
        load_run(config.output_dir)


def test_a_folder_without_a_finished_run_is_refused(copied, tmp_path):
    message = "no run with a checkpoint here; give the output_dir"
    with pytest.raises(FileNotFoundError, match=message):
        load_run(tmp_path / "nothing")
    (copied / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=message):
        load_run(copied)
    (tmp_path / "config.json").rename(copied / "config.json")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(FileNotFoundError, match=message):
        load_run(copied)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("model", "log_logit_scale"),
        ("model", "image_tower.net.bn1.running_mean"),
        ("teacher", "model.text_projection.1.weight"),
        ("teacher", "n_updates"),
    ],
)
def test_tensors_that_are_missing_are_named(copied, file, tensor):
    rewrite(latest_checkpoint(copied) / f"{file}.safetensors", lambda stored: stored.pop(tensor))
    message = rf"{file}.safetensors' does not fit .*: 1 tensor\(s\) differ, .* {tensor} missing"
    with pytest.raises(ValueError, match=message):
        load_run(copied)


def test_tensors_that_no_tower_has_are_named(copied):
    path = latest_checkpoint(copied) / "model.safetensors"
    rewrite(path, lambda stored: stored.update(surplus=torch.ones(1)))
    with pytest.raises(ValueError, match=r"1 tensor\(s\) differ, the first: surplus unexpected"):
        load_run(copied)


def test_a_configuration_of_another_shape_is_refused(copied):
    edit_json(copied / "config.json", embedding_dim=8)
    with pytest.raises(
        ValueError, match=r"image_projection.1.weight has shape \(16, \d+\), not \(8,"
    ):
        load_run(copied)


def test_rows_up_to_the_checkpoint_are_read_and_a_torn_one_is_not(tmp_path):
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    assert read_history(tmp_path, 9) == rows
    assert read_history(tmp_path, 2) == rows[:2]
    assert read_history(tmp_path / "nothing", 9) == []


def test_rows_past_the_checkpoint_are_dropped_when_the_run_goes_on(copied, trained):
    """They are trained again: kept, each would be in the file twice."""
    metrics = copied / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    config = trained.config.model_copy(update={"output_dir": str(copied), "resume": True})
    resumed = train(config)
    assert resumed.history == trained.history
    assert [json.loads(line) for line in metrics.read_text().splitlines()] == trained.history


def test_free_settings_may_change_on_resume_and_others_may_not(copied, trained):
    settings = {**trained.config.model_dump(), "output_dir": str(copied), "resume": True}
    before = latest_checkpoint(copied)
    with run_folder(RunConfig(**{**settings, "checkpoint_every": 7, "keep_checkpoints": 3})) as own:
        assert own == copied
    assert latest_checkpoint(copied) == before
    message = r"resume=True: .*learning_rate=0.5 \(was [0-9.]+\)"
    with (
        pytest.raises(ValueError, match=message),
        run_folder(RunConfig(**{**settings, "learning_rate": 0.5})),
    ):
        pass


@pytest.mark.parametrize("resume", [True, False])
def test_checkpoints_that_belong_to_no_configuration_are_moved_aside(copied, trained, resume):
    """They would pass for this run's own, whatever trained them."""
    (copied / "config.json").unlink()
    settings = {**trained.config.model_dump(), "output_dir": str(copied), "resume": resume}
    with run_folder(RunConfig(**settings)) as own:
        assert own == copied
    assert latest_checkpoint(copied) is None
    assert latest_checkpoint(copied / "earlier-1") is not None


def test_an_output_folder_that_is_a_file_is_refused(tiny_settings, tmp_path):
    (tmp_path / "run").write_text("in the way")
    message = "cannot be written .*give a folder that you may write to"
    config = config_of(tiny_settings, tmp_path / "run")
    with pytest.raises(OSError, match=message), run_folder(config):
        pass


def test_a_run_without_its_record_still_says_where_it_stands(copied):
    """A killed run left checkpoints and no run.json; notebooks ask for its steps all the same."""
    (copied / "run.json").unlink()
    facts = load_run(copied).facts
    assert facts.steps == 4
    assert facts.interrupted
    assert facts == RunFacts(steps=4)


def test_facts_of_speed_are_those_of_all_steps():
    facts = RunFacts(steps_per_epoch=4, total_steps=8)
    facts.measure(steps=4, seconds=2.0, batch_size=10)
    assert (facts.seconds_per_step, facts.images_per_second, facts.train_seconds) == (0.5, 20, 2)
    assert facts.interrupted
    facts.measure(steps=8, seconds=4.0, batch_size=10)
    assert not facts.interrupted


def flip_a_bit(path, place, bit=3):
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(parts, tmp_path):
    """One flipped bit in the weights used to be loaded without a word."""
    sound = save(tmp_path, 1, parts)
    damaged = save(tmp_path, 2, parts)
    flip_a_bit(damaged / "model.safetensors", -5)
    message = "step-000000002': model.safetensors is not what was written.*; using step-000000001"
    with pytest.warns(UserWarning, match=message):
        assert latest_checkpoint(tmp_path) == sound


def test_an_empty_checkpoint_is_passed_over_too(parts, tmp_path):
    sound = save(tmp_path, 1, parts)
    (sound.parent / "step-000000002").mkdir()
    with pytest.warns(UserWarning, match="step-000000002': it is empty; using step-000000001"):
        assert latest_checkpoint(tmp_path) == sound


def test_where_no_checkpoint_is_sound_nothing_starts_over(copied, trained):
    for number, folder in enumerate(sorted((copied / "checkpoints").iterdir())):
        flip_a_bit(folder / "optimizer.safetensors", 1000 + number)
    message = "optimizer.safetensors is not what was .*; no sound one is left: restore one from"
    with pytest.raises(ValueError, match=message):
        load_run(copied)
    settings = {**trained.config.model_dump(), "output_dir": str(copied), "resume": True}
    with pytest.raises(ValueError, match=message):
        train(RunConfig(**settings))


def test_a_run_goes_on_from_the_sound_checkpoint_and_writes_the_damaged_one_again(
    tiny_settings, tmp_path
):
    settings = {**tiny_settings, "checkpoint_every": 2, "image_dropout": 0.2}
    whole = train(config_of(settings, tmp_path / "whole"))
    config = config_of(settings, tmp_path / "spoilt")
    train(config)
    newest = latest_checkpoint(tmp_path / "spoilt")
    flip_a_bit(newest / "teacher.safetensors", 4321)
    with pytest.warns(UserWarning, match="teacher.safetensors is not what was written"):
        resumed = train(config.model_copy(update={"resume": True}))
    assert latest_checkpoint(tmp_path / "spoilt") == newest
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


@pytest.mark.parametrize("part", ["model", "teacher", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(parts, tmp_path, part, value):
    sound = save(tmp_path, 1, parts)
    parts.model.project_image(torch.randn(4, parts.model.image_tower.feature_dim)).sum().backward()
    parts.optimizer.step()
    if part == "optimizer":
        moments = next(iter(parts.optimizer.state.values()))
        moments["exp_avg"].view(-1)[0] = value
    else:
        net = parts.model if part == "model" else parts.teacher.model
        net.text_projection[1].weight.data[0, 0] = value
    with pytest.raises(
        FloatingPointError, match=rf"step 2 left 1 tensor.* the first: .*\({part}\)"
    ):
        save(tmp_path, 2, parts)
    assert list(sound.parent.iterdir()) == [sound]
