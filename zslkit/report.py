"""Results on disk, tables of them, and the page that shows every notebook's answer."""

import base64
import io
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from zslkit import __version__
from zslkit.checkpoint import write_json
from zslkit.config import project_root
from zslkit.manifests import load_manifest

PACKAGES = {"numpy", "pandas", "safetensors", "timm", "torch", "torchvision", "transformers"}
PUBLISHED = {
    "source": "README of facebookresearch/OTTER (Wu et al., 2021, arXiv:2112.09445)",
    "setting": "CC3M, ResNet-50 + DeCLUTR-sci-base; flat hit@k as fractions; not our runs",
    "sets": ("Google Open Images", "ImageNet-10K (Tencent)"),
    "ks": (1, 5, 10),
    "methods": {
        "InfoNCE": ((0.268, 0.551, 0.664), (0.109, 0.294, 0.405)),
        "label smoothing": ((0.263, 0.559, 0.675), (0.101, 0.296, 0.398)),
        "distillation (EMA teacher)": ((0.267, 0.553, 0.671), (0.100, 0.275, 0.385)),
        "optimal transport": ((0.291, 0.596, 0.709), (0.120, 0.318, 0.421)),
    },
}


def record(
    metrics: Mapping[str, Any],
    config: Any,
    output_dir: str | Path,
    *,
    figures: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a notebook's figures and then, atomically, ``results.json``; give its path.

    ``metrics`` are numbers, nested at will, or what ``metrics.estimate`` returns; ``config`` is a
    RunConfig, mapping or None; ``figures`` map names to Figures, saved as ``NAME.png``; ``extra``
    is anything that JSON holds. Paths outside the project are cut to their last part. A ValueError
    names the metric that is no finite number, or the figure whose name is no plain file name.
    """
    from torch import cuda

    folder, figures = Path(output_dir), figures or {}
    settings = config.model_dump(mode="json") if hasattr(config, "model_dump") else config or {}
    manifest, root = settings.get("manifest"), settings.get("data_root")
    found = {(d.name or "").lower(): d.version for d in metadata.distributions()}
    versions = {name: found[name] for name in sorted(PACKAGES & found.keys())}
    system = f"{platform.system()} {platform.machine()}"
    device = cuda.get_device_name() if cuda.is_available() else "cpu"
    results = {
        "name": folder.resolve().name,
        "metrics": _numbers(metrics, "metrics"),
        "config": portable(settings),
        "seed": settings.get("seed"),
        "manifest_checksum": manifest and load_manifest(manifest, root).checksum,
        "figures": {name: f"{name}.png" for name in figures},
        "extra": portable(extra or {}),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"zslkit": __version__, "python": platform.python_version(), **versions},
        "machine": {"platform": system, "cores": os.cpu_count(), "device": device},
    }
    if wrong := [name for name in figures if not re.fullmatch(r"[\w-]+", name)]:
        raise ValueError(f"figure names take letters, digits, _ and -, not {wrong}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=144)
    write_json(folder / "results.json", results)
    return folder / "results.json"


def load_results(path: str | Path) -> dict[str, Any]:
    """Read what :func:`record` wrote, from the file or its folder."""
    path = Path(path)
    return json.loads((path / "results.json" if path.is_dir() else path).read_text("utf-8"))


def results_table(results: Sequence[Mapping[str, Any]]) -> Any:
    """Put the metrics of several results, names joined by " / ", into a pandas DataFrame."""
    from pandas import DataFrame

    columns = ["name", "metric", "value", "low", "high", "n", "chance", "seed"]
    rows = [
        {"name": result["name"], "metric": metric, "seed": result["seed"], **numbers}
        for result in results
        for metric, numbers in flat(result["metrics"])
    ]
    return DataFrame(rows, columns=columns)


def build_report(
    notebooks: Sequence[Path],
    output_dir: str | Path,
    parameters: Mapping[str, Mapping] | None = None,
) -> Path:
    """Run notebooks one after another; write each as HTML and ``index.html`` over all of them.

    Kernels start in the project root. ``parameters`` maps a notebook's name (without .ipynb) to
    papermill parameters; a notebook that has the parameter ``output_dir`` gets
    ``output_dir/NAME`` by default. One that fails is marked with its error, and the next one
    runs. No page loads anything from the network. A ValueError names parameters of no notebook.
    """
    from jinja2 import Environment

    paths, parameters, folder = [*map(Path, notebooks)], parameters or {}, Path(output_dir)
    if strangers := sorted(parameters.keys() - {path.stem for path in paths}):
        raise ValueError(f"parameters for notebooks that are not run: {', '.join(strangers)}")
    if any(path.parent.resolve() == folder.resolve() for path in paths):
        raise ValueError(f"output_dir={str(folder)!r} would overwrite the notebooks themselves")
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_run(path, folder, dict(parameters.get(path.stem, {}))) for path in paths]
    results = {entry["name"]: entry["results"] for entry in entries if entry["results"]}
    last = next(reversed(results.values()), {"versions": {}, "machine": {}})
    source = Path(__file__).with_name("report.html").read_text("utf-8")
    page, template = folder / "index.html", Environment(autoescape=True).from_string(source)
    html = template.render(
        entries=entries,
        failed=sum(bool(entry["error"]) for entry in entries),
        rows=[[k, *_row(*row)] for k, v in results.items() for row in flat(v["metrics"])],
        about=" · ".join(f"{k} {v}" for k, v in (last["versions"] | last["machine"]).items()),
        date=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    )
    page.write_text(html, encoding="utf-8")
    return page


def _run(notebook: Path, folder: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Execute and export one notebook; tell the index how it went."""
    import nbformat
    import papermill

    root, name, target = project_root(), notebook.stem, folder / notebook.name
    cells = nbformat.read(notebook, as_version=4).cells
    sources = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    if any(re.search(r"^output_dir\b", source, re.MULTILINE) for source in sources):
        parameters.setdefault("output_dir", Path(os.path.relpath(folder / name, root)).as_posix())
    own = root / parameters.get("output_dir", folder.resolve() / name)
    (own / "results.json").unlink(missing_ok=True)  # of an earlier run
    error, start = "", time.monotonic()
    try:
        papermill.execute_notebook(
            notebook, target, parameters, kernel_name="python3", language="python",
            progress_bar=False, cwd=root,
        )  # fmt: skip
    except Exception as failure:  # also a dead kernel must not stop the others
        in_cell = isinstance(failure, papermill.PapermillExecutionError)
        error = f"{failure.ename}: {failure.evalue}" if in_cell else repr(failure)
    minutes = (time.monotonic() - start) / 60
    executed = nbformat.read(target, as_version=4)
    target.with_suffix(".html").write_text(_offline_html(executed, name), encoding="utf-8")
    texts = [cell.source for cell in executed.cells if cell.cell_type == "markdown"]
    text = next((text for text in texts if text.startswith("# ")), f"# {name}")
    title, _, body = re.sub("[*`]", "", text[2:]).partition("\n")
    results = load_results(own) if (own / "results.json").exists() else None
    figures = list(results["figures"].items())[:3] if results else ()
    thumbnails = {label: _thumbnail(own / file) for label, file in figures}
    entry = {"name": name, "title": title, "question": body.strip().split("\n\n")[0]}
    return entry | {
        "error": error,
        "minutes": minutes,
        "results": results,
        "thumbnails": thumbnails,
    }


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


def _thumbnail(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((720, 720))
        image.save(stream := io.BytesIO(), format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _row(metric: str, numbers: Mapping[str, float]) -> list[str]:
    """Word value, interval, n and chance; figures that are fractions become percentages."""
    is_rate = re.search("hit|recall|accuracy|share", metric) and "ratio" not in metric
    form = "{:.1%}" if is_rate and abs(numbers["value"]) <= 1 else "{:.4g}"
    shown = {key: form.format(number) for key, number in numbers.items() if key != "n"}
    interval = "{low} to {high}".format(**shown) if "low" in shown else ""
    return [metric, shown["value"], interval, numbers.get("n", ""), shown.get("chance", "")]


def flat(metrics: Any, name: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Walk nested metrics; a lone number becomes an estimate without interval."""
    metrics = dict(enumerate(metrics)) if isinstance(metrics, list) else metrics
    if isinstance(metrics, Mapping) and "value" not in metrics:
        for key, value in metrics.items():
            yield from flat(value, f"{name} / {key}" if name else str(key))
    else:
        yield name, metrics if isinstance(metrics, Mapping) else {"value": metrics}


def _numbers(value: Any, name: str) -> Any:
    """Turn nested numbers of any library into plain ones; JSON has no NaN and no infinity."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(key): _numbers(item, f"{name} / {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item, f"{name} / {place}") for place, item in enumerate(value)]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r} is no finite number")
    return value


def portable(value: Any) -> Any:
    """Make paths relative to the project; of those outside keep the last part, they name people."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str | Path) and Path(value).is_absolute():
        path, root = Path(value), project_root()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else f"…/{path.name}"
    return value
