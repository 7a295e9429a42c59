"""Run one notebook and export its page: ``python -m zslkit.report.execute NOTEBOOK TARGET``.

A process of its own, so that a kernel that dies or hangs harms no other notebook.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zslkit.data.files import project_root, write_text


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
    write_text(target.with_suffix(".html"), html)
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
