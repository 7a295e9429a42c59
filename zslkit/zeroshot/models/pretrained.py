"""CLIP and SigLIP checkpoints of open_clip and transformers, each with its own preprocessing.

Dimensions: B = images or texts, D = embedding, S = side of the square in pixels, L = tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslkit.data.images import to_pil
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

    def __init__(self, name: str, parts: "Parts"):
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

    def image_transform(self, train: bool) -> "LibraryTransform":
        """Give the checkpoint's own map from an image to normalised (3, S, S) pixels."""
        return self.image_tower.image_transform(train)


class Parts(NamedTuple):
    """What a checkpoint is taken apart into."""

    image: "PretrainedImageTower"
    text: "PretrainedTextTower"
    log_logit_scale: Tensor
    logit_bias: Tensor | None
    source: Any
    """The library's own model and what goes with it, for those who want to compare."""


class PretrainedImageTower(nn.Module):
    """The image half of a checkpoint; ``forward`` gives (B, D) embeddings, not normalised."""

    def __init__(self, name: str, net: nn.Module, transform: "LibraryTransform", files: Any = None):
        super().__init__()
        self.files = files
        self.name, self.net, self.transform = name, net, transform
        with torch.no_grad():
            size = transform.size
            self.feature_dim = net.eval()(torch.zeros(1, 3, size, size)).shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) normalised pixels, or uint8 ones of the right size, to (B, D)."""
        return self.net(self.normalise(pixels))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels; floats pass unchanged."""
        return self.transform.normalise(pixels)

    def image_transform(self, train: bool) -> "LibraryTransform":
        """Give the checkpoint's preprocessing, or a random crop to the same pixels."""
        return self.transform.of(train)


class PretrainedTextTower(nn.Module):
    """The text half of a checkpoint with its tokenizer."""

    def __init__(self, name: str, net: nn.Module, tokenizer: Callable, feature_dim: int):
        super().__init__()
        self.name, self.net, self.tokenizer, self.feature_dim = name, net, tokenizer, feature_dim

    def forward(self, texts: list[str]) -> Tensor:
        """Map B texts to (B, D) embeddings, not normalised."""
        return self.net(self.tokenizer(list(texts)).to(next(self.net.parameters()).device))


class LibraryTransform:
    """A library's own preprocessing of an image for evaluation, and a random crop for training.

    Parameters
    ----------
    process : callable
        PIL image → float (3, S, S), normalised.
    size : int
        S in pixels.
    mean, std : sequence of 3 floats
        Of pixels in [0, 1].
    facts : mapping
        JSON that says all of this; it keys caches.
    """

    def __init__(self, process: Callable, size: int, mean, std, facts: Any, train: bool = False):
        self.process, self.size, self.train, self.facts = process, size, train, facts
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def key(self) -> str:
        """Text that differs where pixels would."""
        return json.dumps(self.facts, sort_keys=True, default=str)

    def of(self, train: bool) -> "LibraryTransform":
        """Give the twin for training or for evaluation."""
        args = (self.process, self.size, self.mean, self.std, self.facts)
        return LibraryTransform(*args, train)

    def __call__(self, image: Any) -> Tensor:
        """Map a PIL image or uint8 (3, H, W) tensor to float (3, S, S)."""
        if not self.train:
            image = to_pil(image) if isinstance(image, Tensor) else image
            return self.process(image.convert("RGB"))
        from torchvision.transforms import v2

        options = {"interpolation": v2.InterpolationMode.BICUBIC, "antialias": True}
        crop = v2.RandomResizedCrop(self.size, scale=(0.5, 1.0), **options)
        steps = v2.Compose([v2.RGB(), v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])
        return self.normalise(steps(image))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels; floats are taken as normalised already."""
        if pixels.is_floating_point():
            return pixels
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in self._statistics)
        return (pixels / 255 - mean) / std

    def picture(self, pixels: Tensor) -> Tensor:
        """Undo the normalisation: uint8 (3, S, S) to look at."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in self._statistics)
        return ((pixels * std + mean) * 255).round().clamp(0, 255).byte()

    @property
    def _statistics(self) -> tuple:
        return self.mean, self.std


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
    return (_open_clip if library == "open_clip" else _transformers)(name, source, weights, field)


def _open_clip(name: str, source: str, weights: str, field: str) -> Parts:
    try:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
    except ImportError:
        raise ValueError(
            f"{field}={name!r}: needs open_clip; install it with: pip install 'zslkit[openclip]'"
        ) from None
    schema = source.startswith(("hf-hub:", "local-dir:"))
    model_name, tag = (source, None) if schema else source.partition("/")[::2]
    if not schema and open_clip.get_model_config(model_name) is None:
        from zslkit.data.strict import nearest

        hint = nearest(model_name, open_clip.list_models())
        raise ValueError(f"{field}={name!r}: open_clip has no model {model_name!r}; {hint}")
    pretrained = weights == "pretrained"
    if pretrained and not schema and not tag:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ValueError(
            f"{field}={name!r}: says no weights; write open_clip:{model_name}/WEIGHTS with a file "
            f"or one of {', '.join(tags) or '(no published weights)'}"
        )
    try:
        clip = open_clip.create_model(
            model_name,
            tag or None,
            load_weights=pretrained,
            force_custom_text=True,  # one layout: .visual and .text
            require_pretrained=pretrained and not schema,
            pretrained_text=False,
            weights_only=True,
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except (OSError, RuntimeError) as error:
        raise OSError(f"{field}={name!r}: could not be loaded ({_first_line(error)})") from error
    if not isinstance(clip, open_clip.CustomTextCLIP):
        raise ValueError(f"{field}={name!r}: {type(clip).__name__} is not a model of two towers")
    facts = dict(clip.visual.preprocess_cfg)
    process = image_transform_v2(PreprocessCfg(**facts), is_train=False)
    size = _side(clip.visual.image_size)
    transform = LibraryTransform(process, size, facts["mean"], facts["std"], ["open_clip", facts])
    image = PretrainedImageTower(name, clip.visual, transform)
    text = PretrainedTextTower(name, clip.text, tokenizer, image.feature_dim)
    return Parts(image, text, clip.logit_scale, clip.logit_bias, (clip, process, tokenizer))


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
        if weights == "pretrained":
            options = {"dtype": torch.float32, "trust_remote_code": False}
            clip = AutoModel.from_pretrained(source, **options)
        else:
            clip = AutoModel.from_config(config, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise OSError(f"{field}={name!r}: could not be loaded ({_first_line(error)})") from error
    clip.eval()
    transform = LibraryTransform(
        _HfProcess(processor),
        _side(config.vision_config.image_size),
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


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
