"""Two towers, projected to one unit sphere."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zslkit.config import ModelSettings, RunConfig, kind_of, parse_tower_mode
from zslkit.encoders.freezing import freeze
from zslkit.encoders.image import ImageTower, ImageTransform
from zslkit.encoders.small_text import SmallTextEncoder
from zslkit.encoders.text import TextTower
from zslkit.zeroshot.models.saving import Saves
from zslkit.zeroshot.models.towers import keep_own_space, load_tower

TEXT_TOWERS: dict[str, Callable[[str, str, int], nn.Module]] = {
    "small": lambda name, weights, max_tokens: SmallTextEncoder(max_tokens=max_tokens)
}
"""Text towers that are no transformers, by the word before the colon of ``text_encoder``.

Functions of ``text_encoder``, ``text_weights`` and ``max_tokens``; a tower maps B texts to (B, F)
features and says F as ``feature_dim``. Add yours.
"""


class DualEncoder(Saves, nn.Module):
    """Image and text tower, a projection each unless they share a space, and learned scales.

    Attributes
    ----------
    logit_scale, distillation_scale : Tensor of shape ()
        Multiply similarities in the contrastive and the distillation term; 1 / temperature.
    logit_bias : Parameter of shape ()
        Added to the contrastive logits; only where the contrastive loss learns one.
    """

    def __init__(self, image_tower: nn.Module, text_tower: nn.Module, config: RunConfig):
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_size, self.config = config.image_size, config
        self.max_logit_scale = config.max_logit_scale
        self.image_projection = _projection(image_tower.feature_dim, config, config.image_dropout)
        self.text_projection = _projection(text_tower.feature_dim, config, config.text_dropout)
        log_scale = torch.tensor(math.log(config.logit_scale))
        self.log_logit_scale = nn.Parameter(log_scale, requires_grad=config.learn_logit_scale)
        self.log_distillation_scale = nn.Parameter(
            log_scale.clone(), requires_grad=config.learn_logit_scale
        )
        if kind_of("contrastive_loss", config.contrastive_loss).learned_bias:
            # Zhai et al. start at -10, the logarithm of their 32k batch's base rate
            base_rate = -math.log(config.batch_size - 1)
            bias = base_rate if config.logit_bias is None else config.logit_bias
            self.logit_bias = nn.Parameter(torch.tensor(bias))
        if config.projection == "none":
            keep_own_space(self, config)
        self.frozen_blocks = [
            *freeze(image_tower, parse_tower_mode(config.image_tower, "image_tower")),
            *freeze(text_tower, parse_tower_mode(config.text_tower, "text_tower")),
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

    def scales(self) -> dict[str, Tensor]:
        """Give both scales by name."""
        return {name: getattr(self, name) for name in ("logit_scale", "distillation_scale")}

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

    def image_transform(self, train: bool) -> Callable:
        """Give the map from an image to the (3, S, S) pixels that this encoder takes."""
        own = getattr(self.image_tower, "image_transform", None)
        return own(train) if own else ImageTransform(self.image_size, train)

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
        image_tower = load_tower(config, "image") or ImageTower(
            config.image_encoder, config.image_weights
        )
        text = config.text_encoder, config.text_weights, config.max_tokens
        if build := TEXT_TOWERS.get(config.text_encoder.partition(":")[0]):
            text_tower = build(*text)
        else:
            text_tower = load_tower(config, "text") or TextTower(*text)
        return DualEncoder(image_tower, text_tower, config)


def _projection(feature_dim: int, config: ModelSettings, dropout: float) -> nn.Module:
    steps = [_Dropout(dropout)]
    if config.projection != "none":
        steps += [nn.Linear(feature_dim, config.embedding_dim)]
    if config.projection == "mlp":
        steps += [nn.GELU(), nn.Linear(config.embedding_dim, config.embedding_dim)]
    return nn.Sequential(*steps)


class _Dropout(nn.Dropout):
    """torch's, faster on the CPU: 16 random bits decide on a value, not a number."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F) to the same, some values 0 and the others larger, in train mode."""
        kept = round((1 - self.p) * 2**16)
        if not self.training or x.device.type != "cpu" or kept in (0, 2**16):
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        mask = torch.lt(bits, kept - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
        return x * mask.mul_(2**16 / kept)
