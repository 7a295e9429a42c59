"""Projections in closed form: ridge regression or canonical correlations, chosen on dev.

A run's own two linear maps are what is fitted, so everything that reads a run reads these.
Dimensions: N = images, M = captions, F = image features, G = text features.
"""

from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zslkit.config import RunConfig
from zslkit.data.cache import tower_features
from zslkit.data.caption_trust import held_out_trust
from zslkit.data.closed_form import LinearMaps, Moments, Spectra
from zslkit.data.manifests import load_manifest
from zslkit.data.pairs import open_pairs
from zslkit.encoders.dual import DualEncoder
from zslkit.evaluation.metrics import recall_sum, retrieval_ranks

ClosedFormKind = Literal["ridge", "cca"]
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "ridge": {"penalty": (0.3, 1.0, 3.0, 10.0), "text_penalty": (0.1, 0.3, 1.0, 3.0)},
    "cca": {
        "penalty": (0.3, 1.0, 3.0, 10.0),
        "text_penalty": (0.03, 0.1, 0.3, 1.0),
        "power": (0.5, 0.75, 1.0),
    },
}
"""Settings tried on dev, in units of the mean variance of their side."""


class Features(NamedTuple):
    """Features of images and of their captions."""

    images: Tensor
    """(N, F)."""
    texts: Tensor
    """(M, G)."""
    owner: Tensor
    """(M,) int64, row of each caption's image, rising."""


class ClosedForm(NamedTuple):
    """What :func:`fit_closed_form` found."""

    maps: LinearMaps
    settings: dict[str, float]
    """Chosen on dev."""
    dev_score: float
    """Recall@1, 5 and 10 of both ways summed, in percent, at most 600."""
    trust: Tensor | None
    """(M,) weight of each caption, if they were weighed."""


def fit_closed_form(
    images: Tensor,
    texts: Tensor,
    owner: Tensor,
    kind: ClosedFormKind = "cca",
    *,
    dev: Features | None = None,
    filtered: bool = False,
    trust: Tensor | None = None,
    k: int | None = None,
) -> ClosedForm:
    """Fit linear maps to cached features, exactly, in one pass and without gradients.

    Parameters
    ----------
    images, texts : Tensor of shape (N, F) and (M, G)
        Features of frozen towers, in memory or memory-mapped: they are read in blocks, and
        besides a block only O((F + G)²) is held.
    owner : Tensor of shape (M,), int64
        Row of each caption's image, rising. All captions of an image are positives.
    kind : str
        ``ridge`` regresses partly whitened text features on image features; ``cca`` finds
        regularised canonical correlations.
    dev : Features, optional
        Held-out pairs that choose the settings in ``GRIDS``, one after the other; by default the
        last fifth of the images, which the final fit has learnt from too.
    filtered : bool
        Weigh captions by :func:`zslkit.data.caption_trust.held_out_trust`.
    trust : Tensor of shape (M,), optional
        Weigh captions by this instead, such as the ``trust`` of an earlier fit.
    k : int, optional
        Dimensions kept, for ``cca``.

    Returns
    -------
    ClosedForm

    Raises
    ------
    ValueError
        For an unknown kind, or features that do not fit together.
    """
    if kind not in GRIDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(GRIDS)}")
    if filtered and trust is None:
        trust = held_out_trust(images, texts, owner)
    cut = len(images) if dev is not None else len(images) - max(1, len(images) // 5)
    place = int(torch.searchsorted(owner.contiguous(), cut))
    parts = [(images[:cut], texts[:place], owner[:place], slice(place))]
    parts += [(images[cut:], texts[place:], owner[place:] - cut, slice(place, None))]
    sums = [
        Moments(images.shape[1], texts.shape[1]).add(
            v, t, own, None if trust is None else trust[captions]
        )
        for v, t, own, captions in parts
    ]
    more = {"k": k} if kind == "cca" else {}
    spectra, dev = Spectra(sums[0]), dev or Features(*parts[1][:3])
    settings, score = _choose(spectra, kind, dev, more)
    if cut < len(images):
        spectra = Spectra(sums[0] + sums[1])
    return ClosedForm(getattr(spectra, kind)(**settings, **more), settings, score, trust)


def _choose(
    spectra: Spectra, kind: str, dev: Features, more: dict[str, Any]
) -> tuple[dict[str, float], float]:
    """Try the settings one after the other, each with the best found so far of the others."""
    grid = GRIDS[kind]
    best = {name: values[len(values) // 2] for name, values in grid.items()}
    scores: dict[tuple, float] = {}
    for name, values in grid.items():
        for value in values:
            tried = best | {name: value}
            if (key := tuple(tried.values())) not in scores:
                maps = getattr(spectra, kind)(**tried, **more)
                ranks = retrieval_ranks(
                    maps.project_image(dev.images), maps.project_text(dev.texts), dev.owner
                )
                scores[key] = recall_sum(ranks)
        best = dict(zip(grid, max(scores, key=scores.__getitem__), strict=True))
    return best, max(scores.values())


def fit_projections(model: DualEncoder, data: Any, config: RunConfig) -> ClosedForm:
    """Put a closed form, fitted to a run's training features, in the place of its projections.

    Parameters
    ----------
    model : DualEncoder
        With linear projections.
    data : TrainingData
        Its training pairs.
    config : RunConfig
        ``start`` names the kind; ``pair_trust`` filters; ``dev_split`` of the manifest chooses,
        with wrong captions as the training split has them.

    Returns
    -------
    ClosedForm
        With ``trust`` for all captions of the training pairs: 0 where the image is unreadable.

    Raises
    ------
    ValueError
        If the projections have too few dimensions.
    """
    kind = config.start
    images, texts, owner, kept = data.features_of(model)
    found = fit_closed_form(
        images,
        texts,
        owner,
        kind,
        dev=_dev_features(model, config),
        filtered=config.pair_trust,
        k=config.embedding_dim,
    )
    load_maps(model, found.maps, config)
    if found.trust is not None:
        trust = torch.zeros(len(kept))
        trust[kept] = found.trust
        found = found._replace(trust=trust)
    return found


def _dev_features(model: DualEncoder, config: RunConfig) -> Features | None:
    """Give features of the dev split, None where the manifest has none."""
    fields = {name: config.source[name] for name in ("image_field", "caption_field")}
    manifest = load_manifest(
        config.manifest, config.data_root, **fields, split_shares=config.split_shares
    )
    if config.dev_split not in manifest.splits:
        return None
    dev = open_pairs(
        config.manifest,
        config.dev_split,
        **config.source,
        # a published list is of training captions: dev then stays clean
        caption_noise=0.0 if config.caption_noise_file else config.caption_noise,
        caption_noise_kind=config.caption_noise_kind,
        seed=config.seed,
    )
    images = tower_features(model, dev, config, "dev images")
    rows = images.readable(dev.keys)
    groups = [dev.captions[i] for i in rows]
    # distinct and sorted: swapped captions are the same texts, so they share an entry
    texts = np.array([*chain.from_iterable(groups)], object)
    distinct, places = np.unique(texts, return_inverse=True)
    found = tower_features(model, distinct.tolist(), config, "dev captions").features
    owner = np.repeat(np.arange(len(rows)), [len(group) for group in groups])
    return Features(images.features[rows], found[places], torch.from_numpy(owner))


@torch.no_grad()
def load_maps(model: DualEncoder, maps: LinearMaps, config: RunConfig) -> None:
    """Write maps into the projections, scaled to lengths that training expects, about 1.

    Raises
    ------
    ValueError
        If the projections have too few dimensions.
    """
    n = len(maps.image_weight)
    if n > config.embedding_dim:
        raise ValueError(
            f"embedding_dim={config.embedding_dim} must be at least {n} for {config.start}, the "
            "number of text features; or take cca, which keeps the strongest directions"
        )
    for side in ("image", "text"):
        layer = getattr(model, f"{side}_projection")[-1]
        weight, bias = getattr(maps, f"{side}_weight"), getattr(maps, f"{side}_bias")
        scale = 1 / weight.norm(dim=0).mean().clamp_min(1e-12)
        layer.weight.zero_()[:n] = (scale * weight).to(layer.weight)
        layer.bias.zero_()[:n] = (scale * bias).to(layer.bias)
