"""Milliseconds from the last key stroke to new bars, in a real JupyterLab and a real browser.

Needs the ``dev`` extra, the sentence encoder of ``requirements-nodeps.lock`` and Chromium. Run
``python benchmarks/explore.py``; writes a results file. Twelve minutes on two cores.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from zslkit.config import RunConfig
from zslkit.trainer import train
from zslkit.zeroshot.label_spaces import load_label_space

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser.lab import OUTERMOST, chromium, jupyterlab, open_page, playwright, run_all

RESULTS = Path(__file__).parent / "results" / "explore.json"
SIZES, REPETITIONS, KEY_MS, QUIET_MS = (1_000, 20_000), 10, 60, 1_000
CELLS = (
    """import html, json, ipywidgets
import zslkit as zk
run = zk.load_run("run")
spaces = {str(len(names)): names for names in json.load(open("names.json"))}
explorer = zk.widgets.ZeroShotExplorer(run, class_names=[], label_spaces=spaces)
explorer""",
    """area, echo = ipywidgets.Textarea(rows=7), ipywidgets.HTML()
said = lambda text: html.escape(f"{len(text)} {text[-40:]}")
area.observe(lambda change: setattr(echo, "value", said(change["new"])), "value")
ipywidgets.VBox([area, echo])""",
    'print("ALL_CELLS_" + "RUN")',
)
# Clocks in the page: the last key that went down; the last frame painted with a change of the
# explorer's or of the echo's view.
CLOCKS = """([explorer, echo]) => {
  window.clocks = {key: 0, explorer: 0, echo: 0};
  addEventListener("keydown", () => { clocks.key = performance.now(); }, true);
  const watch = (name, view) => new MutationObserver(() => requestAnimationFrame(
    () => setTimeout(() => { clocks[name] = performance.now(); }))
  ).observe(view, {subtree: true, childList: true, characterData: true});
  watch("explorer", explorer);
  watch("echo", echo);
}"""


def milliseconds(page, clock, field, texts, shows):
    """Type texts one after the other; give the time from each one's last key to the last change."""
    times = []
    for number, text in enumerate(texts):
        field.press("Control+End")
        page.wait_for_timeout(QUIET_MS)
        field.press_sequentially(text, delay=KEY_MS)
        shows(number)
        page.wait_for_function(f"performance.now() - clocks.{clock} > {QUIET_MS}")
        times.append(page.evaluate(f"clocks.{clock} - clocks.key"))
    assert min(times) > 0, "the last key stroke changed nothing"
    return {"median": round(statistics.median(times)), "worst": round(max(times))}


def put(area, text):
    """Set a text at once: what Playwright fills in takes Chromium minutes for 20,000 lines."""
    typed = "area.dispatchEvent(new Event('input', {bubbles: true}))"
    area.evaluate(f"(area, text) => {{ area.value = text; {typed}; }}", text)


def of_classes(explorer, n):
    playwright.expect(explorer.locator("caption")).to_contain_text(
        f"of {n:,} classes", timeout=600_000
    )


def first_embedding(page, explorer, echo, n):
    """Choose a label space that nobody has embedded; type elsewhere while the model works."""
    area, times = echo.locator("textarea"), []
    start = time.perf_counter()
    explorer.get_by_label("label space").select_option(index=1 + SIZES.index(n))
    said = set()
    while explorer.locator("caption", has_text=f"of {n + 1:,} classes").count() == 0:
        if "prompts embedded" in (words := explorer.get_by_role("status").inner_text()):
            said.add(words)
        page.evaluate("clocks.echo = 0")
        area.press("x")
        page.wait_for_function("clocks.echo > clocks.key")
        times.append(page.evaluate("clocks.echo - clocks.key"))
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 1),
        "progress_messages": len(said),
        "echo_meanwhile_ms": {
            "median": round(statistics.median(times)),
            "worst": round(max(times)),
            "n": len(times),
        },
    }


def measure(page, names):
    """Do all measurements in an open page whose cells have run."""
    explorer, echo = (page.locator(OUTERMOST).nth(number) for number in (0, 1))
    classes, search = (
        explorer.locator(".widget-textarea textarea").first,
        explorer.get_by_label("of it only"),
    )
    views = explorer.locator(".widget-hbox > .widget-vbox").last, echo.locator(".widget-html")
    page.evaluate(CLOCKS, [view.element_handle() for view in views])
    new = [f"\nnew thing {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[:REPETITIONS]]
    found = {}
    for n in SIZES:
        put(classes, "one thing")
        of_classes(explorer, 1)
        here = {"first_embedding": first_embedding(page, explorer, echo, n)}

        def one_more(number, before=n + 1):
            of_classes(explorer, before + number + 1)

        here["label_space_and_typed_ms"] = milliseconds(page, "explorer", classes, new, one_more)
        put(classes, "")  # what is typed would compete with what is found
        here["label_space_searched_ms"] = searched(page, explorer, search, names[:n])
        explorer.get_by_label("label space").select_option(index=0)
        put(classes, "\n".join(names[:n]))
        of_classes(explorer, n)
        here["all_typed_ms"] = milliseconds(
            page, "explorer", classes, new, lambda i, n=n: of_classes(explorer, n + i + 1)
        )
        for words, text in (("", "x"), ("_of_all_names", "\n".join(names[:n]))):
            area = echo.locator("textarea")
            put(area, text)
            here[f"echo{words}_ms"] = milliseconds(page, "echo", area, new, lambda i: None)
            print(n, json.dumps(here), flush=True)
        found[str(n)] = here
    return found


def searched(page, explorer, search, names):
    """Search for one class after the other; each is found by few others' names."""
    folded = [name.casefold() for name in names]
    likely = [name for name in folded if 5 < len(name) < 12][::10][: 4 * REPETITIONS]
    rare = [name for name in likely if sum(name in other for other in folded) == 1]
    times = []
    for name in rare[:REPETITIONS]:
        search.fill("")
        shows = playwright.expect(explorer.locator("td:first-child").filter(has_text=name))
        times.append(
            milliseconds(page, "explorer", search, [name], lambda i, e=shows: e.to_have_count(1))
        )
    search.fill("")
    times = [entry["worst"] for entry in times]
    return {"median": round(statistics.median(times)), "worst": max(times), "n": len(times)}


def main():
    """Make a run and a notebook, open it, measure, and write the results."""
    every = dict.fromkeys(load_label_space("imagenet21k").class_names)
    names = [name for name in every if "," not in name and '"' not in name]
    own = {"manifest": "toy", "zeroshot_manifest": "toy", "zeroshot_split": "test"}
    own |= {"image_weights": "none", "prompt_templates": "simple", "max_steps": 1, "batch_size": 8}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        settings = {**own, "max_pairs": 16, "output_dir": str(folder / "run"), "cache_dir": None}
        train(RunConfig.preset("laptop", **settings))
        (folder / "names.json").write_text(json.dumps([names[:n] for n in SIZES]))
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        notebook = new_notebook(cells=[*map(new_code_cell, CELLS)], metadata=kernel)
        nbformat.write(notebook, folder / "bench.ipynb")
        with jupyterlab(folder) as (address, _), chromium() as browser:
            page = open_page(browser, address.format(name="bench"))
            run_all(page)
            done = page.locator(".jp-OutputArea-output", has_text="ALL_CELLS_RUN")
            playwright.expect(done).to_be_attached(timeout=180_000)
            found, version = measure(page, names), browser.version
    results = {
        "what": "milliseconds from the last key that goes down to the frame painted with the last "
        f"change of the bars; keys {KEY_MS} ms apart, then {QUIET_MS} ms of silence; the widget's "
        "150 ms of rest, both ways through the server, parsing, ranking and painting are in it",
        "goals_ms": {"1000": 300, "20000": 1000},
        "echo": "the floor of the medium: a Textarea whose end an ipywidgets.HTML repeats, without "
        "rest and model; once with a short text, once with all names in it",
        "model": "MobileNetV2 without weights, MiniLM-L6, 512 dimensions, one prompt a class",
        "names": "first lemmas of ImageNet-22k (timm)",
        "repetitions": REPETITIONS,
        "classes": found,
        "machine": {
            "platform": platform.machine(),
            "cores": os.cpu_count(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())),
            "chromium": version,
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
