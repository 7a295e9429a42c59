"""One set of photos in the forms in which people keep them: trained, evaluated, explored.

``python benchmarks/own_sources.py --data-root FOLDER`` (with ``flickr8k/`` in it) writes the first
300 training photos of Flickr8k in each form, with the form's own tool where it has one, and runs
the three sentences that ``SENTENCES`` holds, as they would be typed, each in a process of its own.
It fills the results file form by form and goes on where it was stopped; ``--forms`` chooses some.
"""

import argparse
import io
import json
import resource
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pandas as pd

import zslkit as zk
from zslkit.data.files import write_json
from zslkit.report.provenance import machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "own_sources.json"
N = 300
SENTENCES = {
    "train": "python -m zslkit train --preset laptop --manifest {source} --output-dir runs/{name}",
    "evaluate": "python -m zslkit evaluate runs/{name}",
    "explore": "papermill notebooks/07_explore.ipynb explore.ipynb -p run_dir runs/{name}",
}


def read_photos(data_root):
    """Give (name, bytes of the JPEG, captions) of the first training photos of Flickr8k."""
    photos = []
    with tarfile.open(data_root / "flickr8k" / "flickr8k-000000.tar") as tar:
        members = {member.name: member for member in tar}
        for name in [name for name in members if name.endswith(".jpg")][:N]:
            record = members[name.removesuffix("jpg") + "json"]
            captions = json.loads(tar.extractfile(record).read())["captions"]
            photos.append((name, tar.extractfile(members[name]).read(), captions))
    return photos


def frame_of(photos, image="image", caption="caption"):
    """Tabulate a row per caption."""
    rows = [(name, text) for name, _, captions in photos for text in captions]
    return pd.DataFrame(rows, columns=[image, caption])


def write_images(photos, folder):
    """Write the photos as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data, _ in photos:
        (folder / name).write_bytes(data)


def write_table(photos, folder, name, save, **columns):
    """Write a table beside a folder of photos."""
    write_images(photos, folder / "photos")
    save(frame_of(photos, **columns), folder / name)
    return folder / name


def write_coco(photos, folder, whole):
    """Write COCO's layout; of it the folder, or one file, is named."""
    write_images(photos, folder / "train2017")
    images = [{"id": i, "file_name": name} for i, (name, *_) in enumerate(photos)]
    notes = [{"image_id": i, "caption": text}
             for i, (*_, captions) in enumerate(photos) for text in captions]  # fmt: skip
    notes = [{"id": number, **note} for number, note in enumerate(notes)]
    path = folder / "annotations" / "captions_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return folder if whole else path


def write_sidecars(photos, folder):
    """Write as img2dataset's output format ``files`` does: one caption for each photo."""
    for i, (_, data, captions) in enumerate(photos):
        stem = folder / f"{i // 100:05}" / f"{i:09}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".jpg").write_bytes(data)
        stem.with_suffix(".txt").write_text(captions[0])
    return folder


def write_metadata(photos, folder):
    """Write as Hugging Face's ImageFolder wants it."""
    write_images(photos, folder)
    frame_of(photos, "file_name", "text").to_csv(folder / "metadata.csv", index=False)
    return folder


def write_shards(photos, folder):
    """Write tars of 100 samples, captions in a field of the .json."""
    folder.mkdir(parents=True)
    for start in range(0, len(photos), 100):
        with tarfile.open(folder / f"{start // 100:05}.tar", "w") as tar:
            for i, (_, data, captions) in enumerate(photos[start : start + 100], start):
                record = json.dumps({"caption": captions[0]}).encode()
                for suffix, content in (("jpg", data), ("json", record)):
                    info = tarfile.TarInfo(f"{i:09}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def dataset_of(photos):
    """Make a Dataset that holds the images."""
    from datasets import Dataset, Features, Image, List, Value

    images = [{"bytes": data, "path": None} for _, data, _ in photos]
    columns = {"image": images, "caption": [captions for *_, captions in photos]}
    features = Features({"image": Image(), "caption": List(Value("string"))})
    return Dataset.from_dict(columns, features=features)


def write_dataset(photos, folder, parquet):
    """Write with ``datasets``: Parquet, or its own folder."""
    folder.mkdir(parents=True)
    path = folder / ("photos.parquet" if parquet else "saved")
    dataset_of(photos).to_parquet(path) if parquet else dataset_of(photos).save_to_disk(path)
    return path


def form(name, save, **columns):
    """Give a writer of one kind of table."""
    return lambda photos, folder: write_table(photos, folder, name, save, **columns)


def with_pandas(method, **options):
    """Give a function that saves a table by one of its methods."""
    return lambda frame, path: getattr(frame, method)(path, **options)


FORMS = {
    "CSV": form("mine.csv", with_pandas("to_csv", index=False), image="filename"),
    "CSV of a spreadsheet (;)": form(
        "mine.csv", with_pandas("to_csv", index=False, sep=";", encoding="utf-8-sig"), image="file"
    ),
    "TSV": form("mine.tsv", with_pandas("to_csv", index=False, sep="\t"), caption="title"),
    "Parquet of names": form("mine.parquet", with_pandas("to_parquet")),
    "JSONL": form("mine.jsonl", with_pandas("to_json", orient="records", lines=True)),
    "COCO's JSON": lambda photos, folder: write_coco(photos, folder, whole=False),
    "COCO's folder": lambda photos, folder: write_coco(photos, folder, whole=True),
    "images with .txt (img2dataset files)": write_sidecars,
    "images with metadata.csv (ImageFolder)": write_metadata,
    "tar shards": write_shards,
    "Parquet of images (datasets)": lambda p, folder: write_dataset(p, folder, parquet=True),
    "folder of save_to_disk (datasets)": lambda p, folder: write_dataset(p, folder, parquet=False),
}


def run(sentence, folder):
    """Run a sentence as typed; give what it printed, seconds that passed and seconds of CPU."""
    words = shlex.split(sentence)
    line = [sys.executable, "-m", *(words[2:] if words[0] == "python" else words)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{sentence}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    used = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    return done.stdout, {"wall": round(seconds, 1), "cpu": round(used, 1)}


def main():
    """Measure the forms that are asked for and not yet known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {"forms": {}}
    photos = read_photos(args.data_root)
    for name in (name for name in args.forms if name not in found["forms"]):
        with tempfile.TemporaryDirectory(prefix="own-sources-") as place:
            folder = Path(place)
            for link in ("notebooks", "data_manifests"):
                (folder / link).symlink_to(ROOT / link)
            source = FORMS[name](photos, folder / "set").relative_to(folder)
            pairs = zk.open_pairs(folder / source, "all", quiet=True)
            row = {"opens": pairs.understood[0].partition(": ")[2], "images": len(pairs)}
            row |= {"captions": sum(map(len, pairs.captions)), "sentences": {}, "seconds": {}}
            for step, sentence in SENTENCES.items():
                typed = sentence.format(source=source, name="mine")
                printed, row["seconds"][step] = run(typed, folder)
                row["sentences"][step] = typed
                if step == "evaluate":
                    row["recall@10"] = json.loads(printed)["retrieval"]["text_to_image"][
                        "recall@10"
                    ]
            results = json.loads((folder / "reports/07_explore/results.json").read_text("utf-8"))
            row["first class"] = results["extra"]["first class"]
        found["forms"][name] = row
        found |= {"photos": N, "machine": machine(), "note": "the machine was shared: read cpu"}
        write_json(RESULTS, found)
        print(name, row["seconds"], flush=True)


if __name__ == "__main__":
    main()
