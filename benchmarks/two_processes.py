"""Two real processes over tar shards, killed at random moments and started again.

Run ``python benchmarks/two_processes.py`` on Linux; writes a results file. One of the two, or
both, get SIGKILL at a random moment, ten times each. The other one must end by itself. Both are
then started with ``resume=True`` and run to the end. Compared with a run that nobody disturbed: the
pairs that each step of each epoch saw, none lost, none twice; weights, teacher, optimizer and
random states to the last bit; the curves. Options: ``--tries``; ``--who``, one or both;
``--output``, another file.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import platform
import random
import signal
import socket
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zslkit.config import RunConfig
from zslkit.data.files import write_json
from zslkit.report.checkpoints import latest_checkpoint
from zslkit.report.provenance import git_state
from zslkit.report.run_folder import read_history
from zslkit.trainer import train
from zslkit.training.batches import TrainingData

RESULTS = Path(__file__).parent / "results" / "two_processes.json"
SHARDS, PAIRS, BATCH, EPOCHS = 5, 23, 16, 3  # 115 pairs: 7 batches of 16 and 3 pairs left over
STEPS = PAIRS * SHARDS // BATCH * EPOCHS
PATIENCE = 300  # seconds until a process that waits for a dead one is ended, and counts as lost


def write_shards(folder):
    """Write small photographs of noise with a caption each, and their manifest."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for pair in range(PAIRS):
                image, key = io.BytesIO(), f"{shard:05}{pair:04}"
                pixels = rng.integers(256, size=(40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(image, "JPEG")
                for suffix, data in (("jpg", image.getvalue()), ("txt", f"noise {key}".encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    manifest = {
        "name": "mine",
        "kind": "shards",
        **words,
        "splits": {"train": {"shards": ["*.tar"]}},
    }
    (folder / "mine.json").write_text(json.dumps(manifest))


def settings(data, folder, resume):
    return RunConfig(
        manifest=str(data / "mine.json"), zeroshot_manifest=None, image_encoder="timm:test_resnet",
        image_size=32, embedding_dim=16, batch_size=BATCH, epochs=EPOCHS, image_dropout=0.2,
        text_dropout=0.1, checkpoint_every=4, cache_dir=None, output_dir=str(folder / "run"),
        ema_decay=0.9, resume=resume,
    )  # fmt: skip


def note_pairs(folder, rank):
    """Write down which pairs each step sees, as it sees them."""
    stream = TrainingData.stream

    def watched(self, step, end):
        with (folder / f"pairs-{rank}.jsonl").open("a") as file:
            for epoch, batch in stream(self, step, end):
                step += 1
                file.write(json.dumps([step, epoch, batch.keys]) + "\n")
                file.flush()
                yield epoch, batch

    TrainingData.stream = watched


def start(config, folder):
    """Fork both processes: imports are paid once. Give their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    pids = []
    for rank in (0, 1):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 5
        try:
            words = os.open(folder / f"words-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(words, 1)
            os.dup2(words, 2)
            warnings.simplefilter("ignore")
            os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1")
            os.environ.update(MASTER_PORT=str(port), TQDM_DISABLE="1", GLOO_SOCKET_IFNAME="lo")
            note_pairs(folder, rank)
            train(config)
            (folder / "imported.json").write_text(json.dumps(sorted(sys.modules)))
            code = 0
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            code = 4
        finally:
            os._exit(code)
    return pids


def wait(pids):
    """Wait for processes; their exit codes, None for one that had to be ended."""
    end, codes = time.monotonic() + PATIENCE, {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > end:
            for pid in {*pids} - codes.keys():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = None
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def state_of(folder):
    """Hash the last checkpoint; give the rows of the curves and the pairs of every step."""
    found = latest_checkpoint(folder / "run")
    files = sorted(found.glob("*.safetensors"))
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    seen, agree = {}, True
    for rank in (0, 1):
        for line in (folder / f"pairs-{rank}.jsonl").read_text().splitlines():
            step, epoch, keys = json.loads(
                line
            )  # a step that was cut is taken again: the last counts
            agree &= seen.get((step, rank), (epoch, keys)) == (epoch, keys)
            seen[step, rank] = epoch, keys
    steps = {row["step"]: row["loss"] for row in read_history(folder / "run", STEPS)}
    return {"checkpoint": found.name, "weights": hashes, "losses": steps}, seen, agree


def each_pair_once(seen):
    """Tell whether every epoch saw as many different pairs as its batches hold."""
    for epoch in range(EPOCHS):
        keys = [key for own, some in seen.values() if own == epoch for key in some]
        if len(keys) != len({*keys}) or len(keys) != STEPS // EPOCHS * BATCH:
            return False
    return len(seen) == 2 * STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--who", nargs="+", default=["one", "both"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    began, rng = time.monotonic(), random.Random(0)
    with tempfile.TemporaryDirectory() as root:
        data = Path(root, "data")
        data.mkdir()
        write_shards(data)
        whole = Path(root, "whole")
        for _ in range(2):  # the second is as quick as those that are disturbed
            os.system(f"rm -rf {whole}")
            whole.mkdir()
            begin = time.monotonic()
            codes = wait(start(settings(data, whole, False), whole))
            seconds = time.monotonic() - begin
            assert codes == [0, 0], (whole / "words-0.txt").read_text()
            for module in json.loads((whole / "imported.json").read_text()):
                with contextlib.suppress(Exception):  # late imports, paid once for all children
                    importlib.import_module(module)
        expected, seen, _ = state_of(whole)
        assert each_pair_once(seen)
        rows = {}
        for who in options.who:
            row = dict.fromkeys(
                ("tried", "in the midst", "survivor ended by itself", "arrived",
                 "each pair once", "same pairs", "same weights", "same curve"), 0
            )  # fmt: skip
            moments = []
            for number in range(options.tries):
                folder = Path(root, f"{who}-{number}")
                folder.mkdir()
                moment = rng.uniform(0.05, 0.95) * seconds
                pids = start(settings(data, folder, False), folder)
                time.sleep(moment)
                for pid in pids if who == "both" else pids[number % 2 :][:1]:
                    os.kill(pid, signal.SIGKILL)
                codes = wait(pids)
                row["tried"] += 1
                row["in the midst"] += -signal.SIGKILL in codes
                row["survivor ended by itself"] += None not in codes
                done = (folder / "run" / "metrics.jsonl").is_file()
                moments.append(len(read_history(folder / "run", STEPS)) if done else 0)
                row["arrived"] += wait(start(settings(data, folder, True), folder)) == [0, 0]
                found, pairs, agree = state_of(folder)
                row["each pair once"] += each_pair_once(pairs)
                row["same pairs"] += pairs == seen and agree
                row["same weights"] += found["weights"] == expected["weights"]
                row["same curve"] += found["losses"] == expected["losses"]
                if found != expected or pairs != seen:
                    print((folder / "words-0.txt").read_text()[-2000:])
                os.system(f"rm -rf {folder}")
                rows[who] = row | {"steps done when killed": sorted(moments)}
                write(options.output, rows, seconds, began)  # all tries so far
            print(who, rows[who], flush=True)


def write(output, rows, seconds, began):
    results = {
        "what": f"a training of {STEPS} steps in two processes over {SHARDS} shards, one or both "
        "killed at a random moment, restarted; counts of tries",
        "steps": STEPS, "seconds_undisturbed": round(seconds, 2), "killed": rows,
        "cpu_seconds": round(sum(os.times()[:4])), "seconds": round(time.monotonic() - began),
        "machine": {"platform": platform.machine(), "cores": os.cpu_count(),
                    "torch": torch.__version__.split("+")[0]},
        "code": git_state(Path(__file__).parents[1]),
    }  # fmt: skip
    write_json(output, results)


if __name__ == "__main__":
    main()
