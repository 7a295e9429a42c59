"""Halves of public contrastive models as towers of a training."""

from typing import Any

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
    tower = getattr(load_parts(name, weights, field), side)
    if side == "image" and tower.transform.size != config.image_size:
        raise ValueError(
            f"image_size={config.image_size}: {field}={name!r} sees {tower.transform.size} pixels"
        )
    return tower
