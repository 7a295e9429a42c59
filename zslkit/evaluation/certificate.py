"""Proof on your towers and data that no way of splitting a batch changes its gradients."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.data.files import whole, write_text
from zslkit.encoders.dual import build_dual_encoder
from zslkit.training import dist
from zslkit.training.batches import TrainingData
from zslkit.training.device import choose_device, repeatable
from zslkit.training.step import backward

LIMIT = 1e-6
"""Relative deviation up to which gradients count as equal; rounding in float64 is far below."""

_CHUNKS = (2, 4)
_PATIENCE = 600  # seconds until processes that wait for each other are ended


class Deviation(NamedTuple):
    """How far one group of gradients, or of BatchNorm buffers, is from that of the whole batch."""

    way: str
    group: str
    deviation: float


class Certificate(NamedTuple):
    """What :func:`certify_gradients` found."""

    pairs: int
    deviations: tuple[Deviation, ...]

    @property
    def holds(self) -> bool:
        """Whether every deviation is at most ``LIMIT``."""
        return all(row.deviation <= LIMIT for row in self.deviations)

    def table(self) -> list[list[str]]:
        """Give a row for each way, the largest deviation of each group in a column of its own."""
        groups = list(dict.fromkeys(row.group for row in self.deviations))
        cells = {(row.way, row.group): f"{row.deviation:.0e}" for row in self.deviations}
        ways = dict.fromkeys(row.way for row in self.deviations)
        return [["", *groups], *([way, *(cells.get((way, g), "") for g in groups)] for way in ways)]

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        worst = max(self.deviations, key=lambda row: row.deviation)
        verdict = "equal" if self.holds else "NOT equal"
        lines.append(
            f"{verdict} to the whole batch of {self.pairs} pairs: largest relative deviation "
            f"{worst.deviation:.1e} ({worst.way}, {worst.group}), limit {LIMIT:.0e}"
        )
        return "\n".join(lines)


def certify_gradients(config: RunConfig, pairs: int = 32, processes: int = 1) -> Certificate:
    """Compare a step's gradients in chunks and processes with those of the whole batch.

    In float64, so that a deviation is one of the method and not of rounding, and without dropout,
    whose masks differ between chunks by intent.

    Parameters
    ----------
    config : RunConfig
        Towers, data, objective and teacher; its ``batch_size`` and ``accumulation`` do not count.
    pairs : int
        Size of the batch, drawn from the training pairs; a multiple of 4 and of ``processes``.
    processes : int
        Above 1, so many processes on this machine's CPU as well, each whole and in two chunks.

    Returns
    -------
    Certificate
        Relative deviations (norm of the difference by norm) by way and parameter group.

    Raises
    ------
    ValueError
        If ``pairs`` cannot be split so, or a process fails.
    """
    if pairs < 4 or pairs % 4 or processes < 1 or pairs % (4 * processes):
        raise ValueError(
            f"pairs={pairs} must be a multiple of 4 x processes={processes}, at least 4"
        )
    changes = {"batch_size": pairs, "accumulation": 1, "max_pairs": pairs, "epochs": 1}
    changes |= {"precision": "float32", "image_dropout": 0.0, "text_dropout": 0.0, "workers": 0}
    config = config.model_copy(update=changes)
    reference = measure(config)
    deviations = []

    def note(way: str, found: dict[str, Tensor]) -> None:
        deviations.extend(Deviation(way, *row) for row in _compare(found, reference).items())

    for chunks in _CHUNKS:
        note(f"{chunks} chunks", measure(config.model_copy(update={"accumulation": chunks})))
    if processes > 1:
        for chunks in (1, 2):
            way = f"{processes} processes" + (f" x {chunks} chunks" if chunks > 1 else "")
            changed = config.model_copy(update={"accumulation": chunks, "device": "cpu"})
            note(way, _in_processes(changed, processes))
    return Certificate(pairs, tuple(deviations))


def measure(config: RunConfig) -> dict[str, Tensor]:
    """Give gradients and BatchNorm buffers after one backward pass over the first batch."""
    device = choose_device(config.device)
    model = build_dual_encoder(config).to(device)
    data = TrainingData(model, config, device)  # features of frozen towers keep their cache
    _make_exact(model)
    teacher = build_teacher(model, config)
    if teacher is not None:
        teacher.ready.fill_(True)
    _, batch = next(data.stream(0, 1))
    model.train()
    with repeatable(device):
        backward(model, teacher, batch, config, progress=0.5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    dist.average_gradients(parameters)
    found = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            for kind in ("running_mean", "running_var"):
                found[f"BatchNorm {name}.{kind}"] = getattr(module, kind).cpu()
    return found


def _make_exact(model: nn.Module) -> None:
    """Compute in float64, whatever a tower casts to in between, and without dropout."""

    def widen(module: nn.Module, inputs: tuple) -> tuple:
        return tuple(
            value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in inputs
        )

    model.double()
    for module in model.modules():
        module.register_forward_pre_hook(widen)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def _compare(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Give the largest relative deviation of each group's tensors."""
    largest: dict[str, float] = defaultdict(float)
    norms: dict[str, float] = defaultdict(float)
    for name, expected in reference.items():
        norms[_group(name)] = max(norms[_group(name)], expected.norm().item())
    for name, expected in reference.items():
        group = _group(name)
        difference = (found[name] - expected).norm().item() if name in found else torch.inf
        # a tensor whose gradient vanishes (a bias before BatchNorm) is judged by its group's size
        size = max(expected.norm().item(), 1e-3 * norms[group], 1e-30)
        largest[group] = max(largest[group], difference / size)
    return dict(largest)


def _group(name: str) -> str:
    if name.startswith("BatchNorm "):
        return "BatchNorm"
    first = name.partition(".")[0]
    return "scales" if first.startswith(("log_", "logit_")) else first.replace("_", " ")


def _in_processes(config: RunConfig, processes: int) -> dict[str, Tensor]:
    """Measure in real processes over gloo on the loopback."""
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="zslkit-certify-") as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        job, output = Path(folder, "config.json"), Path(folder, "found.pt")
        write_text(job, config.model_dump_json())
        free.close()
        package = Path(__file__).parents[2]
        search = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        common = os.environ | {"PYTHONPATH": search, "WORLD_SIZE": str(processes)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TQDM_DISABLE": "1"}
        if sys.platform == "linux":
            common.setdefault("GLOO_SOCKET_IFNAME", "lo")
        command = [sys.executable, "-m", __name__, str(job), str(output)]
        running, errors = [], Path(folder, "errors.txt")
        for rank in range(processes):
            environment = common | {"RANK": str(rank)}
            with errors.open("ab") as words:
                running.append(subprocess.Popen(command, env=environment, stderr=words))
        try:
            _wait(running)
        finally:
            for process in running:
                process.kill()
                process.wait()
        if any(process.returncode for process in running):
            message = errors.read_text(encoding="utf-8", errors="replace").strip()
            raise ValueError(f"a process failed: {message[-1000:]}")
        return torch.load(output, weights_only=True)


def _wait(running: list[subprocess.Popen]) -> None:
    """Wait until all have ended or one has failed: the others would wait for it for ever."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        codes = [process.poll() for process in running]
        if None not in codes or any(codes):
            return
        time.sleep(0.1)


def main(job: str, output: str) -> None:
    """Measure as one of several processes; the first writes what came of it."""
    torch.set_num_threads(1)
    config = RunConfig.model_validate(json.loads(Path(job).read_text(encoding="utf-8")))
    dist.start(torch.device("cpu"))
    try:
        found = measure(config)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # an orderly end would wait for the other processes
    if dist.rank() == 0:
        with whole(output) as temporary:
            torch.save(found, temporary)
    torch.distributed.barrier()  # the first process holds the store that the others end with
    sys.stdout.flush()
    os._exit(0)  # tearing gloo down has aborted processes whose work was done


if __name__ == "__main__":
    main(*sys.argv[1:])
