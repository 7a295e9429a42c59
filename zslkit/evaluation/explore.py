"""A model asked by hand: one photo among words just typed, one batch of soft targets.

Dimensions: C = classes, D = embedding, B = pairs of a batch, S = image size in pixels.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zslkit.checkpoint import Run, build_teacher
from zslkit.config import RunConfig
from zslkit.data.embedding import Photos, embed_batches
from zslkit.data.images import to_pil
from zslkit.data.pairs import Pairs
from zslkit.encoders.dual import DualEncoder, build_dual_encoder
from zslkit.evaluation.retrieval import embed_batch
from zslkit.kernels.reading import numbers
from zslkit.targets import target_statistics
from zslkit.zeroshot.class_bank import build_class_bank
from zslkit.zeroshot.models.protocol import as_model
from zslkit.zeroshot.ranking import ClassBank, rank_classes

_CHUNK = 64  # images embedded at once


_MAX_PROMPTS = 300_000  # embeddings of prompts kept: 600 MB at D = 512


class Namer:
    """Name images among classes typed by hand, embedding no image and no prompt twice.

    Parameters
    ----------
    model : DualEncoder
        Left in eval mode.

    Attributes
    ----------
    tell : callable
        Called with the number of prompts before a block of them is embedded. It may raise to
        stop there: what has been embedded stays known.
    """

    def __init__(self, model: DualEncoder):
        self.model = as_model(model).eval()
        self.tell: Callable[[int], None] = lambda known: None
        self._images: dict[str, Tensor] = {}
        self._prompts: dict[str, Tensor] = {}
        self._classes: dict[tuple[str, ...], dict[str, Tensor]] = {}  # of each set of templates

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as (len(texts), D) on the CPU; only the new ones pass the text tower."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._prompts]:
            self.tell(len(self._prompts))
            if len(self._prompts) + len(new) > _MAX_PROMPTS:
                self._prompts, self._classes, new = {}, {}, list(dict.fromkeys(texts))
            self._prompts |= zip(new, self.model.encode_text(new).float().cpu(), strict=True)
        return torch.stack([self._prompts[text] for text in texts])

    @torch.no_grad()
    def encode_image(self, key: str, pixels: Tensor) -> Tensor:
        """Embed one image, uint8 (3, H, W), as (D,) on the CPU; ``key`` stands for its content."""
        if key not in self._images:
            model, photo = self.model, Photos([pixels])
            where = {"transform": model.image_transform(train=False)}
            where["device"] = next(model.parameters()).device
            (found,) = embed_batches(model.encode_image, photo, [np.zeros(1, np.int64)], **where)
            self._images[key] = found.vectors[0].cpu()
        return self._images[key]

    def predict(
        self, image: Tensor, class_names: Sequence[str], templates: Sequence[str], k: int
    ) -> Any:
        """Rank classes for one embedded image.

        Parameters
        ----------
        image : Tensor of shape (D,)
        class_names, templates : sequence of str
            As :func:`~zslkit.build_class_bank` takes them; its errors pass through.
        k : int
            Classes kept; all, if there are fewer.

        Returns
        -------
        DataFrame
            ``rank`` from 1, ``class_name``, cosine ``similarity``, and ``probability``: softmax
            over all C classes at the learned scale.
        """
        from pandas import DataFrame

        bank = self.class_bank(class_names, templates)
        # all of them, so that one product gives the best as well as what the softmax divides by
        similarities, indices = rank_classes(image[None], bank, len(bank.class_names))
        scale = torch.as_tensor(self.model.logit_scale).detach().to(similarities)
        best, shares = similarities[0, :k].tolist(), (scale * similarities).softmax(dim=1)[0, :k]
        names = [bank.class_names[i] for i in indices[0, :k].tolist()]
        columns = {"rank": range(1, len(names) + 1), "class_name": names}
        return DataFrame(columns | {"similarity": best, "probability": shares.tolist()})

    def light(
        self, pixels: Tensor, class_name: str, templates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Map where an image has what makes it similar to a class (Grad-CAM).

        Parameters
        ----------
        pixels : Tensor of shape (3, H, W), uint8

        Returns
        -------
        view : Tensor of shape (3, S, S), uint8
            What the model sees of the image.
        heat : Tensor of shape (S, S), float32
            In [0, 1], largest 1; all 0 where nothing speaks for the class.

        Raises
        ------
        ValueError
            If the image tower has no spatial map: its last layers work on tokens.

        References
        ----------
        Selvaraju et al. (2017), arXiv:1610.02391, equations 1 and 2, of the cosine similarity.
        """
        transform = self.model.image_transform(train=False)
        view = transform(pixels)
        target, tower = self.class_bank([class_name], templates), self.model.image_tower
        last: list[Tensor] = []
        if not hasattr(tower, "normalise"):
            raise ValueError(f"{tower.name} has no spatial map")

        def keep(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() > 2 and output[0, 0].numel() > 1:
                last[:] = [output]

        hooks = [part.register_forward_hook(keep) for part in tower.modules()]
        try:
            with torch.enable_grad():
                device = next(self.model.parameters()).device
                # frozen towers pass gradients on only if their input asks for them
                seen = tower.normalise(view[None].to(device)).requires_grad_()
                similarity = self.model.encode_image(seen) @ target.embeddings[0].to(device)
        finally:
            for hook in hooks:
                hook.remove()
        # square feature maps (1, channels, side, side); tokens and channels-last maps are not
        if not last or last[0].dim() != 4 or last[0].shape[2] != last[0].shape[3]:
            raise ValueError(f"{getattr(tower, 'name', 'this image tower')} has no spatial map")
        (gradient,) = torch.autograd.grad(similarity.sum(), last[0])
        heat = (gradient.mean(dim=(2, 3), keepdim=True) * last[0]).sum(dim=1, keepdim=True).relu()
        heat = F.interpolate(heat.detach(), size=view.shape[1:], mode="bilinear")[0, 0].cpu()
        view = transform.picture(view) if view.is_floating_point() else view
        return view, heat / heat.max().clamp_min(1e-12)

    def class_bank(self, class_names: Sequence[str], templates: Sequence[str]) -> ClassBank:
        """Build a class bank; classes known under the same templates are not embedded again."""
        class_names, templates = tuple(class_names), tuple(templates)
        known = self._classes.get(templates, {})
        new = [name for name in class_names if name not in known]
        if new or len(set(class_names)) < max(1, len(class_names)):  # the latter is an error
            found = build_class_bank(self, new or class_names, templates).embeddings
            known |= zip(new, found, strict=True)
        others = [item for item in self._classes.items() if item[0] != templates]
        self._classes = dict([*others[-3:], (templates, known)])
        return ClassBank(torch.stack([known[name] for name in class_names]), class_names)


def teacher_of(run_or_config: Run | RunConfig) -> tuple[DualEncoder, str]:
    """Find the model whose similarities soften labels, and what must be said about it.

    A run gives its teacher, or its student where it had none; a configuration its frozen teacher,
    or its towers as they are before any training, which the words then say.
    """
    if isinstance(run_or_config, RunConfig):
        student = build_dual_encoder(run_or_config)
        if run_or_config.needs_teacher and run_or_config.teacher == "frozen":
            return build_teacher(student, run_or_config).model, ""
        if run_or_config.projection == "none":
            return student.eval(), "Nothing is trained yet: this is the checkpoint as it came."
        return student.eval(), (
            "Nothing is trained yet: the projections are random, and so are image–caption "
            "similarities. What these targets say about the captions means nothing."
        )
    run = run_or_config
    if run.teacher is not None and run.teacher.ready:
        return run.teacher.model, ""
    return run.model.eval(), "This run left no teacher: its student stands in."


def overview(
    model: DualEncoder,
    sets: Mapping[str, Pairs],
    bank: ClassBank,
    most: int,
    config: RunConfig | None = None,
) -> tuple[Tensor, Any, list[str]]:
    """Embed images of some sets, and say of each what is known about it.

    Parameters
    ----------
    sets : mapping of names to Pairs
        Of each, up to ``most`` images that can be read, from all over it.
    bank : ClassBank
        The classes among which ``model`` names them.
    config : RunConfig, optional
        Where its cache holds features of the images, those are taken.

    Returns
    -------
    embeddings : Tensor of shape (N, D)
    table : DataFrame
        N rows: ``split`` (name of the set), ``key``, true ``class``, class ``named``, ``answer``
        (right, wrong, unknown), ``captions`` (own, swapped), and the cosine ``similarity`` to
        the first caption.
    thumbnails : list of str
        N data URIs.
    """
    from pandas import DataFrame

    found, facts, thumbnails = [], [], []
    for split, pairs in sets.items():
        wanted = range(0, len(pairs), -(-len(pairs) // most))
        for chunk in np.array_split(wanted, -(-len(wanted) // _CHUNK)):
            rows, images, both = embed_batch(model, pairs, chunk.tolist(), config)
            found.append(both.image)
            thumbnails += [thumbnail(to_pil(image)) for image in images]
            for row, similarity in zip(rows, (both.image * both.text).sum(dim=1), strict=True):
                truth = "" if pairs.labels is None else pairs.class_names[pairs.labels[row]]
                captions = "swapped" if pairs.swapped[row] else "own"
                facts.append([split, pairs.keys[row], truth, captions, similarity.item()])
    embeddings = torch.cat(found)
    table = DataFrame(facts, columns=["split", "key", "class", "captions", "similarity"])
    best = rank_classes(embeddings, bank, 1)[1][:, 0].tolist()
    table.insert(3, "named", [bank.class_names[i] for i in best])
    known = table["class"].isin(bank.class_names)
    right = table["class"] == table["named"]
    table.insert(4, "answer", np.where(right, "right", np.where(known, "wrong", "unknown")))
    return embeddings, table, thumbnails


def target_table(targets: Tensor, captions: Sequence[str], n_others: int = 3) -> Any:
    """Word the soft targets (B, B) of each pair as a row of a DataFrame.

    Columns: ``caption``, ``self_mass``, ``target_entropy`` (nats), and ``others``: up to
    ``n_others`` captions of other pairs with their mass, the most first.
    """
    from pandas import DataFrame

    rows = []
    for i, (row, caption) in enumerate(zip(targets, captions, strict=True)):
        order = row.argsort(descending=True, stable=True).tolist()
        best = [j for j in order if j != i and row[j] > 0][:n_others]
        others = [(captions[j], row[j].item()) for j in best]
        statistics = numbers(target_statistics(row[None], offset=i))
        rows.append({"caption": caption, **statistics, "others": others})
    return DataFrame(rows)


def thumbnail(image: Any, side: int = 64) -> str:
    """Shrink a PIL image to at most ``side`` pixels; give it as a JPEG data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    small.save(stream := io.BytesIO(), format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
