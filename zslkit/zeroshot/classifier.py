"""Name what images show among given classes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from zslkit.data.embedding import Photos, embed_batches, in_blocks
from zslkit.data.sampling import check_broken
from zslkit.data.showing import Shown
from zslkit.zeroshot.class_bank import build_class_bank, eval_mode
from zslkit.zeroshot.ranking import class_probabilities, rank_classes


class Prediction(NamedTuple):
    """A class, its cosine similarity, and its softmax probability over all C classes."""

    class_name: str
    similarity: float
    probability: float


class ZeroShotClassifier(Shown):
    """Name what photos show, among classes given as words (see :func:`build_class_bank`)."""

    def __init__(self, model: Any, class_names: Sequence[str], templates: str | Sequence[str]):
        if not hasattr(model, "logit_scale"):
            raise ValueError(f"{type(model).__name__} has no logit_scale, so no probabilities")
        self.model, self.bank = model, build_class_bank(model, class_names, templates)

    def _facts(self) -> dict[str, object]:
        return {"model": type(self.model).__name__, **self.bank._facts()}

    @torch.no_grad()
    def predict(
        self, images: Sequence, k: int = 5, batch_size: int = 64, max_unreadable: float = 0.0
    ) -> list[list[Prediction]]:
        """Give the k best classes of each image, best first.

        Parameters
        ----------
        images : sequence
            PIL images, paths or uint8 tensors of shape (3, H, W).
        k : int
            Classes for each image; all, if there are fewer.
        max_unreadable : float
            Share of the images that may be unreadable; each of these gets no prediction, ``[]``.

        Raises
        ------
        ValueError
            If more are unreadable, by name.
        """
        scale, results = torch.as_tensor(self.model.logit_scale).detach(), [[] for _ in images]
        names, broken = self.bank.class_names, []
        batches = embed_batches(
            self.model.encode_image,
            Photos(images),
            in_blocks(len(images), batch_size),
            transform=self.model.image_transform(train=False),
            device=scale.device,
        )
        with eval_mode(self.model):
            for rows, embeddings, unreadable in batches:
                broken.extend(unreadable)
                check_broken(broken, len(images), max_unreadable)
                if embeddings is None:
                    continue
                scores, indices = rank_classes(embeddings, self.bank, k)
                shares = class_probabilities(embeddings, self.bank, scores, scale)
                ranked = torch.stack([indices, scores, shares], dim=2).tolist()
                for row, best in zip(rows, ranked, strict=True):
                    results[row] = [Prediction(names[int(i)], s, p) for i, s, p in best]
        return results
