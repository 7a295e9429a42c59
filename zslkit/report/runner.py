"""Run notebooks side by side, each in a process of its own, and skip what has not changed."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from zslkit.data.files import project_root, write_json
from zslkit.data.manifests import load_manifest
from zslkit.data.strict import check_names
from zslkit.report.executors import executing
from zslkit.report.index import describe, write_index
from zslkit.report.notebook import read_parameters
from zslkit.report.numerics import PORTABLE
from zslkit.report.provenance import SOURCES, installed


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
    portable: bool = False
    """Whether its numbers shall be equal on processors of different makers."""

    def absolute(self) -> "Job":
        """Give the same with paths that a process started elsewhere can follow."""
        paths = (path.resolve() for path in self[:3])
        return self._replace(**dict(zip(self._fields, paths, strict=False)))


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
    portable: bool = False,
    executor: Executor | str | None = None,
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
    portable : bool
        Compute with :data:`~zslkit.report.numerics.PORTABLE` numerics, so that another processor
        gives equal bits.
    executor : Executor or str, optional
        What runs the notebooks instead of threads here: any ``concurrent.futures.Executor``, or
        the address of a Dask scheduler whose workers see this folder under the same path.

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
    todo = {name: job._replace(portable=portable) for name, job in todo.items()}
    folder.mkdir(parents=True, exist_ok=True)
    build = _Build(todo, folder, max(1, cores // (jobs or cores)), minutes, fresh)
    with executing(executor) as other:
        build.run(jobs or cores, other)
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

    def run(self, jobs: int, executor: Executor | None = None) -> None:
        """Bring every notebook up to date and fill ``went``, how it went by name."""
        sorter = TopologicalSorter({name: job.after for name, job in self.todo.items()})
        sorter.prepare()
        running: dict[Any, str] = {}
        pool = executor or ThreadPoolExecutor(jobs)
        try:
            while sorter.is_active():
                for name in sorter.get_ready():
                    if self._settled(name):
                        sorter.done(name)
                    else:
                        self._begin(name)
                        print(f"{name}: started", flush=True)
                        job = self.todo[name].absolute()
                        call = _timed, job, self.threads, self.minutes
                        running[pool.submit(*call)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._end(running[future], *future.result())
                    sorter.done(running.pop(future))
        finally:
            for future in running:
                future.cancel()  # after Ctrl-C those that wait shall not start
            if pool is not executor:
                pool.shutdown()

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


def _timed(job: Job, threads: int, minutes: float) -> tuple[str, float]:
    """Run a notebook; give its error and the minutes that it took."""
    start = time.monotonic()
    error = run_notebook(job, threads, minutes)
    return error, (time.monotonic() - start) / 60


def run_notebook(job: Job, threads: int, minutes: float | None = None) -> str:
    """Run and export one notebook in a process of its own; give its error, "" if there is none.

    ``threads`` is what the process may use of the CPU; after ``minutes`` it is stopped.
    """
    target, root = job.target.resolve(), project_root()
    for path in (job.folder / "results.json", target, target.with_suffix(".html")):
        path.unlink(missing_ok=True)  # of an earlier run
    command = [
        sys.executable,
        "-m",
        "zslkit.report.execute",
        str(job.notebook.resolve()),
        str(target),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    environment |= PORTABLE if job.portable else {}
    try:
        done = subprocess.run(
            command, input=json.dumps(job.parameters), capture_output=True, text=True, cwd=root,
            env=environment, timeout=minutes and minutes * 60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"stopped: it took longer than {minutes:g} minutes"
    died = f"its process ended with status {done.returncode}: {done.stderr[-500:].strip()}"
    return done.stdout.strip() or (died if done.returncode else "")


def _plan(paths: Sequence[Path], folder: Path, plan: Mapping[str, Mapping]) -> dict[str, Job]:
    """Work out what each notebook is given, where it writes and whom it comes after."""
    root, names = project_root(), [path.stem for path in paths]
    check_names(plan, names, "notebook")
    for name, entry in plan.items():
        check_names(entry, ("parameters", "after"), f"key in the plan of {name}")
        check_names({other: name for other in entry.get("after", ())}, names, "notebook to follow")
    declared = {path.stem: declared_parameters(path) for path in paths}
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
        followed = {key: follow(value, moved) for key, value in usual.items()}
        parameters = given[name] | {
            key: followed[key] for key in usual if followed[key] != usual[key]
        }
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
        given = declared_parameters(job.notebook) | job.parameters
        data = [_checksum(given[key]) for key in sorted(given) if key.endswith("manifest")]
        sources = [(cell["cell_type"], "".join(cell["source"])) for cell in _cells(job.notebook)]
        parts = [common, sources, job.parameters, data, [keys[other] for other in job.after]]
        parts += [PORTABLE] if job.portable else []
        keys[name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return keys


def _checksum(manifest: Any) -> str | None:
    with contextlib.suppress(OSError, ValueError):  # the notebook will say what is wrong with it
        return load_manifest(manifest).checksum
    return None


def follow(value: Any, moved: Mapping[str, str]) -> Any:
    """Put the new folder in the place of one that has moved, also as the start of a path."""
    if isinstance(value, list):
        return [follow(item, moved) for item in value]
    for old, new in moved.items():
        if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
            return new + value[len(old) :]
    return value


def _cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text("utf-8"))["cells"]


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Read the names and defaults of a notebook's parameters."""
    tagged = [cell for cell in _cells(notebook) if "parameters" in cell["metadata"].get("tags", ())]
    return read_parameters(["".join(cell["source"]) for cell in tagged])


def _n_cores() -> int:
    """Count the cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(usable(0)) if usable else os.cpu_count() or 1
