"""Faults put into runs on purpose, each with what must be left of the run.

``SCENARIOS`` is the table: the words for a fault, its function and how often ``make faults`` tries
it. A function tries one fault once and returns whether the run survived, and whether what came of
it equals the undisturbed run to the last bit. All training happens in forked children: imports
are paid once, and torch's autograd does not survive a fork.
"""

import contextlib
import errno
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import zslkit.checkpoint
import zslkit.data.cache
import zslkit.data.parts
import zslkit.teacher
import zslkit.trainer
from zslkit.config import RunConfig
from zslkit.data.named import training_pairs
from zslkit.data.sampling import epoch_order
from zslkit.report.checkpoints import latest_checkpoint
from zslkit.report.run_folder import read_history, read_settings, recorded_facts
from zslkit.trainer import train

STEPS, EVERY = 10, 3  # two epochs; checkpoints come in the middle of things
WEIGHTS = ("model", "teacher", "optimizer")  # the last holds the random states, too
FROZEN = {"image_tower": "frozen", "text_tower": "frozen"}
RUNS = {
    "moving average": {},
    "previous generation": {"teacher": "previous", "generation_epochs": 1},
    "frozen teacher": {"teacher": "frozen"},
    "progressive, SGD": {"soft_targets": "progressive", "optimizer": "sgd"},
    "transport, two chunks": {"soft_targets": "transport", "accumulation": 2},
    "trust, frozen towers": {**FROZEN, "pair_trust": True, "pair_trust_epoch": 1, "cache_dir": "x"},
    "trust, trained towers": {"pair_trust": True, "pair_trust_epoch": 1},
}
"""Every teacher, with dropout; towers that train have BatchNorm."""
ONE_PROCESS = [name for name in RUNS if name != "trust, trained towers"]


class Outcome(NamedTuple):
    """What became of one try: how many faults it held, were they survived, were results equal."""

    tried: int
    survived: int
    equal: int


@dataclass
class Ground:
    """A folder with the data, and undisturbed runs to compare with, made when first asked for."""

    folder: Path

    def __post_init__(self):
        words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
        manifest = {"name": "tiny", "kind": "toy", **words, "image_size": 32}
        manifest["splits"] = {split: {"scenes": split, "n": 20} for split in ("train", "test")}
        (self.folder / "tiny.json").write_text(json.dumps(manifest))
        self.made = cache(self._make)
        self.times: dict[tuple[str, int], float] = {}

    def config(self, name: str, folder: Path, **changes) -> RunConfig:
        """Give the settings of a run in a folder."""
        own = {**RUNS[name], **changes}
        if own.get("cache_dir"):
            own["cache_dir"] = str(folder / "cache")
        if own.get("teacher") == "frozen":
            own["teacher_run"] = str(self.whole("moving average"))
        return RunConfig(**{
            "manifest": str(self.folder / "tiny.json"), "zeroshot_manifest": None,
            "image_encoder": "timm:test_resnet", "image_size": 32, "embedding_dim": 16,
            "batch_size": 4, "epochs": 2, "cache_dir": None, "image_dropout": 0.2,
            "text_dropout": 0.1, "checkpoint_every": EVERY, "output_dir": str(folder / "run"),
            **own,
        })  # fmt: skip

    def whole(self, name: str, processes: int = 1) -> Path:
        """Give the folder of an undisturbed run."""
        return self.made(name, processes)

    def _make(self, name: str, processes: int) -> Path:
        folder = self.folder / f"whole {processes}" / name.replace(" ", "_").replace(",", "")
        folder.mkdir(parents=True)
        imported = folder / "imported.json"

        def note_imports() -> None:
            os_exit = os._exit

            def leave(code: int) -> None:
                imported.write_text(json.dumps(sorted(sys.modules)))
                os_exit(code)

            os._exit = leave

        assert {*map(ended, start(self.config(name, folder), processes, note_imports))} == {0}
        for module in json.loads(imported.read_text()):  # late imports, paid once for all children
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        return folder / "run"

    def seconds(self, name: str, processes: int = 1) -> float:
        """How long an undisturbed run takes here, once all is imported."""
        self.whole(name, processes)
        if (name, processes) not in self.times:
            began, folder = time.monotonic(), Path(tempfile.mkdtemp(dir=self.folder))
            assert {*map(ended, start(self.config(name, folder), processes))} == {0}
            self.times[name, processes] = time.monotonic() - began
        return self.times[name, processes]


def spawn(config: RunConfig, prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a process that trains; give its number. It ends with 0, 128 + signal, or 3 to 5."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 5
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        warnings.simplefilter("ignore")
        prepare()
        run = train(config)
        code = 128 + run.stopped_by if run.facts.interrupted else 0
    except BlockingIOError:
        code = 3
    except (FloatingPointError, OSError, ValueError, RuntimeError):
        code = 4
        error_of(config).write_bytes(traceback.format_exc().encode())
    finally:
        os._exit(code)


def error_of(config: RunConfig) -> Path:
    """Say where a process that ended with 4 leaves its error: beside the folder of the run."""
    return Path(f"{config.output_dir}.error.txt")


def start(config: RunConfig, processes: int, prepare: Callable[[], None] = lambda: None) -> list:
    """Fork processes that train together, over gloo on the loopback; give their numbers."""
    if processes == 1:
        return [spawn(config, prepare)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": str(processes)}
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"

    def join(rank: int) -> None:
        os.environ.update(place, RANK=str(rank))
        prepare()

    return [spawn(config, partial(join, rank)) for rank in range(processes)]


def ended(pid: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int, patience: float) -> int | None:
    """Wait for a process for some seconds; None if it still runs."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def same(one: Path, other: Path) -> bool:
    """Tell whether two runs ended with equal weights, teachers, moments, generators and curves."""
    folders, hashes, losses = [latest_checkpoint(one), latest_checkpoint(other)], [], []
    for run_dir, folder in zip((one, other), folders, strict=True):
        files = [folder / f"{name}.safetensors" for name in WEIGHTS]
        hashes.append([hashlib.sha256(f.read_bytes()).digest() for f in files if f.is_file()])
        losses.append([row["loss"] for row in read_history(run_dir, STEPS)])
    return folders[0].name == folders[1].name and hashes[0] == hashes[1] and losses[0] == losses[1]


def finish(ground: Ground, name: str, config: RunConfig, processes: int = 1) -> tuple[int, int]:
    """Let a disturbed run go on to its end: did it arrive, and was it equal."""
    resumed = start(config.model_copy(update={"resume": True}), processes)
    arrived = {*map(ended, resumed)} == {0}
    return int(arrived), int(
        arrived and same(Path(config.output_dir), ground.whole(name, processes))
    )


def killed(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Kill a run again and again, at any moment, until it gets through."""
    name = rng.choice(ONE_PROCESS)
    config, longest, kills = ground.config(name, folder), 1.2 * ground.seconds(name), 0
    while True:
        pid = spawn(config.model_copy(update={"resume": kills > 0}))
        code = has_ended(pid, rng.uniform(0.02, longest))
        if code is None:
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
        kills += code == -signal.SIGKILL
        if code == 0 or kills == 12:
            break
        if code != -signal.SIGKILL:
            return Outcome(kills + 1, 0, 0)
    arrived, equal = finish(ground, name, config)
    return Outcome(kills, arrived * kills, equal * kills)


def killed_in_two(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Kill one of two processes, or both at once, again and again until they get through.

    Whoever is left is ended as torchrun does it: by SIGTERM, and SIGKILL if it still waits.
    """
    name, most = rng.choice([*RUNS]), 6
    config, longest, kills = ground.config(name, folder), 1.1 * ground.seconds(name, 2), 0
    while kills < most:
        pids = start(config.model_copy(update={"resume": kills > 0}), 2)
        doomed = rng.choice([pids[:1], pids[1:], pids])
        time.sleep(rng.uniform(0.02, longest))
        codes: dict[int, int | None] = {pid: has_ended(pid, 0.001) for pid in pids}
        hit = [pid for pid in doomed if codes[pid] is None]
        for pid in hit:
            os.kill(pid, signal.SIGKILL)
        for number, patience in ((signal.SIGTERM, 0.5), (signal.SIGKILL, 30)):
            for pid in (pid for pid in pids if codes[pid] is None):
                codes[pid] = has_ended(pid, patience if hit else 30)
                if codes[pid] is None:
                    os.kill(pid, number)
        codes = {pid: ended(pid) if code is None else code for pid, code in codes.items()}
        kills += bool(hit)
        if not hit:
            if {*codes.values()} != {0}:
                return Outcome(kills + 1, 0, 0)
            break
    arrived, equal = finish(ground, name, config, processes=2)
    return Outcome(kills, arrived * kills, equal * kills)


def signalled(ground: Ground, folder: Path, rng: random.Random, number: int) -> Outcome:
    """Send a signal at any moment: every step taken is saved, the code says which signal."""
    name = rng.choice(ONE_PROCESS)
    config, seconds = ground.config(name, folder), ground.seconds(name)
    pid = spawn(config)
    until = time.monotonic() + 60
    lock = Path(config.output_dir, "lock.json")
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.8 * seconds))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    code, run_dir = ended(pid), Path(config.output_dir)
    rows = read_history(run_dir, STEPS)
    # before the loop nothing has been done and the signal ends the process as it ends any other
    taken = {0: STEPS, 128 + number: len(rows), -number: 0}.get(code)
    newest = latest_checkpoint(run_dir)
    saved = int(newest.name.removeprefix("step-")) if newest else 0
    arrived, equal = finish(ground, name, config)
    return Outcome(1, int(bool(arrived) and taken == saved == len(rows)), equal)


WRITES = ("model.safetensors", "teacher.safetensors", "optimizer.safetensors", "state.json",
          "manifest.json", "config.json", "places.json", "inputs.json", "checksums.json",
          "metrics.jsonl", "run.json", "card.md", "lock.json", "features", "facts of features",
          "part of features")  # fmt: skip
"""Every kind of write of a run: its checkpoints, its folder, its cache."""


def kind_of_write(path: Path) -> str:
    """Say which of ``WRITES`` a file is, or a temporary one that will become it."""
    if path.parent.name == "cache":
        return "features" if ".npy" in path.name else "facts of features"
    if path.parent.suffix == ".parts" and "safetensors" in path.name:
        return "part of features"
    return next((kind for kind in WRITES if kind in path.name), "another")


def disk_full(ground: Ground, folder: Path, rng: random.Random, target: str) -> Outcome:
    """Let one kind of write stop half-way for want of space, its first time or a later one."""
    cached = "features" in target
    name = "trust, frozen towers" if cached else rng.choice(["moving average", "frozen teacher"])
    name = "moving average" if target == "teacher.safetensors" else name
    config, later = ground.config(name, folder), rng.randrange(2)
    later *= target in (*(f"{part}.safetensors" for part in WEIGHTS), "state.json", "manifest.json")

    def prepare() -> None:
        seen = [0]

        def no_space(path: Path, write: Callable[[Path], None]) -> None:
            seen[0] += kind_of_write(path) == target
            write(path)
            if kind_of_write(path) == target and seen[0] > later:
                os.truncate(path, path.stat().st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        write_text, save = Path.write_text, np.save
        Path.write_text = lambda self, *a, **k: no_space(self, lambda p: write_text(p, *a, **k))
        np.save = lambda file, rows: no_space(Path(file.name), lambda p: save(file, rows))
        for module in (zslkit.checkpoint, zslkit.data.parts):
            module.save_file = partial(limited, no_space, module.save_file)
        zslkit.data.parts.ITEMS = 4

        def log(self, row, n_images, before=zslkit.trainer.Monitor.log):
            if target == "metrics.jsonl" and row["step"] == 4:
                self.file.write('{"step": 4, "lo')
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            before(self, row, n_images)

        zslkit.trainer.Monitor.log = log

    code = ended(spawn(config, prepare))
    arrived, equal = finish(ground, name, config)
    return Outcome(1, int(code == 4 and arrived), equal)


def limited(no_space: Callable, save: Callable, tensors, path: Path, *more) -> None:
    """Save tensors where there is no space."""
    no_space(Path(path), lambda p: save(tensors, p, *more))


def two_at_once(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Start two runs in one folder: one is refused, the other is as if it had been alone."""
    name = "moving average"
    config = ground.config(name, folder)
    codes = sorted(map(ended, [spawn(config), spawn(config)]))
    equal = codes == [0, 3] and same(Path(config.output_dir), ground.whole(name))
    return Outcome(1, int(codes == [0, 3]), int(equal))


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flipped(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Flip a bit of every file of a checkpoint, a cache and a run, one after the other."""
    whole, seen, equal = ground.whole("trust, frozen towers"), 0, 0
    shutil.copytree(whole.parent, folder / "copy")
    run_dir, caches = folder / "copy" / "run", folder / "copy" / "cache"
    newest = latest_checkpoint(run_dir)
    before = sorted(newest.parent.iterdir())[-2]
    paths = [*newest.iterdir(), *(p for p in run_dir.iterdir() if p.is_file()), *caches.iterdir()]
    for path in paths:
        sound = path.read_bytes()
        flip(path, rng)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                if path.parent == newest:
                    equal += latest_checkpoint(run_dir) == before
                elif path.parent == caches:
                    equal += zslkit.data.cache._stored(path.with_suffix(".npy")) is None
                else:
                    read_history(
                        run_dir, STEPS, json.loads((newest / "state.json").read_text())["history"]
                    )
                    recorded_facts(run_dir, STEPS)
                    read_settings(run_dir)
                    equal += 1  # what is used does not depend on it
            except ValueError as error:
                said.append(error)
                equal += 1  # refused: nothing false is used
        text = " ".join(str(getattr(one, "message", one)) for one in said)
        # a bit of the list may make any file look damaged: which one is at fault cannot be told
        seen += path.name in text or (path.name == "manifest.json" and str(newest) in text)
        path.write_bytes(sound)
    shutil.rmtree(folder / "copy")
    return Outcome(len(paths), seen, equal)


PLACES = ("pixels", "gradient", "weight", "teacher")


def not_finite(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Put NaN or Inf somewhere at some step: the last good checkpoint stands, the end is equal."""
    place, value = rng.choice(PLACES), rng.choice([float("nan"), float("inf")])
    step = rng.choice([3, 6, STEPS, rng.randrange(1, STEPS)])  # checkpoints, the last, any
    config, name = ground.config("moving average", folder), "moving average"

    def prepare() -> None:
        backward, encode, update = (zslkit.trainer.backward, zslkit.training.step.encode,
                                    zslkit.teacher.Teacher.update)  # fmt: skip
        count = [0]

        def counted(model, *args):
            count[0] += 1
            found = backward(model, *args)
            if place == "gradient" and count[0] == step:
                model.text_projection[1].weight.grad[0, 0] = value
            return found

        def spoilt_encode(model, batch):
            if place == "pixels" and count[0] == step:
                batch.images = batch.images.float() / 255
                batch.images[1, 0, 5, 5] = value
            return encode(model, batch)

        def spoilt_update(self, student):
            update(self, student)
            if count[0] == step and place in ("weight", "teacher"):
                model = student if place == "weight" else self.model
                model.text_projection[1].weight.data[0, 0] = value

        zslkit.trainer.backward, zslkit.training.step.encode = counted, spoilt_encode
        zslkit.teacher.Teacher.update = spoilt_update

    code = ended(spawn(config, prepare))
    run_dir = Path(config.output_dir)
    newest = latest_checkpoint(run_dir)
    last_good = (step - 1) // EVERY * EVERY
    if place in ("weight", "teacher") and step % EVERY and step != STEPS:
        stands = newest is None or int(newest.name[5:]) <= step  # the next step finds it
    else:
        stands = (int(newest.name[5:]) if newest else 0) == last_good
    if place in ("weight", "teacher") and (step % EVERY == 0 or step == STEPS):
        words = f"step {step} left 1 tensor"  # found before it was saved
    else:
        # what an optimizer step has spoilt shows in the batch after it
        words = named_batch(config, step + (place in ("weight", "teacher")))
    named = code == 4 and words in error_of(config).read_text()
    arrived, equal = finish(ground, name, config)
    return Outcome(1, int(named and stands and arrived), equal)


def named_batch(config: RunConfig, step: int) -> str:
    """Give the words by which the error must name the batch of a step, counted from 1."""
    pairs = training_pairs(config)
    epoch, within = divmod(step - 1, len(pairs) // config.batch_size)
    rows = epoch_order(len(pairs), config.seed, epoch)[within * config.batch_size :][:3]
    return f"at batch {within} of epoch {epoch} (keys {', '.join(pairs.keys[i] for i in rows)} …)"


def dead_worker(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Kill a process that reads images."""
    name = "moving average"
    config, step = ground.config(name, folder), rng.randrange(1, STEPS)

    def prepare() -> None:
        log = zslkit.trainer.Monitor.log

        def kill_worker(self, row, n_images):
            import multiprocessing

            log(self, row, n_images)
            if row["step"] == step:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

        zslkit.trainer.Monitor.log = kill_worker

    code = ended(spawn(config.model_copy(update={"workers": 1}), prepare))
    arrived, equal = finish(ground, name, config)
    return Outcome(1, int(bool(arrived) and code in (0, 4)), equal)


def open_shard(folder: Path, data: bytes):
    """Open the pairs of one shard."""
    from zslkit.data.pairs import open_pairs

    (folder / "0.tar").write_bytes(data)
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    content = {"name": "mine", "kind": "shards", **words, "caption_field": "captions"}
    content["splits"] = {"train": {"shards": ["0.tar"]}}
    (folder / "mine.json").write_text(json.dumps(content))
    return open_pairs(folder / "mine.json", "train", quiet=True)


@cache
def real_shard() -> bytes:
    """91 pairs of Flickr8k: few enough that one lost pair is over the limit of a harvest."""
    default = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("ZSLKIT_DATA", default))
    return (root / "flickr8k" / "flickr8k-000008.tar").read_bytes()


def shard_outcome(folder: Path, data: bytes, keys: list[str]) -> Outcome:
    """Damage is named with shard and offset, or nothing is lost; "equal" where nothing was."""
    try:
        pairs = open_shard(folder, data)
    except ValueError as error:
        return Outcome(1, int("0.tar" in str(error)), 0)
    all_there = sorted(pairs.keys.tolist() + list(pairs.skipped)) == keys
    return Outcome(1, int(all_there and (not pairs.skipped or bool(pairs.faults))), int(all_there))


def shard_bit(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Flip one bit of a real shard, half of them in headers: those are a small part of it."""
    shard = real_shard()
    headers = [i for i in range(0, len(shard), 512) if shard[i + 257 : i + 262] == b"ustar"]
    start, size = (rng.choice(headers), 512) if rng.random() < 0.5 else (0, len(shard))
    damaged = bytearray(shard)
    damaged[start + rng.randrange(size)] ^= 1 << rng.randrange(8)
    return shard_outcome(folder, bytes(damaged), shard_keys(folder))


def shard_cut(ground: Ground, folder: Path, rng: random.Random) -> Outcome:
    """Cut a real shard, half of them between two blocks, as full disks and broken downloads do."""
    shard = real_shard()
    last = len(shard.rstrip(b"\0"))  # behind it lies the end mark
    place = rng.randrange(last) if rng.random() < 0.5 else rng.randrange(last // 512) * 512
    return shard_outcome(folder, shard[:place], shard_keys(folder))


_KEYS: list[str] = []


def shard_keys(folder: Path) -> list[str]:
    """Keys of the sound shard."""
    if not _KEYS:
        _KEYS.extend(sorted(open_shard(folder, real_shard()).keys.tolist()))
    return _KEYS


SCENARIOS = {
    "killed at any moment": (killed, 200),
    "killed in two processes": (killed_in_two, 60),
    "SIGTERM": (partial(signalled, number=signal.SIGTERM), 20),
    "SIGHUP": (partial(signalled, number=signal.SIGHUP), 20),
    "SIGUSR1": (partial(signalled, number=signal.SIGUSR1), 20),
    **{f"disk full: {kind}": (partial(disk_full, target=kind), 4) for kind in WRITES},
    "two runs in one folder": (two_at_once, 20),
    "NaN or Inf in pixels, gradient, weight, teacher": (not_finite, 40),
    "a reading process dies": (dead_worker, 6),
    "a bit flipped in checkpoint, cache or run": (flipped, 200),
    "a bit flipped in a Flickr8k shard": (shard_bit, 400),
    "a Flickr8k shard cut": (shard_cut, 400),
}
"""Words, function, and how many faults the long run puts in."""


def main(folder: str, tries: str) -> None:
    """Try each fault so often as a JSON object says; print what became of them as another."""
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    ground, outcomes = Ground(Path(folder)), {}
    for words, count in json.loads(tries).items():
        found = []
        for number in range(count):
            own = Path(folder, f"{len(outcomes)}-{number}")
            own.mkdir()
            found.append(SCENARIOS[words][0](ground, own, random.Random(number)))
        outcomes[words] = [sum(column) for column in zip(*found, strict=True)]
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
