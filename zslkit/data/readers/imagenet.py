"""ImageNet in its official folders and tars."""

from pathlib import Path

import numpy as np

from zslkit.data.readers.labelled import WNID, Labelled, open_store
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source


def read_imagenet(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Classes by folder or tar, or by a ground truth file for the flat validation images.

    The file has a line per image: the synset (TensorFlow's
    ``imagenet_2012_validation_synset_labels.txt``), or the devkit's own ILSVRC2012_ID, from 1,
    which only the devkit's ``meta.mat`` explains: it is not the alphabetical order that all
    toolkits number classes in, and that classes have here too unless a text file lists them.
    """
    store = open_store(split, root)
    names, by_number = _read_synsets(root, manifest.class_list)
    if split.labels is None:
        rows, wnids = np.arange(len(store.names)), [n.partition("/")[0] for n in store.names]
    else:
        wnids = (root / split.labels).read_text(encoding="utf-8").split()
        if wnids and wnids[0].isdigit():
            if not by_number:
                raise ValueError(
                    f"{split.labels} holds ILSVRC2012_IDs; class_list must name the devkit's "
                    f"meta.mat, which explains them, not {manifest.class_list!r}"
                )
            if strange := [number for number in wnids if number not in by_number]:
                raise ValueError(f"{split.labels}: no class has ILSVRC2012_ID {strange[0]}")
            wnids = [by_number[number] for number in wnids]
        listed = (f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(len(wnids)))
        rows = store.find(listed, root / split.labels)
        if len(rows) < len(store.names):
            extra = store.names[np.setdiff1d(np.arange(len(store.names)), rows)[0]]
            raise ValueError(
                f"{split.labels} has {len(wnids)} lines for the {len(store.names)} images in "
                f"{store.where}; the first without: {extra}"
            )
    found = set(wnids)
    if strange := sorted(wnid for wnid in found if not WNID.fullmatch(wnid)):
        raise ValueError(
            f"{store.where}: {strange[0]!r} is no synset such as n01440764; images lie in a "
            "folder or tar for each, or 'labels' names the ground truth file"
        )
    if names is None:
        names = {wnid: wnid for wnid in sorted(found)}
    if strange := sorted(found - names.keys()):
        raise ValueError(
            f"{store.where}: {len(strange)} classes are not in class_list "
            f"{manifest.class_list!r}; the first: {strange[0]}"
        )
    if missing := [wnid for wnid in names if wnid not in found]:
        raise ValueError(
            f"{store.where}: {len(missing)} of the {len(names)} classes in class_list "
            f"{manifest.class_list!r} have no image; the first: {missing[0]}"
        )
    number_of = {wnid: number for number, wnid in enumerate(names)}
    labels = np.array([number_of[wnid] for wnid in wnids])
    keys = [store.names[row] for row in rows.tolist()]
    return Labelled(keys, names, names.values(), labels).place(store, rows)


def _read_synsets(root: Path, file: str | None) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Read first lemmas by synset, and synsets by ILSVRC2012_ID if the file is meta.mat."""
    if file is None:
        return None, {}
    if file.endswith(".mat"):
        from scipy.io import loadmat

        synsets = np.atleast_1d(loadmat(root / file, squeeze_me=True)["synsets"])
        leaves = sorted(
            (str(row["WNID"]), str(row["words"]), str(row["ILSVRC2012_ID"]))
            for row in synsets if row["num_children"] == 0
        )  # fmt: skip
        names = {wnid: words.partition(",")[0] for wnid, words, _ in leaves}
        return names, {number: wnid for wnid, _, number in leaves}
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    parts = [line.split(None, 1) for line in lines if line.strip()]
    names = {part[0]: part[-1].partition(",")[0].strip() for part in parts}
    if len(names) < len(parts) or not all(map(WNID.fullmatch, names)):
        raise ValueError(
            f"class_list {file!r} must have lines such as 'n01440764 tench, Tinca tinca', each "
            "synset once"
        )
    return names, {}
