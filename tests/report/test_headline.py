"""Headlines are checked when they are recorded, and worded by the registry of metrics."""

import json
import re
from pathlib import Path

import pytest

from zslkit.data.files import project_root
from zslkit.plots.data import pair_grid
from zslkit.plots.evaluation import hit_bars
from zslkit.report.cards import load_results
from zslkit.report.headline import caption_of, headline_words, read_headline
from zslkit.report.results import record

SOUND = {
    **{"sentence": "It works.", "metric": "zeroshot / hit@1", "value": 0.5, "low": 0.4},
    **{"high": 0.6, "over": "80 images", "chance": 0.02, "figure": "bars", "number": 2},
}


def test_a_headline_joins_the_results_and_photos_are_told_apart(tmp_path):
    figures = {"bars": hit_bars({"a": 0.5}), "photos": pair_grid([[[[0, 0, 0]]]], ["black"])}
    results = load_results(record({}, None, tmp_path, figures=figures, headline=SOUND))
    assert results["headline"] == SOUND
    assert results["photos"] == ["photos"]
    assert load_results(record({}, None, tmp_path))["headline"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentense": "x"}, "sentense='x': no such key of a headline; did you mean sentence"),
        ({"sentence": " "}, "sentence must be words, not ' '"),
        ({"metric": ""}, "metric must be words, not ''"),
        ({"low": 0.55}, "low=0.55 and high=0.6 must enclose value=0.5"),
        ({"high": None}, "low=0.4 and high=None must enclose value=0.5"),
        ({"value": float("nan")}, "value, low and high must be finite"),
        ({"value": "much"}, "value='much': Input should be a valid number"),
        ({"figure": "bras"}, "figure='bras' is not among bars"),
    ],
)
def test_a_headline_that_is_not_sound_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_headline(SOUND | changes, ["bars"])


def test_numbers_are_written_as_the_registry_says():
    assert headline_words(SOUND) == {
        **{"number": "50.0%", "metric": "zero-shot hit@1", "chance": "chance 2.0%"},
        "interval": "95 % interval 40.0% to 60.0%, over 80 images",
    }
    change = {"sentence": "x", "metric": "zeroshot hit@1 / differences", "value": -0.2}
    assert headline_words(change) == {
        **{"number": "-20.0 points", "metric": "difference in zero-shot hit@1"},
        **{"interval": "", "chance": ""},
    }


def test_a_caption_is_found_by_its_number(tmp_path):
    texts = ["# Title", "**Figure 1.** One `x`.\n\nMore.", "**Figure 12.** Twelve."]
    cells = [{"cell_type": "markdown", "source": [text]} for text in texts]
    path = tmp_path / "book.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert caption_of(path, 1) == "Figure 1. One x."
    assert caption_of(path, 2) == caption_of(path, None) == ""


@pytest.mark.parametrize(
    "path", sorted((project_root() / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_notebook_has_a_headline_whose_figure_has_a_caption(path: Path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert "headline=headline" in code
    (number,) = re.findall(r'"number": (\d+)', code)
    assert caption_of(path, int(number)).startswith(f"Figure {number}. ")
