"""Notebooks run side by side, one by one no harm to each other, and only if they have changed."""

import json
import os
import re
import sys
import time
from html import unescape
from pathlib import Path

import nbformat
import pytest
import torch

from zslkit.data.files import project_root
from zslkit.report import runner
from zslkit.report.cards import load_results
from zslkit.report.index import _words
from zslkit.report.reproduction import reproduce
from zslkit.report.results import record
from zslkit.report.runner import _n_cores, build_report

RECORDS = (
    "from zslkit import read_parameters, report\n"
    "metrics = {'hit': {'value': 0.1 * factor, 'n': 3}, 'train_seconds': time.time()}\n"
    "report.record(metrics, {'seed': 1}, output_dir, notebook=name, "
    "parameters=read_parameters(In))"
)


def notebook(path, *cells):
    """Write a notebook; a text that starts with # is markdown, the second cell parameters."""
    book = nbformat.v4.new_notebook()
    for text in cells:
        new = nbformat.v4.new_markdown_cell if text[0] == "#" else nbformat.v4.new_code_cell
        book.cells.append(new(text))
    book.cells[1].metadata.tags = ["parameters"]
    nbformat.write(book, path)
    return path


def recording(folder, name, parameters="factor: int = 3  # times"):
    """Write a notebook that records a few numbers."""
    own = f"output_dir: str = 'reports/{name}'\n{parameters}"
    return notebook(
        folder / f"{name}.ipynb", "# Why?", own, f"import time\nname = {name!r}\n{RECORDS}"
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report over four notebooks: sound, failing, dying, and one that reads the failing one."""
    folder = tmp_path_factory.mktemp("report")
    own = "output_dir: str = 'reports/{}'\nfactor: int = 1\nexecutable: str = ''"
    good = notebook(
        folder / "01_good.ipynb",
        "# Does it work?",
        own.format("01_good"),
        "import os, sys\n"
        "from zslkit import plots, report\n"
        "assert executable == sys.executable\n"
        "figure = plots.hit_bars({'a': 0.5})\n"
        "metrics = {'hit': 0.25 * factor, 'threads': int(os.environ['OMP_NUM_THREADS'])}\n"
        "report.record(metrics, {'seed': 1}, output_dir, figures={'bars': figure})\n"
        "figure",
        "import sys\nprint('step 1/9, epoch 1: loss 4')\nprint('a finding')\n"
        "print('some library warns', file=sys.stderr)\nobject()",
        "from IPython.display import HTML\nHTML('<script src=\"https://cdn.example/x.js\"></script>')",
        "HTML('<iframe srcdoc=\"&lt;p id=&quot;map&quot;&gt;Here&lt;/p&gt;\"></iframe>')",
        "# Formula $x^2$\n\n$$a < b$$",
    )
    bad = notebook(
        folder / "02_bad.ipynb",
        "# What breaks?",
        own.format("02_bad"),
        "raise KeyError('no <i>such</i> key')",
    )
    dies = notebook(folder / "03_dies.ipynb", "# Dies?", "x: int = 1", "import os; os._exit(1)")
    reads = recording(folder, "05_reads", "run_dir: str = 'reports/02_bad/run'\nfactor: int = 1")
    output = folder / "out"
    (output / "02_bad").mkdir(parents=True)
    (output / "02_bad" / "results.json").write_text("{}")  # of an earlier run
    plan = {
        "01_good": {"parameters": {"factor": 2, "executable": sys.executable}},
        "05_reads": {"after": ["01_good", "02_bad"]},
    }
    return build_report([reads, dies, bad, good], output, plan, jobs=2)


def test_one_that_fails_or_dies_harms_no_other(built):
    assert built.failed == ["05_reads", "03_dies", "02_bad"]
    html = built.index.read_text("utf-8")
    assert "4 notebooks" in html
    assert "3 failed" in html
    assert html.count('<span class="ok">ok</span>') == 1
    assert "KeyError: &#39;no &lt;i&gt;such&lt;/i&gt; key&#39;" in html
    assert "DeadKernelError" in html
    assert "not run: it reads the results of 02_bad, which failed" in html
    assert load_results(built.index.parent / "01_good")["metrics"]["hit"] == 0.5


def test_one_that_hangs_is_stopped(tmp_path):
    path = notebook(tmp_path / "01.ipynb", "# Hangs?", "x: int = 1", "import time; time.sleep(600)")
    index, failed = build_report([path], tmp_path / "out", minutes=0.02)
    assert failed == ["01"]
    assert "stopped: it took longer than 0.02 minutes" in index.read_text("utf-8")
    assert "01.html" not in index.read_text("utf-8")


def test_the_cores_are_shared(built):
    metrics = load_results(built.index.parent / "01_good")["metrics"]
    assert metrics["threads"] == max(1, _n_cores() // 2)


def test_executed_notebooks_keep_outputs_and_errors(built):
    folder = built.index.parent
    assert load_results(folder / "01_good")["figures"] == {"bars": "bars.png"}
    assert not (folder / "02_bad" / "results.json").exists()
    assert "KeyError" in (folder / "02_bad.html").read_text("utf-8")
    good = nbformat.read(folder / "01_good.ipynb", as_version=4)
    shown = [output for cell in good.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.parametrize("name", ["01_good.html", "02_bad.html", "03_dies.html", "index.html"])
def test_pages_load_nothing_from_the_network(built, name):
    html = (built.index.parent / name).read_text("utf-8")
    assert "<h1" in html
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)\s*=\s*[\"']?(https?:)?//", html)
    assert "cdnjs" not in html
    assert not re.search(r"import\(.https?:", html)


def test_a_page_keeps_figures_and_embedded_documents(built):
    html = (built.index.parent / "01_good.html").read_text("utf-8")
    assert 'src="data:image/png;base64,' in html
    (document,) = re.findall(r"<iframe srcdoc=('|\")(.*?)\1></iframe>", html)
    assert unescape(document[1]) == '<p id="map">Here</p>'


def test_what_a_fact_lists_is_listed_without_its_files():
    facts = {"torch": "2.9", "libraries": {"b.so": "openmp", "a.so": "openblas 0.3 Haswell"}}
    assert _words(facts) == ["torch 2.9", "libraries openblas 0.3 Haswell, openmp"]


def test_a_page_is_for_readers(built):
    html = (built.index.parent / "01_good.html").read_text("utf-8")
    assert "<title>Does it work?</title>" in html
    assert '<a href="index.html">' in html
    assert html.count('<details class="code">') == 6  # injected parameters too; none is open
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert "a finding" in html
    assert "<mrow><mi>a</mi><mo>&lt;</mo><mi>b</mi></mrow></math>" in html
    outputs = re.sub(r"<details.*?</details>", "", html, flags=re.DOTALL)
    for noise in ("step 1/9", "some library warns", "object at 0x", "PosixPath", "<script"):
        assert noise not in outputs


@pytest.fixture
def runs(monkeypatch):
    """Let notebooks be finished at once; list what was run: name, parameters, threads."""
    done = []

    def finish(job, threads, minutes=None):
        done.append((job.notebook.stem, job.parameters, threads))
        for path in (job.target, job.target.with_suffix(".html")):
            path.write_text("{}")
        record({"hit": 0.5}, None, job.folder)
        return ""

    for module in ("runner", "reproduction"):
        monkeypatch.setattr(f"zslkit.report.{module}.run_notebook", finish)
    return done


def names(runs):
    found = sorted(name for name, *_ in runs)
    runs.clear()
    return found


def test_only_what_has_changed_is_run_again(tmp_path, runs, monkeypatch):
    paths = [recording(tmp_path, name) for name in ("01_a", "02_b", "03_c")]
    plan, output = {"02_b": {"after": ["01_a"]}}, tmp_path / "out"

    def build(**options):
        index, _ = build_report(paths, output, plan, **options)
        return names(runs), index.read_text("utf-8").count("unchanged since")

    assert build() == (["01_a", "02_b", "03_c"], 0)
    assert build() == ([], 3)
    assert build(fresh=True) == (["01_a", "02_b", "03_c"], 0)
    plan["02_b"]["parameters"] = {"factor": 5}
    assert build() == (["02_b"], 2)
    recording(tmp_path, "01_a", "factor: int = 4  # times")
    assert build() == (["01_a", "02_b"], 1)  # 02_b reads its results
    monkeypatch.setattr("zslkit.report.runner.SOURCES", "another code")
    assert build() == (["01_a", "02_b", "03_c"], 0)
    monkeypatch.setattr("zslkit.report.runner.installed", lambda: {"torch": "99"})
    assert build() == (["01_a", "02_b", "03_c"], 0)
    monkeypatch.setattr("zslkit.report.runner._n_cores", lambda: 8)
    assert build(jobs=2) == (["01_a", "02_b", "03_c"], 0)
    assert build(jobs=2) == ([], 3)


def test_a_changed_manifest_runs_its_notebooks_again(tmp_path, runs, tiny_settings):
    data = tmp_path / "mine.json"
    manifest = json.loads(Path(tiny_settings["manifest"]).read_text())
    data.write_text(json.dumps(manifest))
    paths = [recording(tmp_path, "01_a", f"manifest: str = {str(data)!r}"),
             recording(tmp_path, "02_b")]  # fmt: skip
    build_report(paths, tmp_path / "out")
    data.write_text(json.dumps(manifest | {"image_size": 48}))
    runs.clear()
    build_report(paths, tmp_path / "out")
    assert names(runs) == ["01_a"]


@pytest.mark.parametrize("lost", ["01_a.html", "01_a.ipynb", "01_a/results.json"])
def test_what_is_lost_is_made_again(tmp_path, runs, lost):
    path = recording(tmp_path, "01_a")
    build_report([path], tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    build_report([path], tmp_path / "out")
    assert names(runs) == ["01_a", "01_a"]


def test_results_of_someone_elses_run_are_not_taken_for_the_report(tmp_path, runs):
    path = recording(tmp_path, "01_a")
    build_report([path], tmp_path / "out")
    record({"hit": 0.9}, None, tmp_path / "out" / "01_a")  # by hand, with other parameters
    build_report([path], tmp_path / "out")
    assert names(runs) == ["01_a", "01_a"]


def test_one_that_failed_is_run_again(tmp_path, runs, monkeypatch):
    path = recording(tmp_path, "01_a")
    with monkeypatch.context() as patch:
        finish = runner.run_notebook
        patch.setattr(
            "zslkit.report.runner.run_notebook", lambda *words: finish(*words) or "failed at last"
        )
        assert build_report([path], tmp_path / "out").failed == ["01_a"]
    assert build_report([path], tmp_path / "out").failed == []
    assert names(runs) == ["01_a", "01_a"]


def test_a_sweep_goes_on_unless_everything_shall_be_run(tmp_path, runs, monkeypatch):
    path, finish = recording(tmp_path, "01_a"), runner.run_notebook
    done = tmp_path / "out" / "01_a" / "InfoNCE" / "seed-0"

    def be_killed(*words):
        finish(*words)
        record({"hit": 0.5}, None, done)
        raise SystemExit

    def seen(*words):
        found.append((done / "results.json").exists())
        return finish(*words)

    found = []
    monkeypatch.setattr("zslkit.report.runner.run_notebook", be_killed)
    with pytest.raises(SystemExit):
        build_report([path], tmp_path / "out")
    monkeypatch.setattr("zslkit.report.runner.run_notebook", seen)
    build_report([path], tmp_path / "out")
    build_report([path], tmp_path / "out", fresh=True)
    assert found == [True, False]
    assert (done / "results-earlier.json").exists()


def test_after_an_interruption_no_further_one_starts(tmp_path, monkeypatch):
    started = []

    def interrupt(job, *words):
        started.append(job.notebook.stem)
        if job.notebook.stem == "01_a":
            raise KeyboardInterrupt
        time.sleep(0.5)
        return ""

    monkeypatch.setattr("zslkit.report.runner.run_notebook", interrupt)
    paths = [recording(tmp_path, name) for name in ("01_a", "02_b", "03_c")]
    with pytest.raises(KeyboardInterrupt):
        build_report(paths, tmp_path / "out", jobs=1)
    assert "03_c" not in started


def test_each_waits_for_those_whose_results_it_reads(tmp_path, runs):
    paths = [recording(tmp_path, name) for name in ("01_a", "02_b", "03_c")]
    build_report(
        paths, tmp_path / "out", {"01_a": {"after": ["02_b"]}, "02_b": {"after": ["03_c"]}}
    )
    assert [name for name, *_ in runs] == ["03_c", "02_b", "01_a"]


def test_folders_follow_those_of_other_notebooks(tmp_path, runs):
    a = recording(tmp_path, "03_a")
    b = recording(
        tmp_path, "05_b", "run_dir: str = 'reports/03_a/seed-0'\nother: str = 'reports/03'"
    )
    c = notebook(tmp_path / "06_c.ipynb", "# C?", "factor: int = 1")
    build_report([a, b, c], tmp_path / "out", jobs=1)
    given = {name: parameters for name, parameters, _ in runs}
    out = os.path.relpath(tmp_path / "out", project_root())
    assert given == {
        "03_a": {"output_dir": f"{out}/03_a"},
        "05_b": {"output_dir": f"{out}/05_b", "run_dir": f"{out}/03_a/seed-0"},
        "06_c": {},
    }


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"02_zeroshot": {}}, "02_zeroshot={}: no such notebook; known: 01_a"),
        ({"01_a": {"epochs": 1}}, "epochs=1: no such key in the plan of 01_a; known: parameters"),
        ({"01_a": {"after": ["00"]}}, "00='01_a': no such notebook to follow"),
        ({"01_a": {"after": ["01_a"]}}, "after: 01_a - 01_a goes in a circle"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(tmp_path, plan, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_report([recording(tmp_path, "01_a")], tmp_path / "out", plan)


def test_notebooks_are_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="would overwrite the notebooks themselves"):
        build_report([recording(tmp_path, "01_a")], tmp_path)


def test_a_report_without_notebooks(tmp_path):
    index, failed = build_report([], tmp_path / "out")
    assert "0 notebooks" in index.read_text("utf-8")
    assert failed == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Results of a notebook that was really run, and the folder of its source."""
    folder = tmp_path_factory.mktemp("recorded")
    path = recording(folder, "01_a", "factor: int = 3  # times\nsize: float = None")
    _, failed = build_report([path], folder / "out", {"01_a": {"parameters": {"factor": 7}}})
    assert failed == []
    return folder


def test_results_are_reproduced_bit_for_bit(recorded, tmp_path):
    results = load_results(recorded / "out" / "01_a")
    assert results["parameters"]["factor"] == 7
    (outcome,) = reproduce(recorded / "out" / "01_a", tmp_path / "new", recorded)
    assert outcome == {
        **{"name": "01_a", "error": "", "n_equal": 1, "differences": {}},
        **{"folder": tmp_path / "new" / "01_a", "facts": {}, "explained": {}, "origin": []},
    }
    again = load_results(outcome["folder"])
    assert again["metrics"]["hit"] == results["metrics"]["hit"]
    assert again["metrics"]["train_seconds"] != results["metrics"]["train_seconds"]
    assert again["parameters"]["factor"] == 7


@pytest.fixture
def changeable(recorded, tmp_path):
    """Give a function that copies the recorded results, changed, into a folder of their own."""

    def copy(name="01_a", **changes):
        results = load_results(recorded / "out" / "01_a") | changes
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "results.json").write_text(json.dumps(results))
        return tmp_path / "results"

    return copy


def test_a_changed_figure_and_what_else_changed_are_named(changeable, tmp_path, recorded, runs):
    machine = load_results(recorded / "out" / "01_a")["machine"]
    report = changeable(metrics={"hit": 0.5000000000000001, "n": 1}, manifest_checksum="0" * 64,
                        machine=machine | {"threads": 3})  # fmt: skip
    (outcome,) = reproduce(report, tmp_path / "new", recorded)
    assert outcome["differences"] == {
        "hit": ({"value": 0.5000000000000001}, {"value": 0.5}),
        "n": ({"value": 1}, None),
    }
    assert outcome["n_equal"] == 0
    assert outcome["facts"]["manifest"] == ("0" * 64, None)
    assert outcome["facts"]["machine threads"] == (3, torch.get_num_threads())  # `runs`: in here
    assert runs[0][2] == 3  # as many threads as were recorded


def test_folders_follow_the_results_that_they_name(changeable, tmp_path, recorded, runs):
    recording(recorded, "02_b", "run_dir: str = ''\nfactor: int = 1")
    changeable("second", notebook="02_b", parameters={"run_dir": "…/first/seed-0", "factor": 2})
    report = changeable("zuerst", parameters={"output_dir": "…/first"})
    (report / "table").mkdir()
    (report / "table" / "results.json").write_text('{"name": "table", "metrics": {}}')
    outcomes = list(reproduce(report, tmp_path / "new", recorded, {"factor": 9}))
    assert [outcome["name"] for outcome in outcomes] == ["zuerst", "second"]
    new = (tmp_path / "new").as_posix()
    assert [parameters for _, parameters, _ in runs] == [
        {"output_dir": f"{new}/zuerst", "factor": 9},
        {"output_dir": f"{new}/second", "run_dir": f"{new}/zuerst/seed-0", "factor": 9},
    ]


@pytest.mark.parametrize(
    ("results", "changes", "message"),
    [
        ({"notebook": None}, {}, "01_a: these results do not say which notebook made them"),
        ({"parameters": {"factor": "…/x", "size": ["…/y"]}}, {"size": 1}, "factor='…/x': outside"),
        ({}, {"faktor": 1}, "faktor=1: no such parameter; did you mean factor"),
    ],
)
def test_what_cannot_be_reproduced_is_said_first(
    changeable, tmp_path, recorded, runs, results, changes, message
):
    report = changeable(**results)
    with pytest.raises(ValueError, match=message):
        list(reproduce(report, tmp_path / "new", recorded, changes))
    assert names(runs) == []


def test_without_results_there_is_nothing_to_reproduce(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere': no results.json here or one folder"):
        list(reproduce(tmp_path / "nowhere", tmp_path / "new"))


def test_old_runs_are_no_reproduction(changeable, tmp_path, recorded):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "old.txt").touch()
    with pytest.raises(ValueError, match="new' holds files: a sweep would find old runs"):
        list(reproduce(changeable(), tmp_path / "new", recorded))


def test_a_notebook_that_fails_is_no_reproduction(changeable, tmp_path, recorded, monkeypatch):
    monkeypatch.setattr("zslkit.report.reproduction.run_notebook", lambda *words: "KeyError: 1")
    report = changeable()
    (outcome,) = reproduce(report, tmp_path / "new", recorded)
    assert (outcome["error"], outcome["n_equal"]) == ("KeyError: 1", 0)
    monkeypatch.setattr("zslkit.report.reproduction.run_notebook", lambda *words: "")
    (outcome,) = reproduce(report, tmp_path / "newer", recorded)
    assert outcome["error"] == "the notebook left no results in its output_dir"
