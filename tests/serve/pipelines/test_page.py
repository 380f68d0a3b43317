# SPDX-License-Identifier: Apache-2.0
"""The page of pipelines: its files, its pure functions under Node, and all of it in Chromium with a real worker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from open_autoglm.serve.pipelines import pipelines_page
from open_autoglm.serve.pipelines.pipelines_page import PAGE_FILES, PAGE_PATHS
from open_autoglm.serve.routes.playground_route import PLAYGROUND_FILES
from tests.serve.chromium_page import Page, one_page
from tests.serve.pipelines.conftest import Station, station_in, until
from tests.serve.test_playground_units import NODE

FOLDER = Path(pipelines_page.__file__).parent / "page"
KEY = "secret-key-of-the-page"
SECONDS = 240.0
"""What a machine with other work may take; nothing waits for its end."""


def test_the_files_are_served_without_a_key_and_have_nothing_inline(station: Station) -> None:
    assert sorted(PAGE_FILES) == sorted(path.name for path in FOLDER.iterdir())
    for path in PAGE_PATHS:
        response = station.client.get(path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert station.client.get("/pipelines/nothing.js").status_code == 404
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script(?![^>]*src=)|\son\w+=|\sstyle=", html)
    for name in PAGE_FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert "SPDX-License-Identifier: Apache-2.0" in text[:100]
        assert len(text.splitlines()) < 400
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert re.findall(r"https?://\S+", text.replace("http://www.w3.org/", "")) == []
        for imported in re.findall(r'from "([^"]+)"', text):
            folder, _, file = imported.rpartition("/")
            assert file in {".": PAGE_FILES, "../playground": PLAYGROUND_FILES}[folder], imported


@pytest.mark.skipif(NODE is None, reason="no Node here")
def test_the_units_hold(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "pipelines")
    shutil.copytree(FOLDER.parent.parent / "playground", tmp_path / "playground")
    shutil.copy(Path(__file__).parent / "page.test.mjs", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        [str(NODE), "--test", "--test-reporter=tap", "page.test.mjs"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from one_page(tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def keyed(
    browser: Page, stage_package: Path, dialogue_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Station]:
    del browser  # without one there is no need for the server
    del stage_package
    with station_in(tmp_path_factory.mktemp("keyed"), dialogue_bundle, api_key=KEY) as found:
        yield found


@pytest.fixture
def worker(keyed: Station, stage_package: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real program."""
    command = [sys.executable, "-m", "open_autoglm", "worker", "--folder", str(keyed.runs), "--cpu", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(stage_package), *filter(None, sys.path)])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    until(lambda: keyed.get("/v1/runs")["workers"] == 1)
    yield process
    process.terminate()
    process.wait(120)


def open_page(page: Page, station: Station, *, language: str = "en") -> None:
    page.open(station.url)
    page.script("localStorage.setItem('open-autoglm.language', JSON.stringify(arguments[0]))", language)
    page.script("sessionStorage.setItem('open-autoglm.api-key', arguments[0])", KEY)
    page.faults()
    page.driver.get(f"{station.url}/pipelines")
    page.until_ready()


def state_of(page: Page) -> str:
    return page.script("return document.querySelector('#run-state').dataset.state ?? ''")


def boxes_of(page: Page) -> dict[str, str]:
    script = (
        "return Object.fromEntries([...document.querySelectorAll('.box')].map(b => [b.dataset.stage, b.dataset.state]))"
    )
    return page.script(script)


def test_without_a_key_the_page_asks_for_one(browser: Page, keyed: Station) -> None:
    page = browser
    page.open(keyed.url)
    page.driver.get(f"{keyed.url}/pipelines")
    page.until_ready()
    assert page.find("#key-form").is_displayed()
    assert page.find_all("#pipelines .card") == []
    page.fill("#api-key", KEY)
    page.until(lambda: len(page.find_all("#pipelines .card")) == 8, SECONDS)
    assert not page.find("#key-form").is_displayed()
    assert "no worker" in page.text("#no-worker").lower()
    assert page.find("#no-worker").is_displayed()
    assert "did you mean" in page.text("[data-pipeline=bad] .faults")
    assert page.find_all("[data-pipeline=bad] button") == []
    page.faults()  # the first try was refused


def test_a_run_is_started_and_seen_to_its_end(browser: Page, keyed: Station, worker: object) -> None:
    del worker
    page = browser
    (keyed.root / "go").unlink(missing_ok=True)
    open_page(page, keyed)
    page.requested()
    page.click("[data-pipeline=waits] button")
    page.until(lambda: boxes_of(page) == {"a": "running", "b": "waiting"}, SECONDS)
    page.until(lambda: "a: " in page.text("#log") and "waiting for go" in page.text("#log"), SECONDS)
    assert len(page.find_all("#graph .edge")) == 1
    assert page.find("#cancel").is_displayed()
    assert not page.find("#retry").is_displayed()
    assert not page.find("#no-worker").is_displayed()
    (keyed.root / "go").touch()
    page.until(lambda: state_of(page) == "done", SECONDS)
    assert boxes_of(page) == {"a": "done", "b": "done"}
    page.until(lambda: "it has come" in page.text("#log"), SECONDS)
    assert '"b": 1' in page.text("#payload")
    run = page.script("return location.hash.slice(1)")
    assert keyed.get(f"/v1/runs/{run}")["state"] == "done"
    page.until(lambda: page.text(f"[data-run='{run}'] .state") == "done", SECONDS)
    page.click(".box[data-stage=b]")
    assert "adding 1" in page.text("#log")
    assert "waiting for go" not in page.text("#log")
    assert all(url.startswith((f"{keyed.url}/", "data:", "about:")) for url in page.requested())
    assert page.faults() == []


def test_buttons_cancel_and_retry(browser: Page, keyed: Station, worker: object) -> None:
    del worker
    page = browser
    mended = keyed.root / "mended"
    open_page(page, keyed)
    page.click("[data-pipeline=fails] button")
    page.until(lambda: state_of(page) == "failed", SECONDS)
    assert "the file is not there yet" in page.text("#run-reason")
    mended.touch()
    page.click("#retry")
    page.until(lambda: state_of(page) == "done", SECONDS)
    assert page.text("[data-stage=a] td:nth-child(4)") == "2"
    page.click("tr[data-stage=a] button")
    page.until(lambda: page.text("tr[data-stage=a] td:nth-child(4)") == "3", SECONDS)
    (keyed.root / "go").unlink(missing_ok=True)
    page.click("[data-pipeline=waits] button")
    page.until(lambda: boxes_of(page).get("b") == "waiting" and state_of(page) == "running", SECONDS)
    page.click("#cancel")
    page.driver.switch_to.alert.accept()
    page.until(lambda: state_of(page) == "cancelled", SECONDS)
    assert boxes_of(page)["a"] == "cancelled"
    assert page.faults() == []


def test_a_run_that_waits_is_paused_and_resumed_in_chinese_in_the_dark_on_a_phone(
    browser: Page, keyed: Station
) -> None:
    page = browser
    open_page(page, keyed, language="zh")
    page.resize(390, 800, mobile=True)
    page.click("#theme")
    page.click("#theme")
    assert page.script("return document.documentElement.dataset.theme") == "dark"
    bright = page.script(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert max(bright) < 60
    assert page.script("return document.documentElement.scrollWidth <= 390")
    page.click("[data-pipeline=sums] button")
    page.until(lambda: state_of(page) == "waiting", SECONDS)
    assert page.text("#run-state") == "等待中"
    assert page.script("return document.documentElement.scrollWidth <= 390")
    page.click("#pause")
    page.until(lambda: state_of(page) == "paused", SECONDS)
    page.click("#resume")
    page.until(lambda: state_of(page) == "waiting", SECONDS)
    run = page.script("return location.hash.slice(1)")
    assert keyed.get(f"/v1/runs/{run}")["state"] == "waiting"
    page.reload()
    page.until(lambda: state_of(page) == "waiting", SECONDS)
    httpx.post(
        f"{keyed.url}/v1/runs/{run}/cancel", headers={"Authorization": f"Bearer {KEY}"}, verify=False
    ).raise_for_status()
    page.until(lambda: state_of(page) == "cancelled", SECONDS)  # seen by its event, without a reload
    assert page.faults() == []
    page.script("localStorage.clear()")
