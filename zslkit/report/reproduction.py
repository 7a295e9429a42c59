"""Run recorded results again and compare."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zslkit.data.strict import check_names
from zslkit.report.cards import load_results
from zslkit.report.runner import Job, declared_parameters, follow, run_notebook
from zslkit.report.verdicts import judge, seed_spreads


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
        ``name``, new ``folder``, ``error`` of the notebook, and the verdicts that
        :func:`~zslkit.report.verdicts.judge` gives: ``n_equal`` metrics, ``explained`` and
        ``differences`` (metric to both estimates), ``origin`` and ``facts`` that differ.

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
    spreads = seed_spreads([*recorded.values()])
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in jobs.items():
        print(f"{name}: started", flush=True)
        error = run_notebook(job, recorded[name]["machine"]["threads"])
        outcome = {"name": name, "folder": job.folder, "n_equal": 0, "origin": []}
        outcome |= {"explained": {}, "differences": {}, "facts": {}}
        if (job.folder / "results.json").is_file():
            outcome |= judge(recorded[name], load_results(job.folder), spreads)
        else:
            error = error or "the notebook left no results in its output_dir"
        yield outcome | {"error": error}


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
    declared = {name: declared_parameters(source) for name, source in sources.items()}
    check_names(changes, {key for names in declared.values() for key in names}, "parameter")
    jobs, missing = {}, []
    for name, results in recorded.items():
        parameters = {key: follow(value, moved) for key, value in results["parameters"].items()}
        parameters |= {key: changes[key] for key in changes if key in declared[name]}
        parameters |= {"output_dir": (folder / name).as_posix()}
        missing += [f"{key}={value!r}" for key, value in parameters.items() if "…/" in str(value)]
        held = results["machine"].get("numerics") == "portable"
        target = folder / f"{name}.ipynb"
        jobs[name] = Job(sources[name], target, folder / name, parameters, portable=held)
    if missing:
        raise ValueError(
            f"{', '.join(dict.fromkeys(missing))}: outside the project, so that only the last "
            "part was recorded; say where it is with --set NAME=PATH"
        )
    return jobs
