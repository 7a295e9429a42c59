"""CLIP and SigLIP checkpoints of open_clip and transformers, each with its own preprocessing.

Dimensions: B = images or texts, D = embedding, S = side of the square in pixels, L = tokens.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslkit.zeroshot.models.open_clips import load_open_clip
from zslkit.zeroshot.models.parts import (
    LibraryTransform,
    Parts,
    PretrainedImageTower,
    PretrainedTextTower,
    first_line,
    side_of,
)
from zslkit.zeroshot.models.saving import Saves
from zslkit.zeroshot.models.texts import find_source

LIBRARIES = ("open_clip", "hf")
_HF_KINDS = ("clip", "siglip")


class PretrainedModel(Saves, nn.Module):
    """A contrastive model that others trained: both towers end in the shared space.

    Attributes
    ----------
    logit_scale, logit_bias : Tensor of shape ()
        Of the checkpoint; the bias is None where it has none. Rankings do not depend on it.
    """

    never_trains = True

    def __init__(self, name: str, parts: Parts):
        super().__init__()
        self.name, self.source = name, parts.source
        self.image_tower, self.text_tower = parts.image, parts.text
        self.register_buffer("log_logit_scale", parts.log_logit_scale.detach().float().reshape(()))
        bias = parts.logit_bias
        self.register_buffer("logit_bias", None if bias is None else bias.detach().reshape(()))

    @property
    def logit_scale(self) -> Tensor:
        """Multiplies cosine similarities; 1 / temperature."""
        return self.log_logit_scale.exp()

    def project_image(self, features: Tensor) -> Tensor:
        """Make (B, D) vectors unit ones, float32."""
        return F.normalize(features.float(), dim=-1)

    project_text = project_image

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed (B, 3, S, S) pixels of :meth:`image_transform` as (B, D) unit vectors."""
        return self.project_image(self.image_tower(pixels))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed B texts as (B, D) unit vectors."""
        return self.project_text(self.text_tower(texts))

    def image_transform(self, train: bool) -> LibraryTransform:
        """Give the checkpoint's own map from an image to normalised (3, S, S) pixels."""
        return self.image_tower.image_transform(train)


def is_pretrained_name(name: str) -> bool:
    """Tell whether a name starts with one of the libraries of contrastive models."""
    return str(name).partition(":")[0] in LIBRARIES


def load_parts(name: str, weights: str = "pretrained", field: str = "model") -> Parts:
    """Load a checkpoint and take it apart.

    Parameters
    ----------
    name : str
        ``open_clip:MODEL/WEIGHTS``, where weights are a tag or a file, ``open_clip:hf-hub:...``,
        ``open_clip:local-dir:...``, or ``hf:NAME_OR_FOLDER`` of a CLIP or SigLIP model.
    weights : {"pretrained", "none"}
        none keeps the architecture and its preprocessing and starts from scratch.
    field : str
        Begins error messages.

    Raises
    ------
    ValueError
        For a name that is none of these, or a model of another kind.
    OSError
        If it cannot be loaded.
    """
    library, _, source = str(name).partition(":")
    if library not in LIBRARIES or not source:
        raise ValueError(f"{field}={name!r}: must be open_clip:MODEL/WEIGHTS or hf:NAME_OR_FOLDER")
    return (load_open_clip if library == "open_clip" else _transformers)(
        name, source, weights, field
    )


def _transformers(name: str, source: str, weights: str, field: str) -> Parts:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in _HF_KINDS:
            raise ValueError(
                f"{field}={name!r}: a {config.model_type} model; {' and '.join(_HF_KINDS)} "
                "checkpoints can be loaded, others as a class of your own with the four names"
            )
        options = {"dtype": torch.float32, "trust_remote_code": False}
        if weights == "pretrained":
            clip = AutoModel.from_pretrained(source, **options)
        else:
            clip = AutoModel.from_config(config, **options)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise OSError(f"{field}={name!r}: could not be loaded ({first_line(error)})") from error
    clip.eval()
    transform = LibraryTransform(
        _HfProcess(processor),
        side_of(config.vision_config.image_size),
        processor.image_mean,
        processor.image_std,
        ["transformers", json.loads(processor.to_json_string())],
    )
    sides = (clip.vision_model, getattr(clip, "visual_projection", None))
    files = _HfFiles(config, processor, tokenizer)
    image = PretrainedImageTower(name, _HfSide(*sides, "pixel_values"), transform, files)
    net = _HfSide(clip.text_model, getattr(clip, "text_projection", None), "input_ids")
    length = config.text_config.max_position_embeddings
    # SigLIP was trained on texts padded to the full length, and pools the last position
    words = _HfTokens(tokenizer, length, "max_length" if config.model_type == "siglip" else True)
    text = PretrainedTextTower(name, net, words, image.feature_dim)
    text.files, bias = files, getattr(clip, "logit_bias", None)
    return Parts(image, text, clip.logit_scale, bias, (clip, processor, tokenizer))


class _HfSide(nn.Module):
    """Half of a transformers CLIP: ``body`` is its network, ``head`` its projection, if any."""

    def __init__(self, body: nn.Module, head: nn.Module | None, takes: str):
        super().__init__()
        self.body, self.head, self.takes = body, head or nn.Identity(), takes

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(**{self.takes: inputs}).pooler_output)


class _HfProcess(NamedTuple):
    """A processor's images one by one; a class, so that workers can be sent it."""

    processor: Any

    def __call__(self, image: Any) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


class _HfFiles(NamedTuple):
    """All but the weights that a transformers folder needs."""

    config: Any
    processor: Any
    tokenizer: Any

    def save_into(self, folder: Path) -> None:
        for part in self:
            part.save_pretrained(folder)


class _HfTokens(NamedTuple):
    tokenizer: Any
    length: int
    padding: str | bool

    def __call__(self, texts: list[str]) -> Tensor:
        options = {"truncation": True, "max_length": self.length, "return_tensors": "pt"}
        return self.tokenizer(texts, padding=self.padding, **options)["input_ids"]


def is_contrastive(name: str) -> bool:
    """Tell whether a name is of open_clip, or of a CLIP or SigLIP model of transformers."""
    library, _, source = str(name).partition(":")
    if library != "hf":
        return library in LIBRARIES
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(find_source(source), trust_remote_code=False)
    except (OSError, ValueError):
        return False  # whoever takes it for something else says what is wrong
    return config.model_type in _HF_KINDS
