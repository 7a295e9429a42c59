"""Coverage-guided fuzzing of what reads strangers' files: no error type but ours may come out.

Run ``python benchmarks/fuzz.py`` where atheris (the ``bench`` extra) is installed. Each target is a
process of its own with a fixed seed and a fixed number of executions; it starts from the corpus in
``tests/faults/corpus`` and follows the coverage of our modules and of PIL's. Writes a results
file after each target: executions, errors that are not ours with the line they came from. Targets
that the file has under the same code are left as they are, unless they are named.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "faults" / "corpus"
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
INSTRUMENTED = ["zslkit.data", "zslkit.zeroshot.label_spaces", "PIL"]


def read_manifest(data: bytes) -> None:
    from zslkit.data.manifests import parse_manifest
    from zslkit.data.strict import parse_json

    parse_manifest(parse_json(data, "mine.json"), "mine.json")


def read_captions(data: bytes) -> None:
    """Take the first byte for the kind of member: a text or JSON."""
    from zslkit.data.readers.tars import read_captions

    read_captions(data[1:], "caption" if data[:1] > b"@" else None)


def read_shard(data: bytes) -> None:
    from zslkit.data.readers.tars import walk

    for member in walk(Path("0.tar"), data):
        assert 0 <= member.offset <= member.offset + member.size <= len(data)


def read_index(data: bytes) -> None:
    from zslkit.data.readers.tars import parse

    parse(io.BytesIO(data), Path("x.npz"))


def read_label_space(suffix: str, data: bytes) -> None:
    from zslkit.zeroshot.label_spaces import parse_label_space

    parse_label_space(data, Path(f"mine{suffix}"))


def read_image(data: bytes) -> None:
    from zslkit.data.images import decode_image

    decode_image(data)


TARGETS: dict[str, tuple[Callable[[bytes], None], int]] = {
    "manifest": (read_manifest, 350_000),
    "captions": (read_captions, 550_000),
    "shard": (read_shard, 400_000),
    "index": (read_index, 100_000),
    "label_space": (partial(read_label_space, ".json"), 250_000),
    "label_space_text": (partial(read_label_space, ".txt"), 350_000),
    "image": (read_image, 30_000),
}
"""Function, and how many executions the long run takes."""


def is_ours(error: Exception) -> bool:
    """Tell an error that the library words itself from one that slipped through."""
    return type(error).__name__ in ("ValueError", "BrokenImageError") and any(
        "zslkit" in frame.filename for frame in traceback.extract_tb(error.__traceback__)[-1:]
    )


def place_of(error: Exception) -> str:
    """Name type and line of an error, by which equal ones are told."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "zslkit" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def fuzz(name: str, runs: int, folder: Path) -> None:
    """Execute one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        import PIL.Image

        import zslkit.data.images
        import zslkit.data.manifests
        import zslkit.data.readers.shard_index
        import zslkit.zeroshot.label_spaces  # noqa: F401

    PIL.Image.init()
    warnings.simplefilter("ignore")  # PIL warns of what it repairs
    function, found, count = TARGETS[name][0], {}, 0

    def note() -> None:
        facts = {"executions": count, "errors": found, "cpu_seconds": round(time.process_time(), 1)}
        (folder / "found.json").write_text(json.dumps(facts))

    def once(data: bytes) -> None:
        nonlocal count
        count += 1
        try:
            function(data)
        except Exception as error:
            if not is_ours(error) and (place := place_of(error)) not in found:
                found[place] = str(error)[:200]
                (folder / f"error-{len(found)}").write_bytes(data)
                note()
        if count % 1000 == 0 or count == runs:
            note()

    corpus = folder / "corpus"
    corpus.mkdir()
    limits = [f"-runs={runs}", "-seed=1", "-max_len=4096", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, str(corpus), str(CORPUS / name)], once)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="*", choices=[*TARGETS], default=[])
    parser.add_argument("--share", type=float, default=1.0, help="of the executions of a long run")
    parser.add_argument("--keep", type=Path, help="folder for inputs whose error is not ours")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder = options.one
        fuzz(name, int(TARGETS[name][1] * options.share), Path(folder))
        return
    from zslkit.data.files import write_json
    from zslkit.report.provenance import SOURCES, git_state

    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if results.get("code") != SOURCES:
        results = {"code": SOURCES, **git_state(ROOT), "executions": 0, "targets": {}}
    results |= {"machine": platform.machine(), "cores": os.cpu_count()}
    for name in options.targets or [name for name in TARGETS if name not in results["targets"]]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            command = [sys.executable, __file__, "--one", name, folder, "--share", options.share]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            facts = json.loads(Path(folder, "found.json").read_text())
            facts["seconds"] = round(time.monotonic() - began, 1)
            facts["exit_code"] = done.returncode
            facts["corpus_grown_to"] = len([*Path(folder, "corpus").iterdir()])
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                for path in Path(folder).glob("error-*"):
                    (options.keep / f"{name}-{path.name}").write_bytes(path.read_bytes())
        results["targets"][name] = facts
        print(name, facts, done.stderr[-500:] if done.returncode else "", flush=True)
        results["executions"] = sum(t["executions"] for t in results["targets"].values())
        if options.share == 1:
            write_json(RESULTS, results)


if __name__ == "__main__":
    main()
