"""Captions that are probably wrong, ranked, with what speaks against each.

Dimensions: N = images, M = captions, S = suspects.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zslkit.checkpoint import Run
from zslkit.config import RunConfig
from zslkit.data.caption_trust import believe_captions, caption_losses, held_out_trust
from zslkit.encoders.dual import DualEncoder
from zslkit.training.batches import TrainingData

ALIKE = 0.97
"""Cosine of two images' features from which on they count as nearly the same image."""
_DOUBT, _RIVALS = 0.5, 0.05  # from which on a reason is named
_BLOCK = 2**24  # similarities that are held at a time


def find_suspects(run: Run, share: float = 0.1, data: TrainingData | None = None) -> Any:
    """Rank the training captions of a run by how probably they are wrong.

    Two judges: ``held_out``, closed forms that never saw the caption's image, and ``model``, the
    run's own losses, which know the pairs. The rank goes by the sum of their log odds, so that
    what either of them is sure of comes early. Neither knows of noise that was planted.

    Parameters
    ----------
    run : Run
        Its model, and the pairs of its configuration: after noise, and after an earlier review.
    share : float in (0, 1]
        Of all captions, that are listed.
    data : TrainingData, optional
        Of the same run, where it is at hand.

    Returns
    -------
    DataFrame
        S rows, the most suspect first: ``rank`` from 1, ``image`` (its key), ``row`` (its position
        in the pairs), ``caption``, ``held_out`` and ``model`` (probabilities that the caption is
        right), ``rivals`` (share of other images that fit it better, by the model), ``alike`` (key
        of a nearly equal image, or ""), ``swap_image`` and ``swap_caption`` (the other suspect
        that would gain most by changing places with it, or ""), ``reason`` in words, and
        ``decision``, ``text``, empty columns to fill in.

    Raises
    ------
    ValueError
        If ``share`` lies outside (0, 1], or there are fewer than three images.
    """
    from pandas import DataFrame

    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie above 0 and at most be 1")
    model, config = run.model.eval(), run.config
    device = next(model.parameters()).device
    data = TrainingData(model, config, device) if data is None else data
    if len(data) < 3:
        raise ValueError(f"{len(data)} readable images are too few to judge any: take 3 or more")
    with torch.inference_mode():
        features, owner, kept, judged = _judge(model, data, config, device)
        order = torch.argsort(judged["score"], stable=True)
        some = order[: max(1, round(share * len(order)))]
        images, projected, texts = features
        rivals = _rivals(projected, texts[some], owner[some])
        alike = _alike(images, owner[some])
        partner = _partners(projected, texts[some], owner[some])
    groups, keys = data.pairs.captions, np.asarray(data.pairs.keys)
    images_of, words = groups.spread()
    place = torch.nonzero(kept).flatten()[some].numpy()
    row, keys_of = images_of[place], keys[images_of[place]].tolist()
    captions = words[place].tolist()
    usable = keys[data.usable]
    table = DataFrame({
        "rank": np.arange(1, len(some) + 1),
        "image": keys_of,
        "row": row,
        "caption": captions,
        "held_out": judged["held_out"][some].numpy(),
        "model": judged["model"][some].numpy(),
        "rivals": rivals.numpy(),
        "alike": [usable[i] if i >= 0 else "" for i in alike.tolist()],
        "swap_image": [keys_of[i] if i >= 0 else "" for i in partner.tolist()],
        "swap_caption": [captions[i] if i >= 0 else "" for i in partner.tolist()],
    })  # fmt: skip
    table["reason"] = [_reason(found) for found in table.to_dict("records")]
    return table.assign(decision="", text="")


def _judge(
    model: DualEncoder, data: TrainingData, config: RunConfig, device: torch.device
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, dict[str, Tensor]]:
    """Judge all captions: features, owners, which captions these are, and what the judges say."""
    images, texts, owner, kept = data.features_of(model)
    held_out = held_out_trust(images, texts, owner)
    projected = (model.project_image(images.to(device)), model.project_text(texts.to(device)))
    left, right = (side.float().cpu() for side in projected)
    losses, mismatched = caption_losses(left, right, owner)
    own = believe_captions(losses, mismatched, owner, len(images))
    # probabilities reach 0 and 1; the losses part what lies there
    score = _log_odds(held_out) + _log_odds(own) - losses
    judged = {"held_out": held_out, "model": own, "score": score}
    return (images, left, right), owner, kept, judged


def _log_odds(p: Tensor) -> Tensor:
    return torch.logit(p.double().clamp(1e-9, 1 - 1e-9))


def _rivals(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """Share of the other images that fit each text better than its own, (S,)."""
    found = []
    for block, own in zip(*_blocks(images, texts, owner), strict=True):
        similarity = block @ images.T
        mine = similarity.gather(1, own[:, None])
        found.append((similarity > mine + 1e-6).float().sum(dim=1) / max(1, len(images) - 1))
    return torch.cat(found)


def _alike(images: Tensor, owner: Tensor) -> Tensor:
    """Give the nearly equal other image of each suspect's own, (S,) int64, -1 for none."""
    rows, places = torch.unique(owner, return_inverse=True)
    unit = torch.nn.functional.normalize(images - images.mean(dim=0), dim=1)
    found = []
    for block, own in zip(*_blocks(unit, unit[rows], rows), strict=True):
        similarity = block @ unit.T
        similarity.scatter_(1, own[:, None], -1.0)
        best, nearest = similarity.max(dim=1)
        found.append(torch.where(best >= ALIKE, nearest, -1))
    return torch.cat(found)[places]


def _partners(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """Give for each suspect the other one with which to change places, (S,) int64, -1 for none.

    The gain is that of both similarities together; where nothing gains there is none.
    """
    mine = images[owner]
    fit = (mine * texts).sum(dim=1)
    found = []
    for start in range(0, len(texts), step := max(1, _BLOCK // max(1, len(texts)))):
        part = slice(start, start + step)
        # my image with their caption and their image with mine, against what either has now
        gain = mine[part] @ texts.T + texts[part] @ mine.T - fit[part, None] - fit
        gain[owner[part, None] == owner] = -1.0
        best, other = gain.max(dim=1)
        found.append(torch.where(best > 0, other, -1))
    return torch.cat(found)


def _blocks(images: Tensor, texts: Tensor, owner: Tensor) -> tuple[tuple, tuple]:
    size = max(1, _BLOCK // len(images))
    return texts.split(size), owner.split(size)


def _reason(found: dict[str, Any]) -> str:
    reasons = []
    if found["held_out"] < _DOUBT:
        reasons.append(f"fits that never saw it believe it to {found['held_out']:.0%}")
    if found["model"] < _DOUBT:
        reasons.append(f"the model to {found['model']:.0%}")
    if abs(found["held_out"] - found["model"]) > _DOUBT:
        reasons.append("the two disagree")
    if found["rivals"] > _RIVALS:
        reasons.append(f"{found['rivals']:.0%} of the other images fit better")
    if found["alike"]:
        reasons.append(f"its image is nearly {found['alike']}")
    return "; ".join(reasons) or "less sure than the rest"
