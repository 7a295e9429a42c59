"""Sweeps through executors: threads, and a real Dask scheduler with two real workers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.report import build_report, run_sweep
from zslkit.report.executors import executing
from zslkit.trainer import train

VARIANTS = {"InfoNCE": {"soft_targets": "none"}}
STEPS = 8


@pytest.fixture
def base(tiny_settings, tmp_path):
    changes = {"max_steps": STEPS, "epochs": STEPS, "checkpoint_every": 1}
    return RunConfig(**{**tiny_settings, **changes}, output_dir=str(tmp_path / "sweep"))


CLUSTER = """
import asyncio, json, os, signal, sys
import timm, torch
import zslkit.evaluation.evaluator, zslkit.report.results, zslkit.report.sweep, zslkit.trainer
from distributed import Scheduler, Worker

folder, torch_threads = sys.argv[1], torch.set_num_threads(1)
options = {"host": "127.0.0.1", "dashboard": False}

async def serve(kind, *address, **more):
    server = await kind(*address, **options, **more)
    if kind is Scheduler:
        with open(folder + "/address", "w") as file:
            file.write(server.address)
    await server.finished()

def start(*call, **more):
    if pid := os.fork():
        return pid
    asyncio.run(serve(*call, **more))

pids = [start(Scheduler, port=0, dashboard_address=":0")]
while not (os.path.exists(folder + "/address") and (address := open(folder + "/address").read())):
    pass
scratch = {"nthreads": 1, "local_directory": folder}
pids += [start(Worker, address, **scratch) for _ in "ab"]
print(json.dumps([address, pids]), flush=True)
sys.stdin.read()
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler, and the numbers of its two workers' processes.

    Forked, as each would import for many seconds otherwise, from a process that has no threads.
    """
    running = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(tmp_path)], stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    address, pids = json.loads(running.stdout.readline())
    yield address, pids[1:]
    running.communicate()


def test_a_lost_worker_s_runs_are_done_by_the_other_and_nothing_twice(base, cluster, tmp_path):
    address, workers = cluster
    lost = []

    def kill():
        """End a worker in the midst of a run."""
        end = time.monotonic() + 60
        while time.monotonic() < end and not lost:
            for lock in (tmp_path / "sweep").glob("*/seed-*/lock.json"):
                try:
                    pid = json.loads(lock.read_text())["pid"]
                except (OSError, ValueError):
                    continue
                if pid == workers[0] and (lock.parent / "checkpoints").is_dir():
                    os.kill(pid, signal.SIGKILL)
                    lost.append(lock.parent)
                    return
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    table = run_sweep(base, VARIANTS, [0, 1, 2], executor=address)
    thread.join()
    assert lost
    os.kill(workers[1], 0)  # it lives
    folders = sorted((tmp_path / "sweep").glob("*/seed-*"))
    assert len(folders) == table["seed"].nunique() == 3
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [*range(1, STEPS + 1)]
        assert not [*folder.glob("earlier-*")]
        assert not (folder / "lock.json").exists()
    settings = json.loads((lost[0] / "config.json").read_text())
    alone = train(RunConfig(**settings | {"output_dir": str(tmp_path / "alone"), "resume": False}))
    assert alone.history == load_run(lost[0]).history


def test_runs_in_threads_of_one_process_take_turns(tiny_settings, tmp_path):
    base = RunConfig(**tiny_settings, max_steps=2, output_dir=str(tmp_path / "one"))
    with ThreadPoolExecutor(2) as threads:
        table = run_sweep(base, VARIANTS, [0, 1], executor=threads)
    other = base.model_copy(update={"output_dir": str(tmp_path / "other")})
    expected = run_sweep(other, VARIANTS, [0, 1], jobs=1)
    same = table["metric"] != "train_seconds"
    pd.testing.assert_frame_equal(table[same], expected[same])


def test_a_report_is_built_by_any_executor(tmp_path, monkeypatch):
    done = []

    def run(job, threads, minutes):
        assert job.target.is_absolute()
        done.append(threading.current_thread().name)
        return "no kernel here"

    monkeypatch.setattr("zslkit.report.runner.run_notebook", run)
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "one.ipynb").write_text(json.dumps(notebook))
    with ThreadPoolExecutor(1, thread_name_prefix="elsewhere") as executor:
        _, failed = build_report([tmp_path / "one.ipynb"], tmp_path / "out", executor=executor)
        assert executor.submit(int).result() == 0  # it is its owner's to shut down
    assert failed == ["one"]
    assert done == ["elsewhere_0"]


def test_what_is_no_executor_and_no_scheduler_is_refused(monkeypatch):
    monkeypatch.setattr("zslkit.report.executors._PATIENCE", 0.5)
    with pytest.raises(ValueError, match="executor=3: must be a concurrent"), executing(3):
        pass
    with (
        pytest.raises(OSError, match=r"scheduler='tcp://127.0.0.1:9'.*dask worker ADDRESS"),
        executing("tcp://127.0.0.1:9"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="needs the extra cluster"), executing("tcp://x:1"):
        pass
