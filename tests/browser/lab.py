"""A JupyterLab on loopback and Chromium without a screen: for the tests here and a benchmark."""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright import sync_api as playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
FLAGS += "--disable-background-networking --disable-component-update"
OUTERMOST = ".jp-OutputArea-output > .widget-vbox, .jp-OutputArea-output > * > .widget-vbox"


@contextmanager
def jupyterlab(folder):
    """Serve a folder; give the address of a notebook in it and the folder of settings."""
    settings, token = folder / "settings", secrets.token_hex(16)
    write_setting(settings, "apputils-extension/notification", fetchNews="false")
    # every cell stays in the page, also those that are not on the screen
    write_setting(settings, "notebook-extension/tracker", windowingMode="none")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "ip": "127.0.0.1", "port": port, "port-retries": 0, "IdentityProvider.token": token,
        "ServerApp.root_dir": folder, "LabApp.user_settings_dir": settings,
        "LabApp.workspaces_dir": folder / "workspaces",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, folder)
            yield f"http://127.0.0.1:{port}/lab/tree/{{name}}.ipynb?reset&token={token}", settings
        finally:
            server.terminate()  # it ends its kernels, too
            server.wait(30)


@contextmanager
def chromium():
    """Start a browser."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


def open_page(browser, address, kernel_seconds=120):
    """Open a notebook and wait for its kernel; the page records dialogs and hosts."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(60_000)
    page.dialogs, page.hosts = [], set()
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: page.hosts.add(urlsplit(asked.url).hostname))
    page.goto(address)
    ready = page.locator("#jp-main-statusbar")
    playwright.expect(ready).to_contain_text("(ipykernel) | Idle", timeout=1000 * kernel_seconds)
    return page


def run_all(page):
    """Ask for all cells; what waits for them is the caller's."""
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.get_by_text("Run All Cells", exact=True).click()


def saved(page, file):
    """Save a notebook and wait until its file has the widgets' twins."""
    before = file.stat().st_mtime_ns
    page.locator(".lm-MenuBar-item", has_text="File").click()
    page.get_by_text("Save Notebook", exact=True).click()
    for _ in range(120):
        if file.stat().st_mtime_ns > before and "zslkit-still" in file.read_text("utf-8"):
            return
        time.sleep(0.5)
    raise RuntimeError(f"{file.name} was not saved")


def open_without_kernel(browser, address):
    """Open a notebook where no kernel can be started."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(60_000)
    none = {"default": "", "kernelspecs": {}}
    page.route("**/api/kernelspecs**", lambda route: route.fulfill(json=none))
    page.route("**/api/sessions**", lambda route: route.fulfill(json=[]))
    page.goto(address)
    page.locator(".jp-Notebook").wait_for()
    dialog = page.locator(".jp-Dialog")
    dialog.first.wait_for()
    page.keyboard.press("Escape")
    dialog.first.wait_for(state="detached")
    return page


def assert_figures_stand_in(page, n_views):
    """Check that each widget's twin is seen, and no word of what is missing."""
    twins = page.locator(".zslkit-still")
    playwright.expect(twins).to_have_count(n_views)
    page.wait_for_timeout(3_000)  # the manager of widgets looks for a model for two seconds
    for number in range(n_views):
        twin = twins.nth(number)
        twin.scroll_into_view_if_needed()
        playwright.expect(twin).to_be_visible()
        pictures = twin.locator("img, svg")
        assert pictures.count()
        assert pictures.first.bounding_box()["width"] > 30
    for words in ("Error displaying widget", "Loading widget"):
        playwright.expect(page.get_by_text(words).locator("visible=true")).to_have_count(0)


def write_setting(settings, name, **values):
    path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def wait_for(address, server, folder):
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
    raise RuntimeError((folder / "lab.log").read_text())
