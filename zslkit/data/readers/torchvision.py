"""Labelled sets that torchvision reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zslkit.data.readers.labelled import Labelled
from zslkit.data.schema import ManifestFields, Split
from zslkit.data.source import Source
from zslkit.data.strict import nearest


class Torchvision(Labelled):
    """A data set of torchvision, which reads its images as it does."""

    has_files = False

    def __init__(self, data, targets: np.ndarray, names: Sequence[str]):
        super().__init__([f"{i:07}" for i in range(len(targets))], names, names, targets)
        self.data = data

    def read(self, row: int) -> Tensor:
        """Decode an image: (3, H, W) uint8."""
        pixels = np.array(self.data[row][0].convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def stamp(self, rows: np.ndarray) -> bytes:
        """Bytes that change with the classes, or with the first image."""
        return self.labels[rows].tobytes() + self.read(0).numpy().tobytes()


DATASETS = ("CIFAR10", "CIFAR100", "Caltech101", "Food101", "Flowers102", "DTD", "ImageFolder",
            "MNIST", "FashionMNIST", "STL10", "OxfordIIITPet", "FGVCAircraft", "GTSRB")  # fmt: skip
"""Classes that a manifest may name: they check hashes before they unpickle, or unpickle nothing."""


def read_torchvision(manifest: ManifestFields, split: Split, root: Path) -> Source:
    """Any class of torchvision.datasets that has class names and one class per image."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    if split.dataset not in DATASETS:
        raise ValueError(
            f"dataset={split.dataset!r}: torchvision.datasets has no such class that is read "
            f"here; {nearest(split.dataset, DATASETS)}"
        )
    kind = getattr(datasets, split.dataset)
    if split.arguments.get("download"):
        raise ValueError("arguments: nothing is downloaded on opening; see how_to_obtain")
    folder = root / (split.folder or ".")
    try:
        data = kind(folder, **split.arguments)
    except TypeError as error:
        raise ValueError(f"dataset={split.dataset!r}, arguments: {error}") from error
    except (RuntimeError, FileNotFoundError) as error:
        files = [*getattr(kind, "train_list", ()), *getattr(kind, "test_list", ())]
        below = folder / getattr(kind, "base_folder", "")
        bad = [below / name for name, md5, *_ in files if not check_integrity(below / name, md5)]
        named = f"{bad[0]} is missing or has another md5" if bad else error
        raise ValueError(
            f"{split.dataset} in {folder}: {named}; how to obtain it: {manifest.how_to_obtain}"
        ) from error
    names = getattr(data, "classes", getattr(data, "categories", None))
    places = ("targets", "_labels", "labels", "y")  # torchvision has no one name for them
    targets = next((getattr(data, name) for name in places if hasattr(data, name)), None)
    if targets is None or names is None or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"dataset={split.dataset!r} does not tell one name per class and one class per image; "
            "sets that do are CIFAR10, CIFAR100, Caltech101, Food101, Flowers102, DTD, ImageFolder"
        )
    return Torchvision(data, np.asarray(targets), names)
