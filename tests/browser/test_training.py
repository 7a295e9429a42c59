"""Notebook 03 in a real JupyterLab: curves while the kernel works, and a button that it hears."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from .lab import (  # noqa: E402
    CHROMIUM,
    OUTERMOST,
    assert_figures_stand_in,
    chromium,
    jupyterlab,
    open_page,
    open_without_kernel,
    run_all,
    saved,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path"),
]
ROOT = Path(__file__).parents[2]


def test_curves_follow_the_kernel_and_stop_and_save_is_heard(tiny_settings, tmp_path):
    notebook = load_notebook_node(str(ROOT / "notebooks" / "03_train.ipynb"))
    settings = {name: value for name, value in tiny_settings.items() if value is not None}
    own = {**settings, "epochs": 1_000, "output_dir": str(tmp_path / "run"), "live_seconds": 1}
    nbformat.write(parameterize_notebook(notebook, own), tmp_path / "train.ipynb")
    with jupyterlab(tmp_path) as (address, _), chromium() as browser:
        page = open_page(browser, address.format(name="train"))
        run_all(page)
        monitor = page.locator(OUTERMOST).first
        status, curve = monitor.get_by_role("status"), monitor.locator("polyline").first
        playwright.expect(status).to_contain_text("Step", timeout=120_000)
        before = status.inner_text(), curve.get_attribute("points")
        playwright.expect(status).not_to_have_text(before[0], timeout=60_000)
        playwright.expect(curve).not_to_have_attribute("points", before[1])
        stop = monitor.get_by_role("button", name="stop and save")
        stop.focus()
        stop.press("Enter")
        playwright.expect(monitor.get_by_role("alert")).to_contain_text("the run will be saved")
        playwright.expect(stop).to_be_disabled()
        if keep := os.environ.get("ZSLKIT_SCREENSHOTS"):
            for theme in ("Light", "Dark"):
                page.locator(".lm-MenuBar-item", has_text="Settings").click()
                page.get_by_text("Theme", exact=True).hover()
                page.get_by_text(f"JupyterLab {theme}", exact=True).click()
                page.wait_for_timeout(2_000)
                monitor.screenshot(path=Path(keep) / f"monitor-{theme.lower()}.png")
        last = page.locator(".jp-OutputArea-output", has_text="results.json")
        playwright.expect(last.last).to_be_attached(timeout=120_000)
        saved(page, tmp_path / "train.ipynb")
        again = open_without_kernel(browser, address.format(name="train"))
        assert_figures_stand_in(again, 1)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["record"]
    assert record["interrupted"]
    assert record["steps"] > 1
