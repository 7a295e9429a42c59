"""Student or moving average: both measured, the dev split chooses."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import zslkit as zk
from zslkit.__main__ import app
from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.evaluation.weights import evaluate_weights, model_of, prefer_weights
from zslkit.trainer import train


@pytest.fixture(scope="module")
def run(tiny_settings, tmp_path_factory):
    """A run whose manifest has a dev split."""
    folder = tmp_path_factory.mktemp("weights")
    manifest = json.loads(Path(tiny_settings["manifest"]).read_text())
    manifest["splits"]["dev"] = {"scenes": "dev", "n": 20}
    (folder / "tiny.json").write_text(json.dumps(manifest))
    own = {"manifest": str(folder / "tiny.json"), "output_dir": str(folder / "run")}
    return train(RunConfig(**{**tiny_settings, **own, "max_steps": 3}))


def test_both_are_measured_and_differ(run):
    metrics, preferred = evaluate_weights(run)
    assert metrics.keys() == {"retrieval", "zeroshot", "teacher", "dev"}
    assert metrics["teacher"] == zk.evaluate(run.teacher.model, run.config)
    assert metrics["retrieval"] == zk.evaluate(run.model, run.config)["retrieval"]
    assert metrics["dev"].keys() == {"student", "teacher"}
    assert preferred.weights in preferred.dev
    stored = load_run(run.run_dir)
    student, teacher = model_of(stored, "student"), model_of(stored, "teacher")
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(),
                                                     strict=True))  # fmt: skip


@pytest.mark.parametrize("better", ["student", "teacher"])
def test_the_dev_split_chooses_and_the_test_split_is_not_asked(run, monkeypatch, better):
    def measured(model, config):
        assert config.test_split == run.config.dev_split
        found = "teacher" if model is run.teacher.model else "student"
        return {"rsum": {"value": 300.0 if found == better else 290.0}}

    monkeypatch.setattr("zslkit.evaluation.weights.evaluate_retrieval", measured)
    preferred = prefer_weights(run)
    assert preferred.weights == better
    assert "rSum 300.0 on the dev split" in preferred.words
    assert "290.0" in preferred.words


def test_what_cannot_be_compared_is_said(run, tiny_settings, tmp_path, monkeypatch):
    plain = run.config.model_copy(update={"dev_split": "nowhere"})
    assert "no split 'nowhere'" in prefer_weights(run, plain).words
    monkeypatch.setattr("zslkit.evaluation.weights.evaluate_retrieval", lambda *given: {})
    assert "too small" in prefer_weights(run).words

    def empty(model, config):
        raise ValueError("split 'dev' holds no image")

    monkeypatch.setattr("zslkit.evaluation.weights.evaluate_retrieval", empty)
    assert prefer_weights(run) == (
        "student",
        "weights of the student: split 'dev' holds no image",
        {},
    )
    alone = zk.Run(run.model, run.config, [], run.run_dir)
    assert prefer_weights(alone).weights == "student"
    assert "no moving average" in prefer_weights(alone).words
    with pytest.raises(ValueError, match="this run has no moving average"):
        model_of(alone, "teacher")
    with pytest.raises(ValueError, match="must be student or teacher"):
        model_of(run, "both")


def test_what_dev_prefers_is_exported_and_said(run, tmp_path, monkeypatch):
    photos = [f"--photos={tmp_path / 'one.png'}"]
    run_pair = zk.open_pairs(run.config.manifest, "train")[0]
    run_pair.image.save(tmp_path / "one.png")

    def measured(model, config):
        return {"rsum": {"value": next(value)}}

    for values, name in (((1.0, 2.0), "teacher"), ((2.0, 1.0), "student")):
        value = iter(values)
        monkeypatch.setattr("zslkit.evaluation.weights.evaluate_retrieval", measured)
        line = ["export", str(run.run_dir), str(tmp_path / name), *photos, "--classes=cat,dog"]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, f"{done.output} {done.exception}"
        assert "on the dev split" in done.output
        exported = zk.load_model(tmp_path / name)
        expected = model_of(load_run(run.run_dir), name).state_dict()
        weight = "image_projection.1.weight"
        weight = weight if weight in expected else next(k for k in expected if "projection" in k)
        assert torch.equal(exported.state_dict()[weight], expected[weight])
