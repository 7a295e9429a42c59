"""The closed form's figures beside those of a training on the same features."""

import copy
from typing import Any

import torch
from torch import nn

from zslkit.config import RunConfig, parse_tower_mode
from zslkit.encoders.dual import DualEncoder
from zslkit.evaluation.evaluator import evaluate
from zslkit.evaluation.fitting import fit_projections
from zslkit.training.batches import TrainingData
from zslkit.training.device import choose_device


def closed_form_beside(model: DualEncoder, config: RunConfig) -> dict[str, Any]:
    """Measure what canonical correlations alone make of a run's features, without a step.

    Whoever shows a training on frozen towers should show this beside it: it costs seconds, and a
    training that is not above it has not paid.

    Parameters
    ----------
    model : DualEncoder
        Whose towers give the features; it is left as it is.
    config : RunConfig
        Of its run. Captions are weighed in the closed form where they are in the run.

    Returns
    -------
    dict
        What :func:`~zslkit.evaluation.evaluate` gives, under ``closed_form``; empty where a
        tower trains, or where the run itself is a closed form.

    References
    ----------
    As of :meth:`~zslkit.data.closed_form.Spectra.cca`.
    """
    towers = config.image_tower, config.text_tower
    if config.fit != "gradient" or any(parse_tower_mode(tower) != 0 for tower in towers):
        return {}
    fitted = config.model_copy(update={"fit": "cca", "projection": "linear"})
    device, other = choose_device(config.device), copy.copy(model)
    other._modules = dict(model._modules)  # towers are shared, they do not train
    for side, tower in (("image", model.image_tower), ("text", model.text_tower)):
        layer = nn.Linear(tower.feature_dim, config.embedding_dim).to(device)
        setattr(other, f"{side}_projection", nn.Sequential(layer))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        fit_projections(other, TrainingData(other, fitted, device), fitted)
    return {"closed_form": evaluate(other, fitted)}
