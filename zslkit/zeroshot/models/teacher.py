"""A public model as teacher: every image and caption is embedded once, then looked up.

Dimensions: N = images, M = distinct captions, B = pairs of a batch, D = its embedding, which
need not be the student's: only similarities are learnt from.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zslkit.config import RunConfig
from zslkit.data.cache import caption_features, tower_features
from zslkit.data.named import training_pairs
from zslkit.objective import Embedded
from zslkit.zeroshot.models.pretrained import PretrainedModel, is_pretrained_name, load_parts
from zslkit.zeroshot.models.protocol import MODELS, own_model
from zslkit.zeroshot.models.restoring import from_pretrained
from zslkit.zeroshot.models.saving import SAVED


def is_other_model(name: str | None) -> bool:
    """Tell whether ``teacher_run`` names a public, exported or registered model, not a run.

    Raises
    ------
    ValueError
        If it is ``WORD:...``, no folder, and the word is of no library and of none of your own.
    """
    if name is None:
        return False
    word, colon, _ = name.partition(":")
    if word in MODELS or is_pretrained_name(name) or (Path(name) / SAVED).is_file():
        return True
    if colon and word.isidentifier() and not Path(name).exists():
        raise ValueError(
            f"teacher_run={name!r}: no such folder; open_clip: and hf: name public models, "
            f"and {word!r} is not in zslkit.zeroshot.models.MODELS"
        )
    return False


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
        If it is asked to judge pairs: that takes the student's own towers.
    """

    kind = "fixed"

    def __init__(self, config: RunConfig):
        super().__init__()
        if config.pair_trust and config.trust_judge == "teacher":
            raise ValueError(
                f"pair_trust=True: teacher_run={config.teacher_run!r} cannot judge pairs by the "
                "student's features; take teacher='ema', trust_judge='held_out' or pair_trust=False"
            )
        name = config.teacher_run
        if (own := own_model(name)) is not None:
            self.model = own
        elif is_pretrained_name(name):
            self.model = PretrainedModel(name, load_parts(name))
        else:
            self.model = from_pretrained(name)
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
        device, texts = batch.images.device, known["text_of"][batch.captions]
        picked = (known["images"][batch.rows], known["texts"][texts])
        return Embedded(*(side.to(device) for side in picked))

    def _look_at_everything(self) -> dict[str, Any]:
        config = self.config
        pairs = training_pairs(config)
        # its towers are not the student's: whether those are frozen says nothing of these
        still = config.model_copy(update={"image_tower": "frozen", "text_tower": "frozen"})
        texts, text_of = caption_features(self.model, pairs, still, "teacher's texts")
        images = tower_features(self.model, pairs, still, "teacher's images").features
        features: dict[str, Tensor] = {}
        for side, found in (("image", images), ("text", texts)):
            features[side] = getattr(self.model, f"project_{side}")(found.to(self.ready.device))
        sides = {f"{side}s": found.cpu() for side, found in features.items()}
        self._known = sides | {"text_of": text_of}
        return self._known
