"""``predict`` over 10,000 files, some broken, beside a plain loop of the same model.

``python benchmarks/predict.py DATA_ROOT [N]`` writes photos of Flickr8k again and again as files
of their own, 50 of them broken (cut off, empty, or no image), and names them with a network of
the smallest kind, so that reading, decoding, memory and writing are what is measured. Each way
runs in a process of its own; its memory is looked at while it goes. Writes a results file.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import zslkit as zk
from zslkit.report.provenance import machine

RESULTS = Path(__file__).parent / "results" / "predict.json"
CLASSES = ["dog", "child", "bicycle", "beach", "mountain", "football", "car", "snow"]


def model():
    """Build small towers from scratch: naming with them is as quick as with trained ones."""
    torch.set_num_threads(1)
    config = zk.RunConfig(image_encoder="timm:test_resnet", image_size=64, cache_dir=None)
    return zk.build_dual_encoder(config).eval()


def resident():
    """Megabytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def cpu_seconds():
    """Seconds of all cores that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ours(folder, output, n):
    """Name all with predict_files."""
    classifier = zk.ZeroShotClassifier(model(), CLASSES)
    seen, held = 0, []

    def look(name, ranked):
        nonlocal seen
        seen += 1
        if seen % max(1, n // 20) == 0:
            held.append(round(resident(), 1))

    began, spent = time.perf_counter(), cpu_seconds()
    named = zk.zeroshot.models.predict_files(classifier, [folder], output, k=1, show=look)
    return {
        "named": named.n_images,
        "listed as broken": len(named.broken),
        "seconds": time.perf_counter() - began,
        "CPU seconds": cpu_seconds() - spent,
        "MB held after each twentieth": held,
        "lines in the list of broken files": len(
            Path(f"{output}.broken.txt").read_text().splitlines()
        ),
    }


def plain(folder, output, n):
    """Name all as one writes it down: open, transform, stack 64, embed, compare."""
    from PIL import Image

    network = model()
    bank = zk.build_class_bank(network, CLASSES, "ensemble").embeddings
    transform = network.image_transform(train=False)
    began, spent = time.perf_counter(), cpu_seconds()
    rows, broken, batch = [], 0, []

    @torch.no_grad()
    def name():
        rows.extend((network.encode_image(torch.stack(batch)) @ bank.T).argmax(dim=1).tolist())
        batch.clear()

    for path in sorted(Path(folder).glob("*.jpg")):
        try:
            batch.append(transform(Image.open(path).convert("RGB")))
        except OSError:
            broken += 1
        if len(batch) == 64:
            name()
    if batch:
        name()
    Path(output).write_text("\n".join(CLASSES[row] for row in rows))
    return {
        "named": len(rows),
        "noticed as broken": broken,
        "seconds": time.perf_counter() - began,
        "CPU seconds": cpu_seconds() - spent,
    }


def write_files(data_root, folder, n):
    """Write n files; every 200th is broken in one of three ways. Gives how many are."""
    pairs = zk.open_pairs("flickr8k", "test", data_root=data_root)
    photos, broken = [], 0
    for i in range(min(n, len(pairs))):
        path = folder / "first.jpg"
        pairs[i].image.save(path, quality=85)
        photos.append(path.read_bytes())
        path.unlink()
    for i in range(n):
        data = photos[i % len(photos)]
        if i % 200 == 100:
            data = (data[: len(data) // 2], b"", b"no image at all")[broken % 3]
            broken += 1
        (folder / f"{i:05d}.jpg").write_bytes(data)
    return broken


def main(data_root, n="10000"):
    """Let both name the same files."""
    n = int(n)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        folder.mkdir()
        broken = write_files(data_root, folder, n)
        found = {}
        for way in ("ours", "plain"):
            arguments = [way, str(folder), f"{place}/{way}.csv", str(n)]
            done = subprocess.run(
                [sys.executable, __file__, *arguments],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            row = json.loads(done.stdout.splitlines()[-1])
            row["images per second"] = n / row["seconds"]
            row["images per CPU second"] = n / row["CPU seconds"]
            found[way] = {k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}
            print(way, json.dumps(found[way]))
    held = found["ours"]["MB held after each twentieth"]
    facts = {
        "what": f"{n:,} JPEG files of 160 x 160 pixels, {broken} of them broken, named among "
        f"{len(CLASSES)} classes with timm:test_resnet at 64 pixels, one thread of torch; "
        "plain is a loop that opens, embeds and compares, and cannot tell cut-off JPEG files "
        "from whole ones unless Pillow does. The machine was shared: compare CPU seconds.",
        "files": n,
        "broken": broken,
        "memory grown from first to last twentieth, MB": round(held[-1] - held[0], 1),
        **found,
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    ways = {"ours": ours, "plain": plain}
    if sys.argv[1] in ways:
        print(json.dumps(ways[sys.argv[1]](*sys.argv[2:4], int(sys.argv[4]))))
    else:
        main(*sys.argv[1:])
