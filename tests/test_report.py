"""What is recorded, what is refused, and a report over two tiny notebooks, one of which fails."""

import json
import math
import platform
import re
import sys

import nbformat
import numpy as np
import pytest
import torch

from zslkit import report
from zslkit.config import RunConfig
from zslkit.manifests import load_manifest
from zslkit.plots import hit_bars
from zslkit.report import PUBLISHED, build_report, load_results, record, results_table

HIT = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 80, "chance": 0.05}


def test_record_writes_everything_a_reader_needs(tmp_path):
    config = RunConfig(seed=7)
    figures = {"bars": hit_bars(["a"], [0.5])}
    folder = tmp_path / "deep" / "03_train"
    path = record({"hit@1": HIT}, config, folder, figures=figures, extra={"broken": ["x.jpg"]})
    assert path == folder / "results.json"
    assert sorted(p.name for p in folder.iterdir()) == ["bars.png", "results.json"]
    results = load_results(path)
    assert results == load_results(folder)
    assert results["name"] == "03_train"
    assert results["metrics"] == {"hit@1": HIT}
    assert RunConfig(**results["config"]) == config
    assert results["seed"] == 7
    assert results["manifest_checksum"] == load_manifest("toy").checksum
    assert results["extra"] == {"broken": ["x.jpg"]}
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert results["versions"]["python"] == platform.python_version()
    assert results["date"].endswith("+00:00")
    assert platform.node() not in json.dumps(results["machine"])
    assert results["machine"]["cores"] >= 1


def test_numbers_of_any_library_become_plain(tmp_path):
    metrics = {
        "hits": {1: np.float32(0.5), 5: torch.tensor(0.75)},
        "seeds": np.array([1.0, 2.0]),
        "n": 3,
    }
    results = load_results(record(metrics, None, tmp_path))
    assert results["metrics"] == {"hits": {"1": 0.5, "5": 0.75}, "seeds": [1.0, 2.0], "n": 3}
    assert results["manifest_checksum"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(-math.inf), "0.5", None])
def test_a_metric_that_is_no_finite_number_is_refused(tmp_path, bad):
    record({"loss": 1.0}, {}, tmp_path)
    with pytest.raises(ValueError, match=r"metrics / hits / 5 = .* is no finite number"):
        record({"hits": {1: 0.5, 5: bad}}, {}, tmp_path)
    assert load_results(tmp_path)["metrics"] == {"loss": 1.0}


def test_a_figure_name_is_no_path(tmp_path):
    with pytest.raises(ValueError, match=r"letters, digits, _ and -, not \['../bars'\]"):
        record({}, {}, tmp_path, figures={"../bars": hit_bars(["a"], [0.5])})


def test_folders_outside_the_project_stay_private(tmp_path):
    inside = report.project_root() / "reports" / "03"
    settings = {"data_root": str(tmp_path / "flickr8k"), "output_dir": str(inside), "image": "a/b"}
    results = load_results(record({}, settings, tmp_path, extra={"files": [tmp_path / "x"]}))
    assert results["config"] == {
        "data_root": "…/flickr8k",
        "output_dir": "reports/03",
        "image": "a/b",
    }
    assert results["extra"] == {"files": ["…/x"]}


def test_table_has_a_row_for_each_metric(tmp_path):
    record({"zero-shot": {"hit@1": HIT}, "losses": [2.0, 1.0]}, {"seed": 3}, tmp_path / "a")
    record({"loss": 0.5}, {"seed": 4}, tmp_path / "b")
    table = results_table([load_results(tmp_path / name) for name in "ab"])
    assert " ".join(table.columns) == "name metric value low high n chance seed"
    assert list(table["name"]) == ["a", "a", "a", "b"]
    assert list(table["metric"]) == ["zero-shot / hit@1", "losses / 0", "losses / 1", "loss"]
    assert list(table["value"]) == [0.5, 2.0, 1.0, 0.5]
    assert table["chance"][0] == 0.05
    assert table["low"].isna().tolist() == [False, True, True, True]
    assert list(table["seed"]) == [3, 3, 3, 4]


def test_rates_are_shown_in_percent_and_other_numbers_are_not():
    assert report._row("hit@1", HIT) == ["hit@1", "50.0%", "40.0% to 60.0%", 80, "5.0%"]
    assert report._row("recall ratio", {"value": 0.9}) == ["recall ratio", "0.9", "", "", ""]
    assert report._row("loss", {"value": 1.23456})[1] == "1.235"


def test_published_figures_are_fractions_with_their_source():
    assert "OTTER" in PUBLISHED["source"]
    assert "not our runs" in PUBLISHED["setting"]
    assert len(PUBLISHED["methods"]) == 4
    for method in PUBLISHED["methods"].values():
        assert len(method) == len(PUBLISHED["sets"])
        for row in method:
            assert len(row) == len(PUBLISHED["ks"])
            assert 0 < row[0] < row[1] < row[2] < 1


def notebook(path, *cells):
    """Write a notebook; a text that starts with # is markdown, the second cell parameters."""
    book = nbformat.v4.new_notebook()
    for text in cells:
        new = nbformat.v4.new_markdown_cell if text[0] == "#" else nbformat.v4.new_code_cell
        book.cells.append(new(text))
    book.cells[1].metadata.tags = ["parameters"]
    nbformat.write(book, path)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    good = notebook(
        folder / "01_good.ipynb",
        "# Does <script>alert(1)</script> it *work*?\n\nIs `1 + 1` two?\n\nMore text.",
        "output_dir: str = 'reports/01'\nfactor: int = 1\nexecutable: str = ''",
        "from zslkit import plots, report\n"
        "import sys\n"
        "assert executable == sys.executable\n"
        "metrics = {'<b>hit@1': {'value': 0.25 * factor, 'low': 0.4, 'high': 0.6, 'n': 80}}\n"
        "figure = plots.hit_bars(['a'], [0.5])\n"
        "report.record(metrics, {'seed': 1}, output_dir, figures={'bars': figure})\n"
        "figure",
        "from IPython.display import HTML\nHTML('<script src=\"https://cdn.example/x.js\"></script>')",
        "# Formula $x^2$",
    )
    bad = notebook(
        folder / "02_bad.ipynb",
        "# What breaks?",
        "output_dir: str = 'reports/02'",
        "raise KeyError('no <i>such</i> key')",
    )
    output = folder / "out"
    (output / "02_bad").mkdir(parents=True)
    (output / "02_bad" / "results.json").write_text("{}")  # of an earlier run
    parameters = {"01_good": {"factor": 2, "executable": sys.executable}}
    return build_report([bad, good], output, parameters)


def test_index_shows_titles_states_and_values(page):
    html = page.read_text("utf-8")
    assert page.name == "index.html"
    assert "Does &lt;script&gt;alert(1)&lt;/script&gt; it work?" in html
    assert "Is 1 + 1 two?" in html
    assert "More text." not in html
    assert "2 notebooks" in html
    assert "1 failed" in html
    assert html.count('<span class="ok">ok</span>') == 1
    assert "KeyError:" in html
    assert "no &lt;i&gt;such&lt;/i&gt; key" in html
    assert "<td>&lt;b&gt;hit@1</td><td>50.0%</td><td>40.0% to 60.0%</td><td>80</td>" in html
    assert html.count("data:image/png;base64,") == 1
    assert "<script" not in html
    for link in re.findall(r'href="([^"]+)"', html):
        assert (page.parent / link).is_file()


def test_executed_notebooks_keep_outputs_and_errors(page):
    assert load_results(page.parent / "01_good")["figures"] == {"bars": "bars.png"}
    assert not (page.parent / "02_bad" / "results.json").exists()
    html = (page.parent / "02_bad.html").read_text("utf-8")
    assert "KeyError" in html
    good = nbformat.read(page.parent / "01_good.ipynb", as_version=4)
    shown = [output for cell in good.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.parametrize("name", ["01_good.html", "02_bad.html"])
def test_pages_load_nothing_from_the_network(page, name):
    html = (page.parent / name).read_text("utf-8")
    assert "<h1" in html
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", html)
    assert "cdnjs" not in html
    assert not re.search(r"import\(.https?:", html)


def test_parameters_for_a_notebook_that_is_not_run(tmp_path):
    with pytest.raises(ValueError, match="not run: 05_zeroshot"):
        build_report([tmp_path / "03_train.ipynb"], tmp_path / "out", {"05_zeroshot": {}})


def test_notebooks_are_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="would overwrite the notebooks themselves"):
        build_report([tmp_path / "03_train.ipynb"], tmp_path)


def test_a_report_without_results(tmp_path):
    html = build_report([], tmp_path).read_text("utf-8")
    assert "0 notebooks" in html
    assert "<table" not in html
