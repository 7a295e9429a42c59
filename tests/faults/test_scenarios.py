"""Every fault of ``make faults``, a few times: the run survives and ends equal to the last bit."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scenarios import SCENARIOS, Ground

TRIES = {"killed at any moment": 2, "a bit flipped in checkpoint, cache or run": 1}
SLOW = ("a reading process dies",)  # processes are slow to start: `make faults` tries it


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Data and undisturbed runs."""
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("words", [words for words in SCENARIOS if words not in SLOW])
def test_a_run_survives(ground, tmp_path, words, request):
    if "Flickr8k" in words:
        request.getfixturevalue("shared_data")
    for number in range(TRIES.get(words, 4 if "Flickr8k" in words else 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = SCENARIOS[words][0](ground, folder, random.Random(number))
        assert outcome.survived == outcome.tried
        assert "Flickr8k" in words or outcome.equal == outcome.tried
