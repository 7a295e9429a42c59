"""Name what images show among given classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zslkit.data.images import decode_image
from zslkit.zeroshot.class_bank import build_class_bank, eval_mode
from zslkit.zeroshot.ranking import class_probabilities, rank_classes


class Prediction(NamedTuple):
    """A class, its cosine similarity, and its softmax probability over all C classes."""

    class_name: str
    similarity: float
    probability: float


class ZeroShotClassifier:
    """Name what photos show, among classes given as words (see :func:`build_class_bank`)."""

    def __init__(self, model: Any, class_names: Sequence[str], templates: str | Sequence[str]):
        if not hasattr(model, "logit_scale"):
            raise ValueError(f"{type(model).__name__} has no logit_scale, so no probabilities")
        self.model, self.bank = model, build_class_bank(model, class_names, templates)

    def predict(self, images: Sequence, k: int = 5, batch_size: int = 64) -> list[list[Prediction]]:
        """Give the k best classes of each PIL image, path or uint8 (3, H, W) tensor, best first."""
        transform, names = self.model.image_transform(train=False), self.bank.class_names
        scale, results = torch.as_tensor(self.model.logit_scale).detach(), []
        with torch.no_grad(), eval_mode(self.model):
            for start in range(0, len(images), batch_size):
                batch = map(_opened, images[start : start + batch_size])
                pixels = torch.stack([transform(image) for image in batch]).to(scale.device)
                embeddings = self.model.encode_image(pixels)
                scores, indices = rank_classes(embeddings, self.bank, k)
                shares = class_probabilities(embeddings, self.bank, scores, scale)
                for row in torch.stack([indices, scores, shares], dim=2).tolist():
                    results.append([Prediction(names[int(i)], s, p) for i, s, p in row])
        return results


def _opened(image: Any) -> Any:
    is_file = isinstance(image, str | Path)
    return decode_image(Path(image).read_bytes(), f"{image}: ") if is_file else image
