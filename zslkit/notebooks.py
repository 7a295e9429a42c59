"""Run notebooks headlessly: the report over all of them, and recorded results once again.

Each notebook runs in a process of its own, ``python -m zslkit.notebooks NOTEBOOK TARGET``, so
that one whose kernel dies or hangs harms no other.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from zslkit.cards import differing, facts, flat, load_results
from zslkit.config import check_names, project_root, read_parameters
from zslkit.manifests import load_manifest
from zslkit.provenance import SOURCES, installed, write_json
from zslkit.report import describe, write_index

TIMINGS = re.compile("second|minutes|memory|_mb")
"""Metrics that no second run repeats."""


class Job(NamedTuple):
    """One notebook to run."""

    notebook: Path
    target: Path
    """The executed copy; its HTML page stands beside it."""
    folder: Path
    """Receives its results."""
    parameters: dict[str, Any]
    after: tuple[str, ...] = ()
    """Names of the notebooks whose results it reads."""


class Report(NamedTuple):
    """What :func:`build_report` made."""

    index: Path
    failed: list[str]
    """Names of the notebooks that failed or could not be run."""


def build_report(
    notebooks: Sequence[Path],
    output_dir: str | Path,
    plan: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    jobs: int | None = None,
    fresh: bool = False,
    minutes: float = 60.0,
) -> Report:
    """Run notebooks side by side; write each as HTML, and ``index.html`` over all of them.

    What has not changed since its last run is not run again: its cells, parameters, manifests
    and prerequisites, the sources of zslkit, the installed packages, the number of threads. One
    that fails is marked with its error; those that read its results are not run, as they would
    show an older answer. No page loads anything from the network.

    Parameters
    ----------
    plan : mapping, optional
        By a notebook's name (without .ipynb): ``parameters`` for papermill, and ``after``, the
        names of the notebooks whose results it reads. A notebook with the parameter
        ``output_dir`` gets ``output_dir/NAME`` by default, and parameters of others that name
        its usual folder follow.
    jobs : int, optional
        Notebooks at a time; by default as many as there are cores. They share the cores.
    fresh : bool
        Run everything.
    minutes : float
        A notebook that takes longer is stopped and counts as failed.

    Raises
    ------
    ValueError
        For a plan that names unknown notebooks or keys or goes in a circle, or an output folder
        that holds the notebooks themselves.
    """
    folder, cores = Path(output_dir), _n_cores()
    if any(Path(path).parent.resolve() == folder.resolve() for path in notebooks):
        raise ValueError(f"output_dir={str(folder)!r} would overwrite the notebooks themselves")
    todo = _plan([*map(Path, notebooks)], folder, plan or {})
    folder.mkdir(parents=True, exist_ok=True)
    build = _Build(todo, folder, max(1, cores // (jobs or cores)), minutes, fresh)
    build.run(jobs or cores)
    entries = [describe(*job[:3], build.went[name]) for name, job in todo.items()]
    failed = [name for name in todo if build.went[name]["error"]]
    return Report(write_index(entries, folder / "index.html"), failed)


class _Build:
    """Run what has changed, in an order in which everyone finds what it reads.

    ``runs.json`` remembers, so that a build that was killed goes on. Only the main thread writes.
    """

    def __init__(self, todo, folder: Path, threads: int, minutes: float, fresh: bool):
        self.todo, self.threads, self.minutes, self.fresh = todo, threads, minutes, fresh
        self.keys, self.memory = _keys(todo, threads), folder / "runs.json"
        self.known = json.loads(self.memory.read_text("utf-8")) if self.memory.exists() else {}
        self.went: dict[str, dict[str, Any]] = {}

    def run(self, jobs: int) -> None:
        """Bring every notebook up to date and fill ``went``, how it went by name."""
        sorter = TopologicalSorter({name: job.after for name, job in self.todo.items()})
        sorter.prepare()
        running: dict[Any, str] = {}
        pool = ThreadPoolExecutor(jobs)
        try:
            while sorter.is_active():
                for name in sorter.get_ready():
                    if self._settled(name):
                        sorter.done(name)
                    else:
                        self._begin(name)
                        running[pool.submit(self._execute, name)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._end(running[future], *future.result())
                    sorter.done(running.pop(future))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C those that wait shall not start

    def _settled(self, name: str) -> bool:
        """Tell whether a notebook cannot or need not be run, and if so, how it went."""
        failed = [other for other in self.todo[name].after if self.went[other]["error"]]
        earlier, outputs = self.known.get(name, {}), self._outputs(name)
        if failed:
            error = f"not run: it reads the results of {', '.join(failed)}, which failed"
            self._tell(name, {"error": error}, "")
        elif outputs and earlier.get("outputs") == outputs and not self.fresh:
            unchanged = {"unchanged": earlier["date"]}
            self._tell(name, earlier | unchanged, f"unchanged since {earlier['date']}")
        return name in self.went

    def _begin(self, name: str) -> None:
        """Keep a sweep from reusing finished runs where everything shall be run."""
        if self.fresh:
            for results in self.todo[name].folder.glob("**/seed-*/results.json"):
                results.replace(results.with_name("results-earlier.json"))
        self._know(name, key=self.keys[name])

    def _execute(self, name: str) -> tuple[str, float]:
        print(f"{name}: started", flush=True)
        start = time.monotonic()
        error = run_notebook(self.todo[name], self.threads, self.minutes)
        return error, (time.monotonic() - start) / 60

    def _end(self, name: str, error: str, minutes: float) -> None:
        outputs, date = self._outputs(name), f"{datetime.now(timezone.utc):%Y-%m-%d}"
        how = {"error": error, "minutes": minutes, "date": date}
        self._know(name, key=self.keys[name], outputs=None if error else outputs, **how)
        self._tell(name, how, f"ok, {minutes:.1f} min")

    def _outputs(self, name: str) -> list[str] | None:
        """Tell apart what finished runs leave; None if something is missing.

        The content of the results counts: someone may have run the notebook by hand.
        """
        target, results = self.todo[name].target, self.todo[name].folder / "results.json"
        if all(path.is_file() for path in (target, target.with_suffix(".html"), results)):
            return [self.keys[name], hashlib.sha256(results.read_bytes()).hexdigest()]
        return None

    def _know(self, name: str, **how: Any) -> None:
        self.known[name] = how
        write_json(self.memory, self.known)

    def _tell(self, name: str, how: dict[str, Any], words: str) -> None:
        self.went[name] = how
        words = how["error"].partition("\n")[0] or words
        print(f"{name}: {words} ({len(self.went)} of {len(self.todo)})", flush=True)


def run_notebook(job: Job, threads: int, minutes: float | None = None) -> str:
    """Run and export one notebook in a process of its own; give its error, "" if there is none.

    ``threads`` is what the process may use of the CPU; after ``minutes`` it is stopped.
    """
    target, root = job.target.resolve(), project_root()
    for path in (job.folder / "results.json", target, target.with_suffix(".html")):
        path.unlink(missing_ok=True)  # of an earlier run
    command = [sys.executable, "-m", __name__, str(job.notebook.resolve()), str(target)]
    try:
        done = subprocess.run(
            command, input=json.dumps(job.parameters), capture_output=True, text=True, cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)}, timeout=minutes and minutes * 60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"stopped: it took longer than {minutes:g} minutes"
    died = f"its process ended with status {done.returncode}: {done.stderr[-500:].strip()}"
    return done.stdout.strip() or (died if done.returncode else "")


def reproduce(
    report: str | Path,
    output_dir: str | Path,
    notebooks: str | Path = "notebooks",
    changes: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run the notebooks behind recorded results once again and compare.

    Parameters
    ----------
    report : path
        A folder with ``results.json``, or one whose subfolders hold them. Parameters that name
        the folder of one of these results get that of the new ones.
    output_dir : path
        Receives the new results, each in a folder of its own; must not hold any files.
    notebooks : path
        Folder of the notebooks.
    changes : mapping, optional
        Parameters to replace, such as folders outside the project, of which results only keep
        the last part.

    Yields
    ------
    dict
        ``name``, new ``folder``, ``error`` of the notebook, ``n_equal`` metrics, ``differences``
        (metric to both estimates; timings are not compared) and ``facts`` that differ: data,
        code, packages, machine.

    Raises
    ------
    FileNotFoundError
        If there are no results.
    ValueError
        If they do not say which notebook made them, or a folder or a file has to be given.
    """
    folder, recorded = Path(output_dir), _recorded(Path(report))
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output_dir={str(folder)!r} holds files: a sweep would find old runs")
    jobs = _jobs_again(recorded, folder.resolve(), Path(notebooks), changes or {})
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in jobs.items():
        print(f"{name}: started", flush=True)
        error = run_notebook(job, recorded[name]["machine"]["threads"])
        outcome = {"name": name, "folder": job.folder, "n_equal": 0, "differences": {}, "facts": {}}
        if (job.folder / "results.json").is_file():
            outcome |= _outcome(recorded[name], load_results(job.folder))
        else:
            error = error or "the notebook left no results in its output_dir"
        yield outcome | {"error": error}


def _outcome(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Compare results bit for bit, timings aside, and say what else is not the same."""
    old, new = (
        {name: numbers for name, numbers in flat(results["metrics"]) if not TIMINGS.search(name)}
        for results in (before, after)
    )
    differences = differing(old, new)
    n_equal = len(old.keys() & new.keys() - differences.keys())
    changed = differing(facts(before), facts(after))
    return {"n_equal": n_equal, "differences": differences, "facts": changed}


def _recorded(report: Path) -> dict[str, dict[str, Any]]:
    """Read results by the name of their folder, in the order of their notebooks."""
    files = [report / "results.json"] if (report / "results.json").is_file() else []
    files = files or sorted(report.glob("*/results.json"))
    # a table over several results, made by no notebook, has no record of versions
    found = {path.resolve().parent.name: load_results(path) for path in files}
    found = {name: results for name, results in found.items() if "versions" in results}
    if not found:
        raise FileNotFoundError(f"{str(report)!r}: no results.json here or one folder below")
    if unknown := [name for name, results in found.items() if not results.get("notebook")]:
        raise ValueError(
            f"{', '.join(unknown)}: these results do not say which notebook made them; run it "
            "again, with record(..., notebook=, parameters=) in its last cell"
        )
    return dict(sorted(found.items(), key=lambda item: (item[1]["notebook"], item[0])))


def _jobs_again(recorded, folder: Path, notebooks: Path, changes) -> dict[str, Job]:
    """Put recorded parameters where they can run; say which of them must be given."""
    moved = {
        results["parameters"]["output_dir"]: (folder / name).as_posix()
        for name, results in recorded.items()
        if "output_dir" in results["parameters"]
    }
    sources = {name: notebooks / f"{recorded[name]['notebook']}.ipynb" for name in recorded}
    declared = {name: _declared(source) for name, source in sources.items()}
    check_names(changes, {key for names in declared.values() for key in names}, "parameter")
    jobs, missing = {}, []
    for name, results in recorded.items():
        parameters = {key: _follow(value, moved) for key, value in results["parameters"].items()}
        parameters |= {key: changes[key] for key in changes if key in declared[name]}
        parameters |= {"output_dir": (folder / name).as_posix()}
        missing += [f"{key}={value!r}" for key, value in parameters.items() if "…/" in str(value)]
        jobs[name] = Job(sources[name], folder / f"{name}.ipynb", folder / name, parameters)
    if missing:
        raise ValueError(
            f"{', '.join(dict.fromkeys(missing))}: outside the project, so that only the last "
            "part was recorded; say where it is with --set NAME=PATH"
        )
    return jobs


def _plan(paths: Sequence[Path], folder: Path, plan: Mapping[str, Mapping]) -> dict[str, Job]:
    """Work out what each notebook is given, where it writes and whom it comes after."""
    root, names = project_root(), [path.stem for path in paths]
    check_names(plan, names, "notebook")
    for name, entry in plan.items():
        check_names(entry, ("parameters", "after"), f"key in the plan of {name}")
        check_names({other: name for other in entry.get("after", ())}, names, "notebook to follow")
    declared = {path.stem: _declared(path) for path in paths}
    given = {name: dict(plan.get(name, {}).get("parameters", {})) for name in names}
    for name in names:
        if "output_dir" in declared[name]:
            default = Path(os.path.relpath(folder / name, root)).as_posix()
            given[name].setdefault("output_dir", default)
    moved = {declared[name]["output_dir"]: given[name]["output_dir"]
             for name in names if "output_dir" in declared[name]}  # fmt: skip
    jobs = {}
    for path, name in zip(paths, names, strict=True):
        usual = {key: value for key, value in declared[name].items() if key not in given[name]}
        follow = {key: _follow(value, moved) for key, value in usual.items()}
        parameters = given[name] | {key: follow[key] for key in usual if follow[key] != usual[key]}
        own = root / parameters.get("output_dir", folder.resolve() / name)
        after = tuple(plan.get(name, {}).get("after", ()))
        jobs[name] = Job(path, folder / path.name, own, parameters, after)
    return jobs


def _keys(todo: Mapping[str, Job], threads: int) -> dict[str, str]:
    """Hash all that a notebook's results depend on, its prerequisites' keys included."""
    manifests = sorted((project_root() / "data_manifests").glob("*.json"))
    common = [SOURCES, installed(), threads, [path.read_text("utf-8") for path in manifests]]
    try:
        order = [*TopologicalSorter({n: job.after for n, job in todo.items()}).static_order()]
    except CycleError as error:
        raise ValueError(f"after: {' - '.join(error.args[1])} goes in a circle") from None
    keys: dict[str, str] = {}
    for name in order:
        job = todo[name]
        given = _declared(job.notebook) | job.parameters
        data = [_checksum(given[key]) for key in sorted(given) if key.endswith("manifest")]
        sources = [(cell["cell_type"], "".join(cell["source"])) for cell in _cells(job.notebook)]
        parts = [common, sources, job.parameters, data, [keys[other] for other in job.after]]
        keys[name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return keys


def _checksum(manifest: Any) -> str | None:
    with contextlib.suppress(OSError, ValueError):  # the notebook will say what is wrong with it
        return load_manifest(manifest).checksum
    return None


def _follow(value: Any, moved: Mapping[str, str]) -> Any:
    """Put the new folder in the place of one that has moved, also as the start of a path."""
    if isinstance(value, list):
        return [_follow(item, moved) for item in value]
    for old, new in moved.items():
        if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
            return new + value[len(old) :]
    return value


def _cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text("utf-8"))["cells"]


def _declared(notebook: Path) -> dict[str, Any]:
    """Read the names and defaults of a notebook's parameters."""
    tagged = [cell for cell in _cells(notebook) if "parameters" in cell["metadata"].get("tags", ())]
    return read_parameters(["".join(cell["source"]) for cell in tagged])


def _n_cores() -> int:
    """Count the cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(usable(0)) if usable else os.cpu_count() or 1


def _execute_and_export(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> str:
    """Run a notebook in this process, write it as ``.ipynb`` and ``.html``; give its error."""
    import nbformat
    import papermill

    error = ""
    try:
        papermill.execute_notebook(
            notebook, target, parameters, kernel_name="python3", language="python",
            progress_bar=False, cwd=project_root(),
        )  # fmt: skip
    except Exception as failure:  # also a dead kernel leaves a page of what it did
        in_cell = isinstance(failure, papermill.PapermillExecutionError)
        error = f"{failure.ename}: {failure.evalue}" if in_cell else repr(failure)
    html = _offline_html(nbformat.read(target, as_version=4), target.stem)
    target.with_suffix(".html").write_text(html, encoding="utf-8")
    return error


def _offline_html(notebook: Any, name: str) -> str:
    """Export a notebook without the scripts that nbconvert's template loads from the network."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook.metadata.pop("widgets", None)  # their plain-text stand-ins are shown
    blocks = ("html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs")
    without = "".join(f"{{% block {block} %}}{{% endblock %}}" for block in blocks)
    loader = DictLoader({"offline.html.j2": "{% extends 'lab/index.html.j2' %}" + without})
    exporter = HTMLExporter(extra_loaders=[loader], template_file="offline.html.j2")
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name}})
    return re.sub(r"<script[^>]*\ssrc=[\"']?(https?:)?//[^>]*>\s*</script>", "", html)


if __name__ == "__main__":
    print(_execute_and_export(Path(sys.argv[1]), Path(sys.argv[2]), json.load(sys.stdin)))
