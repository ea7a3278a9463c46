"""Fixtures for tests in a real browser: Chromium, made-up views to show, and JupyterLab."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from vcutils.attention.views import View
from vcutils.decode import Hypothesis

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")
TIMEOUT = 60_000  # ms; a busy machine is slow, not wrong


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by Playwright; the test is skipped where one of both is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    executable = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if executable is None:
        pytest.skip("no Chromium: bash tests/browser/ensure_chromium.sh says why")
    flags = [*FLAGS, *(["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else [])]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    """Function: a new tab that notes what a user would never see; afterwards there must be no error in it."""
    contexts, errors = [], []

    def make(width=1280, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(f"exception: {error}"))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    make.errors = errors
    yield make
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def screenshots(repo):
    """The folder where screenshots are kept to be looked at."""
    folder = repo / "data" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def make_view():
    """Function: a view of made-up pictures in which word n looks at frame 3n, and with `end` <end> at the last one."""

    def make(
        captions=("a cat sits and a dog runs", "a cat runs"), frames=8, size=(60, 80), title="clip", end=False, **rest
    ):
        rng = np.random.default_rng(0)
        height, width = size
        colours = np.linspace(20, 235, frames)
        images = [np.full((height, width, 3), (c, 90, 255 - c), np.uint8) for c in colours]
        beams = []
        for rank, caption in enumerate(captions):
            words = caption.split()
            weights = rng.random((len(words), frames)) * 0.02
            weights[np.arange(len(words)), (3 * np.arange(len(words)) + rank) % frames] = 1
            weights /= weights.sum(axis=1, keepdims=True)
            log_probs = np.log(rng.uniform(0.2, 1, len(words)))
            score = -0.3 * (rank + 1)
            ending = np.eye(frames)[-1] if end else None
            beams.append(Hypothesis(words, score * len(words), score, log_probs, weights, ending))
        return View(title, (np.arange(frames) * 0.5 + 0.25).tolist(), beams, images, **rest)

    return make


@pytest.fixture
def served(repo, tmp_path):
    """Function: start a server on a free port, as `command` says for that port, and wait until it answers."""
    servers = []

    def start(command, path, environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        paths = os.pathsep.join(filter(None, [str(repo), os.environ.get("PYTHONPATH")]))
        log, base = tmp_path / "server.log", f"http://127.0.0.1:{port}"
        with log.open("w") as output:
            variables = os.environ | {"PYTHONPATH": paths, **environment}
            server = subprocess.Popen(command(port), env=variables, stdout=output, stderr=subprocess.STDOUT)
        servers.append(server)
        for _ in range(720):
            try:
                urllib.request.urlopen(f"{base}{path}", timeout=5).close()
                return base
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert server.poll() is None, log.read_text()
                time.sleep(0.25)
        pytest.fail(f"no server within three minutes:\n{log.read_text()}")

    yield start
    for server in servers:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def jupyter(served, tmp_path):
    """Function: JupyterLab or Notebook 7 on a folder, with settings of its own; returns a notebook's address."""

    def start(folder, application="lab", **environment):
        token = secrets.token_hex(16)
        settings = tmp_path / "lab" / "settings" / "@jupyterlab" / "notebook-extension"
        settings.mkdir(parents=True)
        # Every cell is in the document, in view or not.
        (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
        own = {name: str(tmp_path / "lab" / name) for name in ("config", "data", "runtime", "ipython", "workspaces")}
        variables = {
            "JUPYTER_CONFIG_DIR": own["config"],
            "JUPYTER_DATA_DIR": own["data"],
            "JUPYTER_RUNTIME_DIR": own["runtime"],
            "IPYTHONDIR": own["ipython"],
            "JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1]),
            "JUPYTERLAB_WORKSPACES_DIR": own["workspaces"],
        }
        module = {"lab": "jupyterlab", "notebook": "notebook"}[application]
        command = [sys.executable, "-m", module, "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
        command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
        command += [f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly"]
        command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        base = served(
            lambda port: [*command, f"--ServerApp.port={port}"], f"/api?token={token}", variables | environment
        )
        place = {"lab": "lab/tree", "notebook": "notebooks"}[application]
        return lambda name: f"{base}/{place}/{name}?token={token}"

    return start
