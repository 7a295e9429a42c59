"""Opening millions of pairs in shards: first and second time, memory, order of an epoch.

Run ``python benchmarks/index.py --shards 300 --pairs 10000 --folder F`` on Linux; F receives the
synthetic shards (about 2 GB for each million pairs: one tiny image shared by all) and they are
deleted at the end. Each opening is a process of its own. Writes a results file.
"""

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "index.json"
OPEN = """
import json, sys, time, resource
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return [int(l.split()[1]) // 1024 for l in lines if l.startswith("VmHWM")][0]
from zslkit.data.pairs import open_pairs
from zslkit.data.sampling import epoch_order
imported = peak()
start, cpu = time.perf_counter(), time.process_time()
pairs = open_pairs(sys.argv[1], "train")
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
start = time.process_time()
order = epoch_order(len(pairs), 0, 0)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"pairs": len(pairs), "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
    "cpu_seconds_of_children": round(children.ru_utime + children.ru_stime, 2),
    "peak_mib": peak(), "peak_mib_after_import": imported,
    "order_cpu_seconds": round(time.process_time() - start, 2), "faults": len(pairs.faults),
    "last": [pairs.keys[-1], *pairs.captions[-1]]}))
"""


def write_shards(folder, n_shards, n_pairs):
    """Write shards of gif and txt members; headers come from a template, tarfile is slow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "GIF")
    image = buffer.getvalue()

    def template(size):
        info = tarfile.TarInfo("0" * 14)
        info.size = size
        header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        header[:14], header[148:156] = bytes(14), b" " * 8
        return bytes(header[14:148]), bytes(header[156:]), sum(header)

    def member(template, name, data):
        before, after, total = template
        checksum = b"%06o\0 " % (total + sum(name))
        return b"".join((name, before, checksum, after, data))

    picture = image.ljust(512, b"\0")
    templates = {"gif": template(len(image)), "txt": template(64)}
    for shard in range(n_shards):
        parts = []
        for pair in range(n_pairs):
            key = b"%05d%05d" % (shard, pair)
            caption = b"a synthetic picture, number %05d of shard %05d" % (pair, shard)
            parts.append(member(templates["gif"], key + b".gif", picture))
            text = caption.ljust(63) + b"."
            parts.append(member(templates["txt"], key + b".txt", text.ljust(512, b"\0")))
        (folder / f"{shard:05}.tar").write_bytes(b"".join(parts) + bytes(10240))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    shards = options.folder / "shards"
    shards.mkdir(parents=True)
    try:
        start = time.perf_counter()
        write_shards(shards, options.shards, options.pairs)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
        splits = {"train": {"shards": ["*.tar"]}}
        path = shards / "mine.json"
        path.write_text(json.dumps({"name": "mine", "kind": "shards", **words, "splits": splits}))
        found = {}
        for name in ("first", "second", "third"):
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True
            )
            found[name] = json.loads(done.stdout)
            print(name, found[name], flush=True)
        index = sum(file.stat().st_size for file in shards.glob(".zslkit-index/*"))
        results = {
            "what": f"open_pairs on {options.shards} shards of {options.pairs} synthetic pairs "
            "(.gif and .txt), each in a new process, after the shards were written",
            "shard_gib": round(sum(f.stat().st_size for f in shards.glob("*.tar")) / 2**30, 2),
            "index_mib": round(index / 2**20, 1),
            "openings": found,
            "machine": {"platform": platform.machine(), "cores": os.cpu_count()},
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    finally:
        shutil.rmtree(shards)


if __name__ == "__main__":
    main()
