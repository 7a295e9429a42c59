"""The journey of docs/own-pairs.md on real photos, command by command, timed.

``python benchmarks/journey.py --data-root FOLDER`` (with ``flickr8k/`` in it) writes 301 photos of
Flickr8k and a table of 333 rows with the faults that the page names, runs every block of the page
as it stands there in that folder, and writes the results file. A command that fails stops it.
"""

import argparse
import csv
import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pillow_heif
from PIL import Image

from zslkit.data.files import write_json
from zslkit.report.provenance import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "journey.json"
PAGE = ROOT / "docs" / "own-pairs.md"
N, MISSING, EMPTY, DAMAGED, HEIC = 301, (20, 21), (30, 31), (40, 41), range(2, 12)
EXPECTED = {"python -m zslkit data verify my_photos.csv": 1}


def write_photos(data_root, folder):
    """Write the photos and the table, with everything wrong that the page names."""
    pillow_heif.register_heif_opener()
    (folder / "photos").mkdir()
    rows = []
    with tarfile.open(data_root / "flickr8k" / "flickr8k-000000.tar") as tar:
        members = {member.name: member for member in tar}
        images = [name for name in members if name.endswith(".jpg")][:N]
        for i, name in enumerate(images, 1):
            record = json.loads(tar.extractfile(members[name[:-3] + "json"]).read())
            own = f"dog_{i:04d}" + (".heic" if i in HEIC else ".jpg")
            rows.append([own, "" if i in EMPTY else record["captions"][0]])
            data = tar.extractfile(members[name]).read()
            if i in HEIC:
                Image.open(io.BytesIO(data)).save(folder / "photos" / own)
            elif i not in MISSING:
                whole = data[: len(data) // 2] if i in DAMAGED else data
                (folder / "photos" / own).write_bytes(whole)
    with (folder / "my_photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "caption"], *rows, *rows[100:132]])


def blocks():
    """Give the commands of the page, and its Python blocks as commands, in order."""
    text = PAGE.read_text("utf-8")
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == "python":
            yield "python block", [sys.executable, "-c", block]
        elif kind != "text":
            for line in block.splitlines():
                words = shlex.split(line)
                module = words[2:] if words[0] == "python" else words
                yield line, [sys.executable, "-m", *module]


def main():
    """Run the page once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    args, commands = parser.parse_args(), []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="journey-") as place:
        folder = Path(place)
        for name in ("notebooks", "data_manifests"):
            (folder / name).symlink_to(ROOT / name)
        write_photos(args.data_root, folder)
        for words, line in blocks():
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
            wall = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
            if done.returncode != EXPECTED.get(words, 0):
                sys.exit(f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            commands.append({"command": words, "wall": round(wall, 1), "cpu": round(cpu, 1)})
            print(commands[-1], flush=True)
    total = {kind: round(sum(c[kind] for c in commands), 1) for kind in ("wall", "cpu")}
    note = "the machine was shared by other programs: wall is an upper bound"
    found = {"commands": commands, "seconds": total, "machine": machine(), "note": note}
    write_json(RESULTS, found)


if __name__ == "__main__":
    main()
