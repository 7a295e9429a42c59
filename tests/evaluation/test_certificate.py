import pytest
import torch
from typer.testing import CliRunner

from zslkit.__main__ import app
from zslkit.config import RunConfig
from zslkit.evaluation import certificate
from zslkit.evaluation.certificate import Certificate, Deviation, certify_gradients

GROUPS = {"scales", "image tower", "text tower", "image projection", "text projection"}
NO_BATCHNORM = {"image_encoder": "timm:test_vit", "image_size": 64, "image_dropout": 0.2}


def test_chunks_and_processes_give_the_gradients_of_the_whole_batch(tiny_settings):
    config = RunConfig(**tiny_settings | NO_BATCHNORM, soft_targets="transport")
    found = certify_gradients(config, pairs=8, processes=2)
    assert found.holds, str(found)
    ways = {"2 chunks", "4 chunks", "2 processes", "2 processes x 2 chunks"}
    assert {row.way for row in found.deviations} == ways
    assert {row.group for row in found.deviations} == GROUPS
    assert "equal to the whole batch of 8 pairs" in str(found)


def test_batchnorm_too_sees_the_whole_batch(tiny_settings):
    found = certify_gradients(RunConfig(**tiny_settings), pairs=8, processes=2)
    assert found.holds, str(found)
    assert {row.group for row in found.deviations} == {*GROUPS, "BatchNorm"}


def test_batchnorm_that_sees_chunks_is_found_out(tiny_settings, monkeypatch):
    monkeypatch.setattr("zslkit.training.step.normalises_over_batch", lambda model: False)
    found = certify_gradients(RunConfig(**tiny_settings), pairs=8)
    assert not found.holds
    largest = {row.group: row.deviation for row in found.deviations}
    assert largest["BatchNorm"] > 1e-3


def test_a_scale_counted_once_for_each_chunk_would_be_found_out(tiny_settings, monkeypatch):
    """The classical error: accumulation that multiplies the gradient of the logit scale."""
    right = certificate.backward

    def wrong(model, teacher, batch, config, **more):
        result = right(model, teacher, batch, config, **more)
        model.log_logit_scale.grad *= config.accumulation
        return result

    monkeypatch.setattr(certificate, "backward", wrong)
    found = certify_gradients(RunConfig(**tiny_settings | NO_BATCHNORM), pairs=8)
    bad = {(row.way, row.group) for row in found.deviations if row.deviation > certificate.LIMIT}
    assert bad == {("2 chunks", "scales"), ("4 chunks", "scales")}


@pytest.mark.parametrize(("pairs", "processes"), [(3, 1), (6, 1), (12, 2), (8, 0)])
def test_a_batch_that_cannot_be_split_evenly_is_refused(pairs, processes):
    with pytest.raises(ValueError, match=f"pairs={pairs} must be a multiple of 4 x processes="):
        certify_gradients(RunConfig(), pairs, processes)


def test_a_process_that_fails_is_named_and_nobody_waits_for_it(tiny_settings):
    config = RunConfig(**tiny_settings, train_split="absent")
    with pytest.raises(ValueError, match=r"a process failed: (.|\n)*no such split"):
        certificate._in_processes(config, 2)


@pytest.mark.parametrize(("deviation", "code"), [(1e-7, 0), (1e-3, 1)])
def test_the_command_prints_the_table_and_fails_where_they_differ(deviation, code, monkeypatch):
    asked = []

    def certify(config, processes):
        asked.append((config.seed, processes))
        return Certificate(8, (Deviation("2 chunks", "scales", deviation),))

    monkeypatch.setattr(certificate, "certify_gradients", certify)
    done = CliRunner().invoke(app, ["certify", "--seed", "3"])
    assert done.exit_code == code
    assert asked == [(3, 2)]
    assert f"largest relative deviation {deviation:.1e} (2 chunks, scales)" in done.output


def test_deviations_are_relative_and_missing_gradients_infinite():
    reference = {"a.x": torch.tensor([3.0, 4.0]), "a.y": torch.tensor([1.0])}
    found = {"a.x": torch.tensor([3.0, 4.5]), "a.y": torch.tensor([1.0])}
    assert certificate._compare(found, reference) == {"a": pytest.approx(0.1)}
    assert certificate._compare({"a.x": found["a.x"]}, reference) == {"a": torch.inf}
