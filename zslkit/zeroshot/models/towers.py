"""Halves of public contrastive models as towers of a training."""

import math
from typing import Any

import torch
from torch import nn

from zslkit.zeroshot.models.pretrained import is_contrastive, is_pretrained_name, load_parts


def load_tower(config: Any, side: str) -> nn.Module | None:
    """Load the tower of a :class:`RunConfig` on one side, if it is half of a CLIP or SigLIP.

    Parameters
    ----------
    side : {"image", "text"}
        Which of the two.

    Returns
    -------
    Module or None
        None where the encoder is of another kind.

    Raises
    ------
    ValueError
        If ``image_size`` is not what the checkpoint sees, or weights are neither pretrained nor
        none.
    """
    field = f"{side}_encoder"
    name, weights = getattr(config, field), getattr(config, f"{side}_weights")
    if not is_pretrained_name(name) or (side == "text" and not is_contrastive(name)):
        return None
    if weights not in ("pretrained", "none"):
        raise ValueError(
            f"{side}_weights={weights!r}: {field}={name!r} takes pretrained or none; name a file "
            "as open_clip:MODEL/FILE"
        )
    parts = load_parts(name, weights, field)
    tower = getattr(parts, side)
    tower.own_scale = parts.log_logit_scale.item()
    tower.own_bias = None if parts.logit_bias is None else parts.logit_bias.item()
    if side == "image" and tower.transform.size != config.image_size:
        raise ValueError(
            f"image_size={config.image_size}: {field}={name!r} sees {tower.transform.size} pixels"
        )
    return tower


@torch.no_grad()
def keep_own_space(model: Any, config: Any) -> None:
    """Start a ``DualEncoder`` of two halves from the scale and the bias that they came with.

    Raises
    ------
    ValueError
        If that scale is above ``max_logit_scale``.
    """
    scale, most = model.image_tower.own_scale, math.log(config.max_logit_scale)
    if scale > most + 1e-4:  # CLIP's own 100 is stored a few roundings above
        raise ValueError(
            f"max_logit_scale={config.max_logit_scale}: {config.image_encoder!r} comes with a "
            f"scale of {math.exp(scale):.4g}, from which projection='none' starts; set a higher one"
        )
    for parameter in (model.log_logit_scale, model.log_distillation_scale):
        parameter.fill_(min(scale, most))
    own = model.image_tower.own_bias
    if hasattr(model, "logit_bias") and config.logit_bias is None and own is not None:
        model.logit_bias.fill_(own)
