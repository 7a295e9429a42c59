"""A short form of ``benchmarks/two_processes.py``: one kill of one process, one of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "two_processes.py"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_processes_go_on_with_every_pair_once_and_end_with_equal_weights(tmp_path):
    output = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARK), "--tries", "1", "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for who, row in json.loads(output.read_text())["killed"].items():
        del row["steps done when killed"], row["in the midst"]  # it may have just ended
        assert set(row.values()) == {1}, f"{who}: {row}\n{done.stdout}"
