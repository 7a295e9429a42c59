"""Every fault of ``make faults``, a few times: the run survives and ends equal to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("scenarios.py")
TRIES = {
    "killed at any moment": 2,
    "SIGTERM": 1,
    "SIGHUP": 1,
    "SIGUSR1": 1,
    "disk full: optimizer.safetensors": 1,
    "disk full: part of features": 1,
    "two runs in one folder": 1,
    "NaN or Inf in pixels, gradient, weight, teacher": 1,
    "a bit flipped in checkpoint, cache or run": 1,
    "killed in two processes": 1,
}  # a reading process that dies is left to `make faults`: processes are slow to start
SHARDS = {"a bit flipped in a Flickr8k shard": 4, "a Flickr8k shard cut": 4}


def outcomes(folder, tries):
    """Try faults in a process that has never trained: torch does not survive a fork after that."""
    command = [sys.executable, str(FILE), str(folder), json.dumps(tries)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of the faults of runs, each [tried, survived, equal]."""
    return outcomes(tmp_path_factory.mktemp("ground"), TRIES)


@pytest.mark.parametrize("words", TRIES)
def test_a_run_survives(found, words):
    tried, survived, equal = found[words]
    assert (survived, equal) == (tried, tried)
    assert tried >= TRIES[words]


def test_no_pair_of_a_damaged_shard_is_lost_silently(tmp_path, shared_data):
    for words, (tried, survived, _) in outcomes(tmp_path, SHARDS).items():
        assert survived == tried >= SHARDS[words], words
