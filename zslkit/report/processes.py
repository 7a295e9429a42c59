"""A training in several processes of this machine, from a notebook: torchrun, its words streamed.

As a program, what each of the processes runs.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from zslkit.checkpoint import Run, load_run
from zslkit.config import RunConfig
from zslkit.data.files import write_json

_LAST = 20  # lines that an error repeats


def train_in_processes(config: RunConfig, processes: int, held_out_split: str | None = None) -> Run:
    """Train as ``torchrun --nproc-per-node PROCESSES -m zslkit train`` does; print what it prints.

    Ctrl-C, or a notebook's stop button, saves and returns early, as :func:`zslkit.train` does.

    Parameters
    ----------
    config : RunConfig
        Its batches are shared out: ``batch_size`` must be a multiple of ``processes``. Relative
        folders start from the working directory.
    processes : int
        On a machine with accelerators, at most as many as there are.
    held_out_split : str, optional
        Measured after every epoch, see :class:`zslkit.evaluation.Watch`.

    Returns
    -------
    Run
        As :func:`zslkit.load_run` gives it.

    Raises
    ------
    ValueError
        For no process at all, or if one fails; with what it said last.
    """
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r} must be a number of at least 1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes), "-m", __name__]
    search = os.pathsep.join(filter(None, (*sys.path[:1], os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": search}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="zslkit-train-") as folder:
        job = Path(folder, "job.json")
        write_json(job, {"config": config.model_dump(mode="json"), "split": held_out_split})
        running = subprocess.Popen(
            [*launcher, str(job)], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            code = _follow(running, lines)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
    if code:
        words = "\n".join(lines[-_LAST:])
        raise ValueError(f"processes={processes}: one of them failed:\n{words}")
    return load_run(config.output_dir)


def _follow(running: subprocess.Popen, lines: list[str]) -> int:
    """Print lines as they come; hand an interrupt on and wait for the run to be saved."""
    while True:
        try:
            for line in running.stdout:
                lines.append(line.rstrip("\n"))
                print(lines[-1], flush=True)
            return running.wait()
        except KeyboardInterrupt:
            os.killpg(running.pid, signal.SIGINT)


def main(job: str) -> None:
    """Train as one of the processes."""
    from zslkit.evaluation.retrieval import Watch
    from zslkit.trainer import train

    task = json.loads(Path(job).read_text("utf-8"))
    config, split = RunConfig.model_validate(task["config"]), task["split"]
    train(config, [Watch(config, split)] if split else [])


if __name__ == "__main__":
    main(*sys.argv[1:])
