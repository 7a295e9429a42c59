"""Run one notebook and export its page: ``python -m zslkit.report.execute NOTEBOOK TARGET``.

A process of its own, so that a kernel that dies or hangs harms no other notebook.
"""

import ast
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zslkit.data.files import project_root, write_text
from zslkit.report.formulas import with_mathml
from zslkit.report.tables import TEMPLATES, title_of

_NOISE = re.compile(
    r"^(step \d+/\d+, epoch|.*\d+%\|)|\bobject at 0x[0-9a-f]+|^(Posix|Windows)Path\(", re.MULTILINE
)
"""Progress, addresses of objects, and where results were written: nothing for a reader."""
_WORDS = re.compile(r"('[^'\n]*'|\"[^\"\n]*\")")
"""A text as the last value of a cell, which Python shows in quotes."""


def _execute_and_export(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> str:
    """Run a notebook in this process, write it as ``.ipynb`` and ``.html``; give its error."""
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
    export(target)
    return error


def export(executed: Path) -> Path:
    """Write the page of an executed notebook beside it: for readers, without network or kernel."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    page = executed.with_suffix(".html")
    write_text(page, _offline_html(_tidy(notebook), executed.stem, title_of(executed)[0]))
    return page


def _tidy(notebook: Any) -> Any:
    """Take out what only a running kernel or a terminal has a use for."""
    notebook.metadata.pop("widgets", None)  # their plain-text stand-ins are shown
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
        elif cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_for_readers(output)]
    return notebook


def _is_for_readers(output: Any) -> bool:
    """Tell whether a page shows an output, from which progress and live views are removed."""
    if output.output_type == "stream":
        lines = output.text.splitlines(keepends=True)
        output.text = "".join(line for line in lines if not _NOISE.search(line))
        return output.name == "stdout" and bool(output.text.strip())  # the other has warnings
    if output.output_type == "error":
        return True
    if 'class="zslkit-still"' in "".join(output.data.get("text/html", "")):
        return False  # a live view's twin: the page shows its figure below
    views = [kind for kind in output.data if kind.startswith("application/vnd.jupyter.widget")]
    for kind in views:
        del output.data[kind]
    if [*output.data] != ["text/plain"]:
        return True
    if _WORDS.fullmatch(words := output.data["text/plain"]):
        output.data["text/plain"] = ast.literal_eval(words)
    return not _NOISE.search(words)


def _offline_html(notebook: Any, name: str, title: str) -> str:
    """Export a notebook by the report's own template; scripts from a network are taken out."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    styles = [(TEMPLATES / "page.css").read_text("utf-8")]
    styles += [HtmlFormatter(style="default").get_style_defs(".highlight")]
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    style = "\n".join([*styles, f"@media (prefers-color-scheme: dark) {{ {dark} }}"])
    exporter = HTMLExporter(
        extra_template_basedirs=[str(TEMPLATES)],
        template_file=str(TEMPLATES / "notebook.html.j2"),
        exclude_anchor_links=True,
    )
    resources = {"metadata": {"name": name, "title": title}, "zslkit": {"style": style}}
    page, _ = exporter.from_notebook_node(notebook, resources)
    return re.sub(r"<script[^>]*\ssrc=[\"']?(https?:)?//[^>]*>\s*</script>", "", page)


if __name__ == "__main__":
    print(_execute_and_export(Path(sys.argv[1]), Path(sys.argv[2]), json.load(sys.stdin)))
