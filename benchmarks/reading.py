"""Images per second from shards to a batch of crops: zslkit against PIL behind a DataLoader.

Both read the same tar shards on one core and give the same 224-pixel crops as uint8.
Run ``python benchmarks/reading.py --manifest flickr8k --data-root DATA``; writes a results file.
"""

import argparse
import io
import json
import os
import platform
import tarfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import zslkit as zk
from zslkit.data.sampling import iterate_batches
from zslkit.encoders.image import ImageTransform

RESULTS = Path(__file__).parent / "results" / "reading.json"
SIZE, BATCH = 224, 64


class Peer(Dataset):
    """What most projects write: members of a tar by name, PIL, transforms on PIL images."""

    def __init__(self, shards, transform):
        self.transform = transform
        self.members = []
        for path in shards:
            with tarfile.open(path) as tar:
                self.members += [(path, m) for m in tar if m.name.endswith(".jpg")]

    def __len__(self):
        return len(self.members)

    def __getitem__(self, index):
        path, member = self.members[index]
        with tarfile.open(path) as tar, Image.open(tar.extractfile(member)) as image:
            return self.transform(image.convert("RGB"))


class OpenPeer(Peer):
    """The same with every shard in memory, so that only decoding and cropping are compared."""

    def __init__(self, shards, transform):
        super().__init__(shards, transform)
        contents = {path: Path(path).read_bytes() for path in shards}
        self.files = [
            contents[path][m.offset_data : m.offset_data + m.size] for path, m in self.members
        ]

    def __getitem__(self, index):
        with Image.open(io.BytesIO(self.files[index])) as image:
            return self.transform(image.convert("RGB"))


def rate(batches, n_images):
    """Images per second over the first ``n_images``."""
    start, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch)
        if seen >= n_images:
            break
    return seen / (time.perf_counter() - start)


def main():
    """Time the three in turn, several times; quote medians and ratios."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--manifest", default="flickr8k")
    arguments.add_argument("--data-root", default=None)
    arguments.add_argument("--images", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    manifest = zk.load_manifest(options.manifest, options.data_root)
    pairs = zk.open_pairs(manifest, "train")
    shards = [manifest.data_root / path for path in manifest.splits["train"].shards]
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.Compose(
        [v2.RandomResizedCrop(SIZE, (0.5, 1.0), interpolation=bicubic), v2.PILToTensor()]
    )
    readers = {
        "zslkit": lambda: (
            batch.pixels
            for batch in iterate_batches(pairs, BATCH, transform=ImageTransform(SIZE, train=True))
        ),
        "tar + PIL": lambda: DataLoader(Peer(shards, crop), BATCH, shuffle=True),
        "memory + PIL": lambda: DataLoader(OpenPeer(shards, crop), BATCH, shuffle=True),
    }
    rates = {name: [] for name in readers}
    for _ in range(options.rounds):
        for name, batches in readers.items():
            rates[name].append(rate(batches(), options.images))
    medians = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    results = {
        "what": "images/s on one core, tar shards to uint8 crops",
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio": {
            name: round(medians["zslkit"] / value, 2)
            for name, value in medians.items()
            if name != "zslkit"
        },
        "rounds": options.rounds,
        "images_per_round": options.images,
        "machine": {"platform": platform.machine(), "cores": os.cpu_count(), "device": "cpu"},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
