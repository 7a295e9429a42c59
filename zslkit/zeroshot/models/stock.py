"""A model as its own library knows it, for readers that have nothing of ours."""

from typing import Any

import torch
from torch import nn

from zslkit.zeroshot.models.open_clips import OpenClipFiles
from zslkit.zeroshot.models.parts import PretrainedImageTower


def library_of(model: Any) -> str | None:
    """Say whose class holds all of a model: transformers, open_clip, or None: nobody's but ours.

    That of a public model that was loaded, or of a run that trained both halves of one with
    ``projection="none"``: other projections add a map that no class of theirs has.
    """
    config, tower = getattr(model, "config", None), model.image_tower
    adds = config is not None and config.projection != "none"
    if adds or not isinstance(tower, PretrainedImageTower):
        return None
    return "open_clip" if isinstance(tower.files, OpenClipFiles) else "transformers"


@torch.no_grad()
def stock_model(model: Any) -> nn.Module:
    """Build the library's own model with the weights, the scale and the bias of ours.

    ``model`` is one for which :func:`library_of` names the library.
    """
    image, text = model.image_tower, model.text_tower
    if library_of(model) == "open_clip":
        import open_clip

        stock = open_clip.CustomTextCLIP(
            **{name: part for name, part in image.files.config.items() if name != "custom_text"}
        )
        halves = ((stock.visual, image.net), (stock.text, text.net))
    else:
        from transformers import AutoModel

        options = {"dtype": torch.float32, "trust_remote_code": False}
        stock = AutoModel.from_config(image.files.config, **options)
        halves = [(stock.vision_model, image.net.body), (stock.text_model, text.net.body)]
        if hasattr(stock, "visual_projection"):  # SigLIP has none
            halves.append((stock.visual_projection, image.net.head))
            halves.append((stock.text_projection, text.net.head))
    for theirs, ours in halves:
        theirs.load_state_dict(ours.state_dict())
    stock.logit_scale.fill_(model.logit_scale.log())
    bias = getattr(model, "logit_bias", None)
    if bias is not None and getattr(stock, "logit_bias", None) is not None:
        stock.logit_bias.fill_(bias)
    return stock.eval()
