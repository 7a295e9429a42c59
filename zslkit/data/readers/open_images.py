"""Open Images V7 in its official files."""

from pathlib import Path

import numpy as np

from zslkit.data.readers.class_lists import listed_classes
from zslkit.data.readers.labelled import Labelled, Store, group, open_store, read_csv
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source


def read_open_images(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Images with at least one class that people confirmed; of others, nothing is known.

    Without ``class_list`` (classes-trainable.txt), all described classes count. A class that one
    source confirms and another denies is a positive.
    """
    ids, names = listed_classes(manifest, root)
    store = open_store(split, root)
    labels = read_csv(
        root / split.labels, {"ImageID": "category", "LabelName": "category", "Confidence": "f4"}
    )
    confidence = labels["Confidence"].to_numpy()
    if len(strange := np.flatnonzero((confidence != 0) & (confidence != 1))):
        raise ValueError(
            f"{split.labels}, row {strange[0] + 2}: Confidence is {confidence[strange[0]]}; people "
            "say 0 or 1: the file of human-verified labels is meant, not the machine's"
        )
    images = labels["ImageID"].cat.categories
    number_of = {id: number for number, id in enumerate(ids)}
    to_class = np.array([number_of.get(id, -1) for id in labels["LabelName"].cat.categories])
    image, number = labels["ImageID"].cat.codes.to_numpy(), to_class[labels["LabelName"].cat.codes]
    if manifest.class_list is None and len(unknown := np.flatnonzero(number < 0)):
        raise ValueError(
            f"{split.labels}: {labels['LabelName'].iloc[unknown[0]]!r} is not in "
            f"{manifest.class_descriptions}"
        )
    confirmed, denied = ((confidence == value) & (number >= 0) for value in (1, 0))
    positives = group(image[confirmed], number[confirmed], len(images), len(ids))
    negatives = group(image[denied], number[denied], len(images), len(ids), positives)
    shown = np.flatnonzero(positives.starts < positives.stops)

    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in store.names]
    by_id = Store(store.where, stems, store.places, store.paths)
    listed = by_id.find(images, root / split.labels)
    keys, rows = images[shown].tolist(), listed[shown]
    if split.image_list is not None:
        every = read_csv(root / split.image_list, {"ImageID": str}, split.where)["ImageID"]
        if strange := sorted(set(images) - set(every)):
            raise ValueError(
                f"{split.labels}: image {strange[0]!r} is not in {split.image_list}, where "
                f"{split.where}"
            )
        listed = by_id.find(every, root / split.image_list)
    first = [name for name, *_ in names]
    source = Labelled(keys, ids, first, positives.take(shown), negatives.take(shown))
    return source.place(store, rows, listed)
