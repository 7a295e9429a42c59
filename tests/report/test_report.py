"""What is recorded, what is refused, and how the index shows it."""

import math
import re

import nbformat
import numpy as np
import pytest
import torch
from test_cards import run_of

from zslkit.config import RunConfig
from zslkit.data.files import project_root
from zslkit.plots.evaluation import hit_bars
from zslkit.report.cards import load_results, write_card
from zslkit.report.index import describe, write_index
from zslkit.report.provenance import provenance
from zslkit.report.results import PUBLISHED, Published, record

HIT = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 80, "chance": 0.05}


def test_record_writes_everything_a_reader_needs(tmp_path):
    config = RunConfig(seed=7)
    figures = {"bars": hit_bars({"a": 0.5})}
    folder = tmp_path / "deep" / "03_train"
    path = record({"hit@1": HIT}, config, folder, figures=figures, extra={"broken": ["x.jpg"]})
    assert path == folder / "results.json"
    assert sorted(p.name for p in folder.iterdir()) == ["bars.png", "results.json"]
    results = load_results(path)
    assert results == load_results(folder)
    assert results["name"] == "03_train"
    assert results["metrics"] == {"hit@1": HIT}
    assert RunConfig(**results["config"]) == config
    assert results["extra"] == {"broken": ["x.jpg"]}
    assert {**results, **provenance(config), "date": results["date"]} == results
    assert results["notebook"] is None


def test_the_notebook_and_what_it_was_given_are_recorded(tmp_path):
    inside = str(project_root() / "reports" / "03")
    given = {"epochs": 3, "seed": None, "data_root": str(tmp_path / "photos"), "run_dir": inside}
    path = record({}, None, tmp_path, notebook="03_train", parameters=given)
    results = load_results(path)
    assert results["notebook"] == "03_train"
    assert results["parameters"] == {"epochs": 3, "data_root": "…/photos", "run_dir": "reports/03"}


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
        record({}, {}, tmp_path, figures={"../bars": hit_bars({"a": 0.5})})


def test_published_figures_are_fractions_with_their_source():
    assert "OTTER" in PUBLISHED["source"]
    assert set(PUBLISHED["settings"]) >= {"training pairs", "labelled images", "truth"}
    assert len(PUBLISHED["methods"]) == 4
    for method in PUBLISHED["methods"].values():
        assert len(method) == len(PUBLISHED["sets"])
        for row in method:
            assert len(row) == len(PUBLISHED["ks"])
            assert 0 < row[0] < row[1] < row[2] < 1


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"mine": [[0.1, 0.2, 0.3]]}, r"methods='mine': needs 3 figures for each of 2 sets, has"),
        ({"mine": [[10, 20, 30]] * 2}, r"methods='mine': 10.0 is no fraction"),
    ],
)
def test_published_figures_that_are_incomplete_are_refused(methods, message):
    with pytest.raises(ValueError, match=message):
        Published(**PUBLISHED | {"methods": methods})


def test_a_figure_that_fails_leaves_the_earlier_one(tmp_path):
    path = record({"a": 1.0}, None, tmp_path, figures={"bars": hit_bars({"a": 0.5})}).parent
    before = (path / "bars.png").read_bytes()

    class Broken:
        def savefig(self, file, **_):
            file.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        record({"a": 1.0}, None, tmp_path, figures={"bars": Broken()})
    assert (path / "bars.png").read_bytes() == before
    assert sorted(file.name for file in path.iterdir()) == ["bars.png", "results.json"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An index over one run with its card, a sweep, one that failed and one that was not run."""
    folder = tmp_path_factory.mktemp("index")
    texts = {
        "01_run": "# Does <script>alert(1)</script> it *work*?\n\nIs `1 + 1` two?\n\nMore text.",
        "02_sweep": "# Which is best?\n\nOf all?",
        "03_bad": "# What breaks?",
        "04_blocked": "# And then?",
    }
    for name, text in texts.items():
        texts_of = (text, "**Figure 2.** How far <i>bars</i> go.")
        book = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_markdown_cell, texts_of)])
        nbformat.write(book, folder / f"{name}.ipynb")
    for name in ("01_run", "02_sweep", "03_bad"):
        (folder / f"{name}.html").touch()
    (folder / "01_run").mkdir()
    write_card(folder / "01_run", run_of(train_split="<i>train</i>"))
    figures = {f"bars_{number}": hit_bars({"a": 0.5}) for number in range(5)}
    extra = {"advice": ["Look at <b>this</b>."]}
    headline = {"sentence": "It is <b>so</b>.", "metric": "hit@1", **HIT, "over": "80 images"}
    headline |= {"figure": "bars_2", "number": 2}
    del headline["n"]
    record({"<b> hit@1": HIT}, RunConfig(), folder / "01_run", figures=figures, extra=extra,
           headline=headline)  # fmt: skip
    for seed in (0, 1):
        (folder / "02_sweep" / "InfoNCE" / f"seed-{seed}").mkdir(parents=True)
        write_card(folder / "02_sweep" / "InfoNCE" / f"seed-{seed}", run_of(seed=seed))
    record({"loss": 1.5}, RunConfig(), folder / "02_sweep", figures=figures)
    (folder / "02_sweep" / "bars_0.png").unlink()  # someone has tidied up
    how = {
        "01_run": {"error": "", "minutes": 2.25},
        "02_sweep": {"error": "", "minutes": 1.0, "unchanged": "2020-02-02"},
        "03_bad": {"error": "KeyError: no <i>such</i> key", "minutes": 0.5},
        "04_blocked": {"error": "not run: it reads the results of 03_bad, which failed"},
    }
    places = {name: (folder / f"{name}.ipynb", folder / f"{name}.ipynb", folder / name)
              for name in how}  # fmt: skip
    entries = [describe(*places[name], how[name]) for name in how]
    return write_index(entries, folder / "index.html")


def test_index_shows_titles_states_and_values(page):
    html = page.read_text("utf-8")
    assert "Does &lt;script&gt;alert(1)&lt;/script&gt; it work?" in html
    assert "Is 1 + 1 two?" not in html  # its answer stands there
    assert "Of all?" in html
    assert "It is &lt;b&gt;so&lt;/b&gt;." in html
    assert '<span class="number">50.0%</span> hit@1' in html
    assert "95 % interval 40.0% to 60.0%, over 80 images · chance 5.0%" in html
    assert "More text." not in html
    assert "4 notebooks" in html
    assert "2 failed" in html
    assert html.count('<span class="ok">ok</span>') == 2
    assert "KeyError: no &lt;i&gt;such&lt;/i&gt; key" in html
    assert "not run: it reads the results of 03_bad, which failed" in html
    row = "<td>&lt;b&gt; hit@1</td><td>50.0%</td><td>40.0% to 60.0%</td><td>80</td><td>5.0%</td>"
    assert html.count(row) == 1  # in the card; no dump of metrics
    assert "2.2 min" in html
    assert "unchanged since 2020-02-02" in html
    assert "1.0 min" not in html


def test_index_stands_alone(page):
    html = page.read_text("utf-8")
    assert html.count("data:image/png;base64,") == 2  # of those that are there
    assert html.count('class="zslkit-figure"') == 2
    assert "Figure 2. How far &lt;i&gt;bars&lt;/i&gt; go.</p>" in html
    assert "<script" not in html
    links = re.findall(r'href="([^"]+)"', html)
    assert "03_bad.html" in links
    assert "04_blocked.html" not in links
    assert {"01_run/bars_2.png", "02_sweep/bars_1.png"} < set(links)
    for link in links:
        assert (page.parent / link).is_file()


def test_index_holds_the_card_of_a_run_but_only_counts_those_of_a_sweep(page):
    html = page.read_text("utf-8")
    assert html.count("<details>") == 1
    assert "4,096 of toy / &lt;i&gt;train&lt;/i&gt;" in html
    assert "<li>Look at &lt;b&gt;this&lt;/b&gt;.</li>" in html
    assert "2 runs, each with a card" in html


def test_the_page_says_first_what_the_data_are(page):
    html = page.read_text("utf-8")
    assert html.index("What the data are") < html.index("It is &lt;b&gt;so")
    assert "<b>Toy scenes</b> (train: 4,096, dev: 480, test: 960, seen: 960)." in html
    assert html.count("<b>Toy scenes</b>") == 1
    assert "<b>They cannot\nshow</b> how good a method is on photographs" in html


def test_photographs_are_not_said_to_be_drawn(tmp_path):
    results = {"config": {"manifest": "flickr8k", "zeroshot_manifest": "gone"}, "versions": {}}
    entry = {"name": "01", "title": "T", "error": "", "results": results | {"machine": {}}}
    html = write_index([entry], tmp_path / "index.html").read_text("utf-8")
    assert "What the data are" in html
    assert "cannot" not in html


def test_an_index_without_results(tmp_path):
    html = write_index([], tmp_path / "index.html").read_text("utf-8")
    assert "0 notebooks" in html
    assert "<table" not in html
