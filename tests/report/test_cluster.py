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

from zslkit.config import RunConfig
from zslkit.report import build_report, run_sweep
from zslkit.report.executors import executing

VARIANTS = {"InfoNCE": {"soft_targets": "none"}, "warm": {"teacher_temperature": 0.5}}
STEPS = 12


@pytest.fixture
def base(tiny_settings, tmp_path):
    changes = {"max_steps": STEPS, "epochs": STEPS, "checkpoint_every": 1}
    return RunConfig(**{**tiny_settings, **changes}, output_dir=str(tmp_path / "sweep"))


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler, and its two workers' processes."""
    file, words = tmp_path / "scheduler.json", (tmp_path / "words.txt").open("wb")
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    start = [sys.executable, "-m"]
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    worker = ["distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1"]
    worker += ["--no-nanny", "--local-directory", str(tmp_path / "scratch")]
    options = {"stdout": words, "stderr": words, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    running = [subprocess.Popen([*start, *scheduler, *common], **options)]
    try:
        running += [subprocess.Popen([*start, *worker, *common], **options) for _ in "ab"]
        end = time.monotonic() + 60
        while not file.is_file() or not file.stat().st_size:
            assert time.monotonic() < end, (tmp_path / "words.txt").read_text()
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"], running[1:]
    finally:
        for process in running:
            process.kill()
            process.wait()
        words.close()


def without_times(table):
    return table[table["metric"] != "train_seconds"].reset_index(drop=True)


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
                if pid == workers[0].pid and (lock.parent / "checkpoints").is_dir():
                    os.kill(pid, signal.SIGKILL)
                    lost.append(lock.parent)
                    return
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    table = run_sweep(base, VARIANTS, [0, 1], executor=address)
    thread.join()
    assert lost
    assert workers[1].poll() is None
    folders = sorted((tmp_path / "sweep").glob("*/seed-*"))
    assert len(folders) == 4
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [*range(1, STEPS + 1)]
        assert not [*folder.glob("earlier-*")]
        assert not (folder / "lock.json").exists()
    local = base.model_copy(update={"output_dir": str(tmp_path / "local")})
    with ThreadPoolExecutor(2) as threads:  # of one process: the runs take turns
        expected = run_sweep(local, VARIANTS, [0, 1], executor=threads)
    pd.testing.assert_frame_equal(without_times(table), without_times(expected))


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
