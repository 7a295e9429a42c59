import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import zslkit.trainer
import zslkit.training.step
from zslkit.checkpoint import build_teacher, load_run
from zslkit.config import RunConfig
from zslkit.data.cache import caption_features
from zslkit.data.sampling import CaptionDraw, draw_caption
from zslkit.encoders.dual import build_dual_encoder
from zslkit.trainer import train
from zslkit.training.batches import TrainingData
from zslkit.training.device import autocast, choose_device
from zslkit.training.optim import build_optimizer, clip_gradients, learning_rate_at
from zslkit.training.step import backward

STEPS = 8  # two epochs of four batches
FROZEN = {"image_tower": "frozen", "text_tower": "frozen"}


@pytest.fixture(scope="module")
def tiny(tiny_settings):
    """Settings of a run that takes a second: two epochs of four batches."""
    # dropout, so that resumed runs must also restore the random state
    return {**tiny_settings, "epochs": 2, "checkpoint_every": 100, "image_dropout": 0.2}


def config_of(tiny, folder, **changes):
    return RunConfig(**{**tiny, "output_dir": str(folder), **changes})


def weights(run):
    tensors = dict(run.model.state_dict())
    if run.teacher is not None:
        tensors |= {f"teacher.{name}": t for name, t in run.teacher.state_dict().items()}
    return tensors


def assert_equal_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_at(step):
    """Press Ctrl-C in the middle of a run, as a callback."""

    def callback(run, row):
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    return callback


def test_a_run_learns_and_can_be_loaded(tiny, tmp_path):
    config = config_of(tiny, tmp_path, epochs=12, learning_rate=3e-3)
    run = train(config)
    assert [row["step"] for row in run.history] == list(range(1, 49))
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 0.2
    assert run.facts.steps == 48
    assert not run.facts.interrupted
    loaded = load_run(tmp_path)
    assert_equal_weights(run, loaded)
    assert loaded.history == run.history
    assert loaded.config == config
    assert loaded.facts == run.facts


def test_equal_configurations_give_equal_weights_and_seeds_differ(tiny, tmp_path):
    first, again, other = (
        train(config_of(tiny, tmp_path / name, seed=seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert_equal_weights(first, again)
    assert not torch.equal(
        first.model.text_projection[1].weight, other.model.text_projection[1].weight
    )


RESUMED = {
    "ema": {},
    "frozen": FROZEN,
    "previous": {"teacher": "previous", "generation_epochs": 1},
    "trust": {"pair_trust": True, "pair_trust_epoch": 1},
    "sgd": {"soft_targets": "progressive", "optimizer": "sgd"},
}


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        *(
            pytest.param(RESUMED[name], n, id=f"{name}-{n}")
            for name in RESUMED
            for n in (1, 3, 4, 6)
        ),
        pytest.param({"workers": 2}, 3, id="workers-3"),  # processes are slow to start: once
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tiny, tmp_path, settings, stop):
    """2 + 2 steps give the weights of 4, also from the middle of an epoch."""
    whole = train(config_of(tiny, tmp_path / "whole", **settings))
    config = config_of(tiny, tmp_path / "parts", **settings)
    part = train(config, [stop_at(stop)])
    assert part.facts.interrupted
    assert part.facts.steps == stop
    torch.manual_seed(123)  # another process would start from another state
    resumed = train(config.model_copy(update={"resume": True}))
    assert_equal_weights(whole, resumed)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


@pytest.mark.parametrize("wait_for_step", [1, 5])
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, wait_for_step):
    """SIGKILL to a real process; what the last checkpoint holds is enough."""
    same = {"epochs": 40, "threads": 1}  # sums in another order would differ in the last bits
    config = config_of(tiny, tmp_path / "killed", checkpoint_every=2, resume=True, **same)
    options = [
        f"--{name}={value}" for name, value in config.model_dump().items() if value is not None
    ]
    options = [o for o in options if not o.startswith("--prompt_templates=(")]
    process = subprocess.Popen([sys.executable, "-m", "zslkit", "train", *options])
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and metrics.read_text().count("\n") >= wait_for_step:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    resumed = train(config)
    whole = train(config_of(tiny, tmp_path / "whole", **same))
    assert_equal_weights(whole, resumed)
    assert [row["step"] for row in resumed.history] == list(range(1, 161))


def test_resuming_a_finished_run_changes_nothing(tiny, tmp_path):
    first = train(config_of(tiny, tmp_path))
    again = train(config_of(tiny, tmp_path, resume=True))
    assert_equal_weights(first, again)
    assert again.facts.steps == STEPS


def test_resume_refuses_a_changed_configuration(tiny, tmp_path):
    train(config_of(tiny, tmp_path))
    with pytest.raises(ValueError, match=r"epochs=3 \(was 2\), seed=1 \(was 0\); restore these"):
        train(config_of(tiny, tmp_path, resume=True, epochs=3, seed=1))


def test_without_resume_an_earlier_run_is_moved_aside(tiny, tmp_path):
    first = train(config_of(tiny, tmp_path))
    train(config_of(tiny, tmp_path, seed=1))
    assert_equal_weights(first, load_run(tmp_path / "earlier-1"))
    assert load_run(tmp_path).config.seed == 1


def test_second_interrupt_stops_at_once(tiny, tmp_path):
    def impatient(run, row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(tiny, tmp_path), [impatient])
    assert signal.getsignal(signal.SIGINT) is handler


def test_runs_outside_the_main_thread(tiny, tmp_path):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(config_of(tiny, tmp_path))))
    thread.start()
    thread.join()
    assert runs[0].facts.steps == STEPS


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny, tmp_path, monkeypatch):
    healthy = zslkit.training.step.training_loss
    calls = []

    def ill(*args):
        loss, terms = healthy(*args)
        calls.append(loss)
        return (loss * math.nan if len(calls) == 4 else loss), terms

    monkeypatch.setattr(zslkit.training.step, "training_loss", ill)
    seen = []
    with pytest.raises(FloatingPointError, match="loss=nan, .* at batch 3 of epoch 0 .*keys"):
        train(
            config_of(tiny, tmp_path / "ill", checkpoint_every=3),
            [lambda run, row: seen.append((run, run.model.text_projection[1].weight.clone()))],
        )
    run, before = seen[-1]
    assert torch.equal(run.model.text_projection[1].weight, before)
    monkeypatch.undo()
    three_steps = train(config_of(tiny, tmp_path / "well"), [stop_at(3)])
    assert_equal_weights(load_run(tmp_path / "ill"), three_steps)


def test_callbacks_see_every_step_and_add_to_the_row(tiny, tmp_path):
    seen = []

    def watch(run, row):
        seen.append((row["step"], len(run.history)))
        return {"double": 2 * row["loss"]}

    run = train(config_of(tiny, tmp_path), [watch])
    assert seen == [(step + 1, step) for step in range(STEPS)]
    assert all(row["double"] == 2 * row["loss"] for row in run.history)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.history


def test_max_steps_ends_run_and_schedule(tiny, tmp_path):
    run = train(config_of(tiny, tmp_path, max_steps=5, warmup_steps=2))
    assert len(run.history) == 5
    assert run.history[-1]["learning_rate"] < run.history[2]["learning_rate"] / 2


def test_pairs_come_in_another_order_every_epoch(tiny):
    """Trap: an epoch number that never reaches the sampler."""
    config = RunConfig(**tiny)
    data = TrainingData(build_dual_encoder(config), config, torch.device("cpu"))
    batches = list(data.stream(0, STEPS))
    assert [epoch for epoch, _ in batches] == [0] * 4 + [1] * 4
    first, second = (
        [key for epoch, batch in batches for key in batch.keys if epoch == e] for e in (0, 1)
    )
    assert sorted(first) == sorted(second)
    assert first != second
    tail = [batch.keys for _, batch in data.stream(3, STEPS)]
    assert tail == [batch.keys for _, batch in batches[3:]]


def test_cached_features_are_those_of_the_towers(tiny, tmp_path):
    config = config_of(tiny, tmp_path, **FROZEN, cache_dir=str(tmp_path / "cache"))
    model = build_dual_encoder(config).eval()
    data = TrainingData(model, config, torch.device("cpu"))
    _, batch = next(data.stream(0, 1))
    index = list(data.pairs.keys).index(batch.keys[2])
    pixels = model.image_transform(train=False)(data.pairs[index].pixels)
    torch.testing.assert_close(model.image_tower(pixels[None])[0], batch.images[2])
    captions = model.text_tower(list(data.pairs[index].captions))
    assert any(torch.allclose(caption, batch.texts[2], atol=1e-5) for caption in captions)


def test_cached_captions_are_those_that_the_epoch_draws(tiny, tmp_path):
    """Flickr8k's figures came this way: the first caption alone would be a fifth of the data."""
    config = config_of(tiny, tmp_path, **FROZEN)
    model = build_dual_encoder(config).eval()
    data = TrainingData(model, config, torch.device("cpu"))
    data.pairs.captions = [(f"red star {i}", f"a blue box, number {i}") for i in range(32)]
    data.captions_of, data.first_caption = np.full(32, 2), np.arange(0, 64, 2)
    data.draw = CaptionDraw(data.captions_of)
    data.text_features, data.feature_of = caption_features(model, data.pairs, config, "captions")
    seen = set()
    for epoch, batch in data.stream(0, STEPS):
        for row, found in zip(batch.rows, batch.texts, strict=True):
            text = draw_caption(data.pairs.captions[row], config.seed, epoch, row)
            torch.testing.assert_close(found, model.text_tower([text])[0], rtol=1e-4, atol=1e-5)
            seen.add(text)
    assert len(seen) == 64  # two epochs, each caption once


def test_trust_stays_with_its_captions_where_images_are_unreadable(tiny, tmp_path, monkeypatch):
    config = config_of(tiny, tmp_path, **FROZEN, pair_trust=True)
    model = build_dual_encoder(config).eval()
    data = TrainingData(model, config, torch.device("cpu"))
    number = np.repeat(np.arange(32), data.captions_of)
    data.usable = np.delete(np.arange(32), [0, 7])
    monkeypatch.setattr(
        "zslkit.training.batches.believe_captions",
        lambda losses, mismatched, owner, n: (owner + 1) / 100,
    )
    place = {row: i for i, row in enumerate(data.usable.tolist())}
    expected = [(place[row] + 1) / 100 if row in place else 0 for row in number.tolist()]
    assert data.estimate_trust(model).tolist() == pytest.approx(expected)


def test_accumulation_gives_the_gradients_of_the_whole_batch(tiny, monkeypatch):
    """Traps: scale gradients times the number of chunks; BatchNorm statistics moved twice."""
    config = RunConfig(**{**tiny, "image_dropout": 0.0})
    chunked = config.model_copy(update={"accumulation": 4})
    gradients = {}
    for name, settings in (("whole", config), ("chunks", chunked)):
        model = build_dual_encoder(config)
        for part in model.modules():  # batch statistics do depend on the chunk
            if isinstance(part, torch.nn.BatchNorm2d):
                part.eval()
        data = TrainingData(model, config, torch.device("cpu"))
        teacher = build_teacher(model, config)
        _, batch = next(data.stream(0, 1))
        backward(model, teacher, batch, settings, 0.0)
        gradients[name] = {n: p.grad for n, p in model.named_parameters()}
    for name, gradient in gradients["whole"].items():
        torch.testing.assert_close(
            gradients["chunks"][name], gradient, rtol=1e-3, atol=1e-6, msg=name
        )
    assert gradients["whole"]["log_logit_scale"].abs() > 0


def test_accumulation_repeats_dropout(tiny):
    config = RunConfig(**{**tiny, "accumulation": 2, "text_dropout": 0.2})
    model = build_dual_encoder(config).train()
    for part in model.modules():  # a tower that normalises over the batch is embedded whole
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    data = TrainingData(model, config, torch.device("cpu"))
    _, batch = next(data.stream(0, 1))
    inputs = []
    model.text_projection[1].register_forward_hook(lambda *args: inputs.append(args[1][0]))
    backward(model, None, batch, config, 0.0)
    first_pass, second_pass = inputs[:2], inputs[2:]
    assert all(torch.equal(a, b) for a, b in zip(first_pass, second_pass, strict=True))
    dropped = [chunk == 0 for chunk in first_pass]
    assert dropped[0].any()
    assert not torch.equal(*dropped), "every chunk has masks of its own"


def test_accumulation_moves_batchnorm_once_by_the_whole_batch(tiny):
    found = []
    for accumulation in (1, 2):
        config = RunConfig(**{**tiny, "accumulation": accumulation, "image_dropout": 0.0})
        model = build_dual_encoder(config).train()
        _, batch = next(TrainingData(model, config, torch.device("cpu")).stream(0, 1))
        backward(model, None, batch, config, 0.0)
        norm = next(part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d))
        assert norm.num_batches_tracked == 1
        found.append([norm.running_mean, norm.running_var, norm.weight.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_norms_biases_and_scales_do_not_decay(tiny, optimizer):
    model = build_dual_encoder(RunConfig(**tiny))
    groups = build_optimizer(model, RunConfig(weight_decay=0.3, optimizer=optimizer)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"])
    assert any(p is model.log_logit_scale for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_schedule_warms_up_and_decays_per_step():
    config = RunConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate_at(step, 20, config) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_clipping_bounds_the_norm_and_reports_what_it_was():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], None) == 5
    assert parameter.grad.tolist() == [3, 4]
    assert clip_gradients([parameter], 1.0) == 5
    assert parameter.grad.norm().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_on_the_cpu(precision, dtype):
    layer = torch.nn.Linear(2, 2)
    with autocast(RunConfig(precision=precision), torch.device("cpu")):
        assert layer(torch.ones(1, 2)).dtype == dtype


def test_bfloat16_trains(tiny, tmp_path):
    run = train(config_of(tiny, tmp_path, precision="bfloat16", max_steps=2))
    assert math.isfinite(run.history[-1]["loss"])


def test_frozen_teacher_comes_from_an_earlier_run(tiny, tmp_path):
    earlier = train(config_of(tiny, tmp_path / "earlier"))
    config = config_of(
        tiny, tmp_path / "student", teacher="frozen", teacher_run=str(tmp_path / "earlier")
    )
    run = train(config)
    for name, value in earlier.model.state_dict().items():
        assert torch.equal(run.teacher.model.state_dict()[name], value), name
    with pytest.raises(ValueError, match="do not fit this run's towers"):
        train(config.model_copy(update={"embedding_dim": 8, "output_dir": str(tmp_path / "x")}))


def test_caption_noise_is_counted(tiny, tmp_path):
    assert train(config_of(tiny, tmp_path, caption_noise=0.5)).facts.swapped_captions == 16


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": "cuda:9"}, ValueError, "device='cuda:9': torch sees . CUDA devices"),
        ({"device": "gpu"}, ValueError, "device='gpu': must be auto, cpu, cuda"),
        ({"manifest": "toi"}, ValueError, "toy"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(tiny, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(config_of(tiny, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="output_dir=.*cannot be written"):
        train(config_of(tiny, tmp_path / "file" / "run"))


def test_unreadable_images_are_named_and_limited(tiny, tmp_path):
    from PIL import Image

    for number in range(20):
        Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / f"{number}.jpg")
    (tmp_path / "3.jpg").write_bytes(b"not an image")
    rows = "".join(f"{number}.jpg,caption {number}\n" for number in range(20))
    (tmp_path / "pairs.csv").write_text("image,caption\n" + rows)
    manifest = {
        **{"name": "mine", "kind": "table", "title": "t", "licence": "x", "how_to_obtain": "x"},
        **{"caption_field": "caption", "splits": {"train": {"table": "pairs.csv"}}},
    }
    (tmp_path / "mine.json").write_text(json.dumps(manifest))
    changes = {"manifest": str(tmp_path / "mine.json"), "max_unreadable": 0.1, "batch_size": 10}
    for name, towers in (("pixels", {}), ("cached", FROZEN)):
        run = train(config_of(tiny, tmp_path / name, **changes, **towers))
        assert len(run.facts.unreadable_images) == 1
        assert "3" in run.facts.unreadable_images[0]
    with pytest.raises(ValueError, match="1 of 20 images are unreadable or lack a caption"):
        train(config_of(tiny, tmp_path / "strict", **{**changes, "max_unreadable": 0.01}))


def test_tensorboard_events_hold_the_loss(tiny, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the tensorboard extra is not installed",
    )
    run = train(config_of(tiny, tmp_path, tensorboard=True))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([row["loss"] for row in run.history], rel=1e-6)


def test_auto_device_is_the_cpu_where_there_is_no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.fixture(scope="module")
def three_steps(tiny, tmp_path_factory):
    """Train three steps with some settings changed; return the student's weights."""

    def trained(**changes):
        folder = tmp_path_factory.mktemp("run")
        run = train(config_of(tiny, folder, **{"max_steps": 3, "warmup_steps": 1, **changes}))
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    return trained


SGD = {"optimizer": "sgd"}
SMOOTH = {"soft_targets": "label_smoothing"}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"learning_rate": 1e-3}),
        ({}, {"weight_decay": 0.5}),
        ({}, {"warmup_steps": 2}),
        ({}, {"clip_norm": 0.1}),
        ({}, SGD),
        (SGD, {"momentum": 0.1}),
        ({"image_tower": "frozen", "image_dropout": 0.2}, {"accumulation": 2}),
        ({}, {"batch_size": 16}),
        ({}, {"max_steps": 2}),
        ({}, {"caption_noise": 0.5}),
        ({}, {"max_pairs": 24}),
        ({}, {"train_split": "test"}),
        ({}, {"image_dropout": 0.6}),
        ({}, {"text_dropout": 0.6}),
        ({}, {"logit_scale": 30.0}),
        ({}, {"learn_logit_scale": False}),
        ({}, {"contrastive_weight": 1.0}),
        ({}, {"ema_decay": 0.1}),
        ({"ema_decay": 0.9}, {"ema_warmup": False}),
        ({}, {"teacher_temperature": 1.0}),
        (SMOOTH, {"label_smoothing": 0.5}),
    ],
    ids=lambda settings: ",".join(settings) or "-",
)
def test_every_setting_changes_what_is_learnt(three_steps, base, change):
    assert not torch.equal(three_steps(**base), three_steps(**base, **change))


def test_what_the_loop_does_when(tiny, tmp_path, monkeypatch):
    """Teacher after step, trust by the teacher at the start of epochs, progress from 0, scales."""
    judged, progress, scales = [], [], []
    healthy = zslkit.trainer.backward

    def noted(model, teacher, batch, config, share, trust):
        progress.append(share)
        return healthy(model, teacher, batch, config, share, trust)

    def judge(data, model):
        judged.append((model is run_of[0].teacher.model, len(progress)))
        return torch.ones(sum(data.captions_of))

    def stray(run, row):
        run_of[:] = [run]
        scales.append(run.model.log_logit_scale.item())
        with torch.no_grad():
            run.model.log_logit_scale.fill_(9.0)

    run_of = []
    monkeypatch.setattr(zslkit.trainer, "backward", noted)
    monkeypatch.setattr(TrainingData, "estimate_trust", judge)
    settings = {"pair_trust": True, "pair_trust_epoch": 1, "epochs": 3, "max_logit_scale": 30}
    settings |= {"ema_decay": 0.0, "ema_warmup": False, "learning_rate": 1e-2, "logit_scale": 30}
    run = train(config_of(tiny, tmp_path, **FROZEN, **settings), [stray])
    with torch.no_grad():
        run.model.log_logit_scale.copy_(run.teacher.model.log_logit_scale)  # strayed after it
    student, teacher = run.model.state_dict(), run.teacher.model.state_dict()
    # without decay the average is the student that the last step left
    assert [name for name in student if not torch.equal(student[name], teacher[name])] == []
    assert judged == [(True, 4), (True, 8)]
    assert progress == [step / 12 for step in range(12)]
    assert max(scales) <= math.log(30) + 1e-6


def test_the_student_of_an_ended_generation_teaches_the_next(tiny, tmp_path):
    ended = {}

    def keep(run, row):
        if row["step"] == 4:
            ended.update({k: v.clone() for k, v in run.model.state_dict().items()})

    run = train(config_of(tiny, tmp_path, teacher="previous", generation_epochs=1), [keep])
    assert "distillation_loss" not in run.history[3]
    assert "distillation_loss" in run.history[4]
    teacher = run.teacher.model.state_dict()
    assert [name for name in ended if not torch.equal(ended[name], teacher[name])] == []


def test_the_thread_count_is_set(tiny, tmp_path):
    before, seen = torch.get_num_threads(), []
    try:
        train(
            config_of(tiny, tmp_path, threads=2, max_steps=1),
            [lambda run, row: seen.append(torch.get_num_threads())],
        )
    finally:
        torch.set_num_threads(before)
    assert seen == [2]


def test_two_threads_learn_the_same_twice(tiny, tmp_path):
    before = torch.get_num_threads()
    real = {"manifest": "toy", "batch_size": 128, "max_steps": 3, "threads": 2}
    try:
        first, second = (train(config_of(tiny, tmp_path / name, **real)) for name in "ab")
    finally:
        torch.set_num_threads(before)
    assert_equal_weights(first, second)


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["default", "warn", "error"])
def test_the_callers_choice_of_algorithms_is_given_back(tiny, tmp_path, mode):
    before, seen = torch.get_deterministic_debug_mode(), []
    try:
        torch.set_deterministic_debug_mode(mode)
        train(
            config_of(tiny, tmp_path, max_steps=1),
            [lambda run, row: seen.append(torch.get_deterministic_debug_mode())],
        )
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(before)
    assert seen == [2]


def test_a_sigmoid_run_learns_its_bias_and_goes_on_from_its_checkpoint(tiny, tmp_path):
    settings = {"contrastive_loss": "sigmoid", "soft_targets": "none"}
    whole = train(config_of(tiny, tmp_path / "whole", **settings))
    assert whole.model.logit_bias.item() != -10
    train(config_of(tiny, tmp_path / "cut", **settings), [stop_at(3)])
    resumed = train(config_of(tiny, tmp_path / "cut", **settings, resume=True))
    assert_equal_weights(whole, resumed)


def test_a_run_is_told_what_is_wrong_with_it(tiny, tmp_path, capsys):
    settings = {"teacher_temperature": 1e-4, "warmup_steps": 0}
    run = train(config_of(tiny, tmp_path, **settings))
    (advice,) = [line for line in run.facts.advice if "one-hot" in line]
    assert "raise teacher_temperature (now 0.0001)" in advice
    assert capsys.readouterr().out.count("nearly one-hot") == 1  # told once, not every epoch
    assert json.loads((tmp_path / "run.json").read_text())["record"]["advice"] == run.facts.advice


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tiny, tmp_path, monkeypatch):
    """The loss is finite: only the gradient tells. The step used to be taken, and saved over."""
    healthy, calls, seen = zslkit.trainer.backward, [], []

    def ill(model, *args):
        result = healthy(model, *args)
        calls.append(result)
        if len(calls) == 4:
            model.text_projection[1].weight.grad[0, 0] = math.inf
        return result

    monkeypatch.setattr(zslkit.trainer, "backward", ill)
    message = "loss=[0-9.]+, gradient_norm=inf at batch 3 of epoch 0 .*keys .*no weight was changed"
    with pytest.raises(FloatingPointError, match=message):
        train(
            config_of(tiny, tmp_path / "ill", checkpoint_every=3),
            [lambda run, row: seen.append((run, run.model.text_projection[1].weight.clone()))],
        )
    run, before = seen[-1]
    assert torch.equal(run.model.text_projection[1].weight, before)
    assert len(load_run(tmp_path / "ill").history) == 3
    monkeypatch.undo()
    resumed = train(config_of(tiny, tmp_path / "ill", checkpoint_every=3, resume=True))
    assert_equal_weights(resumed, train(config_of(tiny, tmp_path / "well")))


@pytest.mark.parametrize("step", [6, STEPS], ids=["checkpoint", "last"])
def test_weights_that_are_not_finite_are_not_saved_over_the_last_checkpoint(tiny, tmp_path, step):
    def spoil(run, row):
        if row["step"] == step:
            run.model.text_projection[1].weight.data[0, 0] = math.nan

    message = rf"step {step} left 1 tensor.*text_projection.1.weight .*keeps its last checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train(config_of(tiny, tmp_path, checkpoint_every=3), [spoil])
    run = load_run(tmp_path)
    assert len(run.history) == (3 if step == 6 else 6)
    assert all(tensor.isfinite().all() for tensor in run.model.state_dict().values())


def test_a_second_run_in_one_folder_is_refused_and_harms_nothing(tiny, tmp_path):
    """It used to move the first run's files aside while that wrote them."""
    refused = []

    def start_another(run, row):
        if row["step"] == 3:
            for resume in (False, True):
                with pytest.raises(BlockingIOError, match=f"in use by .*process {os.getpid()} on"):
                    train(config_of(tiny, tmp_path / "one", resume=resume))
                refused.append(resume)

    first = train(config_of(tiny, tmp_path / "one"), [start_another])
    assert refused == [False, True]
    assert_equal_weights(first, load_run(tmp_path / "one"))
    assert not (tmp_path / "one" / "earlier-1").exists()
    assert not (tmp_path / "one" / "lock.json").exists()
    train(config_of(tiny, tmp_path / "one"))  # free again


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_save_return_early_and_the_run_goes_on(tiny, tmp_path, name):
    """SIGTERM, which every cluster sends, used to save nothing; twice is once."""
    number, times = getattr(signal, name), 1 if name == "SIGINT" else 3
    before = signal.getsignal(number)

    def send(run, row):
        if row["step"] == 3:
            for _ in range(times):
                os.kill(os.getpid(), number)

    part = train(config_of(tiny, tmp_path / "parts"), [send])
    assert signal.getsignal(number) is before
    assert (part.stopped_by, part.facts.steps, part.facts.interrupted) == (number, 3, True)
    resumed = train(config_of(tiny, tmp_path / "parts", resume=True))
    assert resumed.stopped_by is None
    assert_equal_weights(resumed, train(config_of(tiny, tmp_path / "whole")))


def test_a_hangup_that_nohup_ignores_stops_nothing(tiny, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = train(
            config_of(tiny, tmp_path), [lambda run, row: os.kill(os.getpid(), signal.SIGHUP)]
        )
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.facts.steps == STEPS


def test_a_batch_above_the_pairs_is_lowered_and_that_is_said(tiny_settings, tmp_path, capsys):
    """A preset's batch is made for thousands of pairs; a stranger may bring thirty."""
    wanted = {**tiny_settings, "batch_size": 50, "max_pairs": 21, "accumulation": 2}
    run = train(RunConfig(**wanted, output_dir=str(tmp_path / "run")))
    assert "batch_size=50 is more than the 21 pairs: lowered to 20" in capsys.readouterr().err
    assert run.config.batch_size == 20
    assert load_run(tmp_path / "run").config.batch_size == 20
    again = train(RunConfig(**wanted, output_dir=str(tmp_path / "run"), resume=True))
    assert again.history == run.history
