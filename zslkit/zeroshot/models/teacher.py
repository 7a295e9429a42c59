"""A public model as teacher: every image and caption is embedded once, then looked up.

Dimensions: N = images, M = distinct captions, B = pairs of a batch, D = its embedding, which
need not be the student's: only similarities are learnt from.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zslkit.config import RunConfig
from zslkit.data.cache import tower_features
from zslkit.data.pairs import open_pairs
from zslkit.data.sampling import caption_choice
from zslkit.objective import Embedded
from zslkit.zeroshot.models.pretrained import PretrainedModel, is_pretrained_name, load_parts
from zslkit.zeroshot.models.restoring import from_pretrained
from zslkit.zeroshot.models.saving import SAVED


def is_other_model(name: str | None) -> bool:
    """Tell whether ``teacher_run`` names a public or an exported model, not a run."""
    return name is not None and (is_pretrained_name(name) or (Path(name) / SAVED).is_file())


class FixedTeacher(nn.Module):
    """A model that never moves, with its own preprocessing and its own dimension.

    It sees the whole image in its own way, not the student's random crop; so its embeddings can
    be cached in ``config.cache_dir``, and a training costs it nothing but the first time.

    Parameters
    ----------
    config : RunConfig
        Of the student; ``teacher_run`` names the model.

    Raises
    ------
    ValueError
        If ``pair_trust`` is asked for: it judges with the student's own towers.
    """

    kind = "fixed"

    def __init__(self, config: RunConfig):
        super().__init__()
        if config.pair_trust:
            raise ValueError(
                f"pair_trust=True: teacher_run={config.teacher_run!r} cannot judge pairs by the "
                "student's features; take teacher='ema', or pair_trust=False"
            )
        name = config.teacher_run
        public = is_pretrained_name(name)
        self.model = PretrainedModel(name, load_parts(name)) if public else from_pretrained(name)
        self.model.requires_grad_(False).eval()
        self.config = config
        self.register_buffer("ready", torch.tensor(True))
        self._known: dict[str, Any] | None = None

    def train(self, mode: bool = True) -> "FixedTeacher":
        """Stay in eval mode."""
        return super().train(False)

    def update(self, student: nn.Module) -> None:
        """Stay as it is."""

    end_generation = update

    @torch.no_grad()
    def embed(self, batch: Any) -> Embedded:
        """Look up the (B, D) embeddings of a batch's images and of the captions it drew."""
        known = self._known or self._look_at_everything()
        rows, device = batch.rows, batch.images.device
        choice = caption_choice(known["count"][rows], self.config.seed, batch.epoch, rows)
        captions = known["caption"][known["first"][rows] + choice]
        picked = (known["images"][rows], known["texts"][captions])
        return Embedded(*(side.to(device) for side in picked))

    def _look_at_everything(self) -> dict[str, Any]:
        config = self.config
        pairs = open_pairs(
            config.manifest,
            config.train_split,
            data_root=config.data_root,
            caption_noise=config.caption_noise,
            seed=config.seed,
            max_pairs=config.max_pairs,
        )
        texts = np.array([text for group in pairs.captions for text in group], object)
        distinct, caption = np.unique(texts, return_inverse=True)
        count = np.array([len(group) for group in pairs.captions])
        # its towers are not the student's: whether those are frozen says nothing of these
        still = config.model_copy(update={"image_tower": "frozen", "text_tower": "frozen"})
        features: dict[str, Tensor] = {}
        for side, items in (("image", pairs), ("text", distinct.tolist())):
            found = tower_features(self.model, items, still, f"teacher's {side}s").features
            features[side] = getattr(self.model, f"project_{side}")(found.to(self.ready.device))
        self._known = {
            "images": features["image"].cpu(), "texts": features["text"].cpu(),
            "count": count, "first": np.cumsum(count) - count, "caption": caption,
        }  # fmt: skip
        return self._known
