"""The first batch by hand gives the loss that the trainer logged."""

import pytest
import torch

import zslkit as zk
from zslkit.config import RunConfig
from zslkit.evaluation.opening import first_batch
from zslkit.objective import training_loss
from zslkit.trainer import train

FROZEN = {"image_tower": "frozen", "text_tower": "frozen", "soft_targets": "none"}
HELD_OUT = {"pair_trust": True, "trust_judge": "held_out", "caption_noise": 0.5}
CHANGES = {
    "teacher": {},
    "dropout": {"image_dropout": 0.3, "text_dropout": 0.3},
    "chunks with dropout": {"accumulation": 4, "image_dropout": 0.3},
    "sigmoid": {"contrastive_loss": "sigmoid", "soft_targets": "none"},
    "a teacher that is not ready": {"teacher": "previous"},
    "transport": {"soft_targets": "transport", "image_similarity_weight": 0.5},
    "frozen tower": {"image_tower": "frozen"},
    "bfloat16": {"precision": "bfloat16"},
    "started from a closed form": {**FROZEN, "init": "cca"},
    "captions weighed from the start": {**FROZEN, **HELD_OUT},
    "both": {**FROZEN, **HELD_OUT, "init": "cca"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_loss_of_the_first_step_is_the_logged_one(tiny_settings, tmp_path, changes):
    config = RunConfig(**tiny_settings | changes, max_steps=1, output_dir=str(tmp_path))
    run = train(config)
    state = torch.get_rng_state()
    student, teacher, model, weights = first_batch(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert student.image.shape == (config.batch_size, config.embedding_dim)
    scales, bias = (model.logit_scale, model.distillation_scale), getattr(model, "logit_bias", None)
    loss, _ = training_loss(student, teacher, *scales, config, 0.0, weights, bias)
    assert loss.item() == run.history[0]["loss"]


def test_the_notebooks_cells_add_up_to_it(tiny_settings, tmp_path):
    config = RunConfig(**tiny_settings, max_steps=1, output_dir=str(tmp_path))
    logged = train(config).history[0]
    student, teacher, model, _ = first_batch(config)
    similarity = student.image @ student.text.T
    contrastive = zk.contrastive_loss(model.logit_scale * similarity)
    assert contrastive.item() == pytest.approx(logged["contrastive_loss"])
    targets = zk.soft_targets(*similarity.shape, teacher, config, progress=0.0)
    both = model.distillation_scale * similarity
    parts = zip((both, both.T), targets, strict=True)
    distillation = sum(zk.distillation_loss(*part) for part in parts) / 2
    assert distillation.item() == pytest.approx(logged["distillation_loss"])
