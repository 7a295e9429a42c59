"""An exported model behind transformers' own doors; importing this module opens them.

After ``import zslkit.zeroshot.models.hugging_face`` a folder of ``zslkit export --format
transformers`` is read by ``AutoModel`` and ``pipeline("zero-shot-image-classification")``.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto
from transformers.models.clip.modeling_clip import CLIPOutput

from zslkit.zeroshot.models.restoring import from_pretrained


class ZslkitConfig(PreTrainedConfig):
    """Configuration of an exported model; what matters stands in ``zslkit.json`` beside it."""

    model_type = "zslkit"


class ZslkitImageProcessor(CLIPImageProcessor):
    """CLIP's preprocessing with torchvision's centre: transformers' lies half a pixel off."""

    def center_crop(self, image: Tensor, size: Any, **others: Any) -> Tensor:
        """Cut out the middle."""
        from torchvision.transforms.v2 import functional

        return functional.center_crop(image, [size.height, size.width])


class ZslkitModel(PreTrainedModel):
    """A model of ours that takes tokens and pixels as transformers' CLIP does."""

    config_class = ZslkitConfig

    def __init__(self, config: ZslkitConfig, model: nn.Module | None = None):
        super().__init__(config)
        self.post_init()  # before the model comes: it would draw fresh weights for it
        self.model = model

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> "ZslkitModel":
        """Load an exported folder; of transformers' options the configuration alone is used."""
        config = options.get("config") or ZslkitConfig.from_pretrained(folder)
        return cls(config, from_pretrained(Path(folder))).eval()

    def get_image_features(self, pixel_values: Tensor, **others: Any) -> Tensor:
        """Embed (B, 3, S, S) normalised pixels as (B, D) unit vectors."""
        return self.model.encode_image(pixel_values)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Embed (B, L) tokens as (B, D) unit vectors."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return embed_tokens(self.model, input_ids, mask)

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None,
        **others: Any,
    ) -> CLIPOutput:  # fmt: skip
        """Score every image against every text."""
        image = self.get_image_features(pixel_values)
        text = self.get_text_features(input_ids, attention_mask)
        logits = self.model.logit_scale * image @ text.T
        return CLIPOutput(logits_per_image=logits, logits_per_text=logits.T,
                          image_embeds=image, text_embeds=text)  # fmt: skip


def embed_tokens(model: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Embed tokens, rather than texts, with a model whose text tower has a vocabulary."""
    tower = model.text_tower
    if hasattr(tower, "card"):
        hidden = tower.net(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return model.project_text(tower.card.pool(hidden, mask, tower.prompt_tokens))
    return model.project_text(tower.net(input_ids))


AutoConfig.register("zslkit", ZslkitConfig, exist_ok=True)
AutoImageProcessor.register(
    ZslkitConfig, image_processor_classes={"torchvision": ZslkitImageProcessor}, exist_ok=True
)
AutoModel.register(ZslkitConfig, ZslkitModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(ZslkitConfig, ZslkitModel, exist_ok=True)
# the pipeline asks this table by name, not the registry
modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES["zslkit"] = "ZslkitModel"
