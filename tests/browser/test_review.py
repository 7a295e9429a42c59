"""A review of captions in a real JupyterLab: decided by key, without a mouse."""

import json

import nbformat
import pytest

from zslkit.config import RunConfig
from zslkit.trainer import train

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from .lab import CHROMIUM, OUTERMOST, chromium, jupyterlab, open_page, run_all  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path"),
]
CELL = """import zslkit as zk
zk.CaptionReview(zk.load_run("run"), "my.review.json", share=1.0)"""


def test_keys_write_decisions_and_jupyterlab_keeps_its_cell(tiny_settings, tmp_path):
    train(RunConfig(**{**tiny_settings, "max_steps": 2, "output_dir": str(tmp_path / "run")}))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "review.ipynb")
    with jupyterlab(tmp_path) as (address, _), chromium() as browser:
        page = open_page(browser, address.format(name="review"))
        run_all(page)
        box = page.locator(OUTERMOST).first
        keys = box.get_by_role("group", name="decide by key")
        playwright.expect(keys).to_be_visible(timeout=120_000)
        status = box.get_by_role("status")
        keys.focus()
        keys.press("k")
        playwright.expect(status).to_contain_text("Suspect 2")
        keys.press("d")  # twice: JupyterLab would delete the cell
        playwright.expect(status).to_contain_text("Suspect 3")
        keys.press("d")
        playwright.expect(status).to_contain_text("Suspect 4")
        keys.press("e")
        field = box.get_by_label("other words for the caption")
        playwright.expect(field).to_be_focused()
        field.fill("seen in the browser, kept as typed")
        field.press("Enter")
        playwright.expect(status).to_contain_text("Suspect 5")
        playwright.expect(keys).to_be_focused()
        box.get_by_role("button", name="swap").click()
        playwright.expect(status).to_contain_text("Suspect 6")
        playwright.expect(page.locator(".jp-CodeCell")).to_have_count(1)
        assert page.hosts <= {"127.0.0.1", None}
    decisions = json.loads((tmp_path / "my.review.json").read_text())["decisions"]
    actions = [one["action"] for one in decisions]
    assert actions[:2] == ["keep", "drop"]
    assert "swap" in actions
    assert "seen in the browser, kept as typed" in [one.get("text") for one in decisions]
