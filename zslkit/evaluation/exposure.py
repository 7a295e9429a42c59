"""What pretrained towers and training captions had seen of the things that a figure asks about."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zslkit.config import RunConfig
from zslkit.data.words import count_mentions
from zslkit.evaluation.evaluator import ZeroShotResult
from zslkit.evaluation.intervals import estimate
from zslkit.evaluation.metrics import hits_at_k
from zslkit.zeroshot.label_spaces import load_label_space, normal_form

KNOWN = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
"""``texts``: what sentence encoders have read, by a part of their name; ``sets``: the larger set
that holds a set of pairs, by its manifest's name. Each with its source."""
LABELLED, NAMED, NEITHER = "labelled for the tower", "named in the captions", "neither"


def class_exposure(
    config: RunConfig, class_names: Sequence[str], captions: Iterable[Sequence[str]]
) -> dict[str, str]:
    """Say of each class where the model has met it: by label, by name, or nowhere.

    Parameters
    ----------
    config : RunConfig
        An image tower of torchvision or timm that did not start from nothing counts as trained
        with ImageNet-1k's labels, which all their classifiers by default are; of other towers
        nothing is known, and no class counts as labelled.
    class_names : sequence of C str
    captions : iterable of sequence of str
        The training captions, by image.

    Returns
    -------
    dict of str to str
        ``"labelled for the tower"`` where a name of an ImageNet-1k class is the class's name, but
        for case and signs; else ``"named in the captions"``; else ``"neither"``.
    """
    library, labels = config.image_encoder.partition(":")[0], set()
    if library in ("timm", "torchvision") and config.image_weights != "none":
        spaces = load_label_space("imagenet1k").names
        labels = {normal_form(name) for names in spaces for name in names}
    named = count_mentions(captions, class_names)
    return {
        name: LABELLED if normal_form(name) in labels else NAMED if named[name] else NEITHER
        for name in class_names
    }


def hits_by_exposure(
    result: ZeroShotResult, exposure: dict[str, str], ks: Sequence[int] = (1, 5)
) -> dict[str, dict[str, dict[str, float]]]:
    """Estimate hit@k apart for the images of each kind of class, among all classes.

    Returns
    -------
    dict
        By kind (those that have images), by ``hit@k``: value, 95 % bootstrap interval, n, chance.
    """
    names = result.bank.class_names
    kinds = np.array([exposure[names[label]] for label in np.asarray(result.labels)])
    hits = {k: hits_at_k(result.indices, result.labels, k) for k in ks if k <= len(names)}
    return {
        kind: {
            f"hit@{k}": estimate(found[kinds == kind], chance=k / len(names))
            for k, found in hits.items()
        }
        for kind in (LABELLED, NAMED, NEITHER)
        if (kinds == kind).any()
    }


def read_before(config: RunConfig, manifest: Any) -> str:
    """Say in a sentence that the sentence encoder has read the captions that it is tested on.

    Returns
    -------
    str
        Empty where the towers start from nothing, or nothing is known of the encoder or the set.
    """
    inside = KNOWN["sets"].get(manifest.name, {}).get("inside")
    for part, facts in KNOWN["texts"].items():
        if (
            part in config.text_encoder
            and config.text_weights != "none"
            and inside in facts["read"]
        ):
            return (
                f"{part} was trained with {inside} ({facts['source']}), which hold those of "
                f"{manifest.title} ({KNOWN['sets'][manifest.name]['source']}): it has probably "
                "read the test captions, so retrieval here is no measure of unread captions"
            )
    return ""
