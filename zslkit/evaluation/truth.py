"""Images whose classes are known, also where nobody labelled any: captions then tell."""

from collections.abc import Sequence

from zslkit.config import RunConfig
from zslkit.data.named import held_out_pairs, labelled_images
from zslkit.data.pairs import Pairs
from zslkit.data.words import mentions
from zslkit.zeroshot.label_spaces import load_label_space

LISTS = ("imagenet1k", "imagenet12k", "imagenet21k", "imagenet21k+1k")
"""Label spaces that may stand for their names."""


def images_to_name(
    config: RunConfig,
    class_names: Sequence[str] | None = None,
    max_images: int | None = None,
    several: bool = False,
) -> tuple[Pairs, str]:
    """Open images and their true classes: labelled ones, or else held-out pairs.

    Of held-out pairs the captions are the truth. With ``class_names``, the class of an image is
    the one that its captions name, as :func:`zslkit.data.count_mentions` reads them; images whose
    captions name none of them, or several, are left out. Without, each image is a class of its
    own that its first caption names: naming it is image-to-text retrieval.

    Parameters
    ----------
    class_names : sequence of str, optional
        Names typed by hand, or one of :data:`LISTS` for its names.
    max_images : int, optional
        Keep this many, drawn with the seed.
    several : bool
        Take labelled images with several classes each as well.

    Returns
    -------
    pairs : Pairs
    words : str
        Where the truth comes from, for people.

    Raises
    ------
    ValueError
        If there are labelled images and ``class_names`` as well, or the captions of fewer than two
        images name one of the classes.
    """
    if config.zeroshot_manifest is not None:
        if class_names is not None:
            raise ValueError(
                f"class_names={list(class_names)}: the classes of "
                f"zeroshot_manifest={config.zeroshot_manifest!r} are its own; give one of the two"
            )
        pairs = labelled_images(config, max_images, several)
        return pairs, f"the classes of {pairs.manifest.name}"
    pairs = held_out_pairs(config, max_images=max_images)
    where = f"split {pairs.split!r} of {pairs.manifest.name}"
    if class_names is None:
        first = [group[0] for group in pairs.captions]
        number = {text: i for i, text in enumerate(dict.fromkeys(first))}
        found = pairs.with_classes([number[text] for text in first], list(number))
        return found, f"the first captions of {where}: each image is a class of its own"
    given = [str(name) for name in class_names]
    spaces = [load_label_space(name).class_names if name in LISTS else [name] for name in given]
    names = list(dict.fromkeys(name for space in spaces for name in space))
    texts, rows, labels = iter(mentions(pairs.captions, names)), [], []
    for row, group in enumerate(pairs.captions):
        named = set().union(*(next(texts) for _ in group))
        if len(named) == 1:
            rows.append(row)
            labels.append(names.index(named.pop()))
    if len(rows) < 2:
        raise ValueError(
            f"class_names={given}: the captions of {len(rows)} of {len(pairs)} images of {where} "
            "name just one of them; give words that stand in the captions, or none"
        )
    words = f"words in the captions of {where}: {len(rows)} of {len(pairs)} images name just one"
    return pairs.take(rows).with_classes(labels, names), words
