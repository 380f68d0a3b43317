# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium on a page of ours: waiting, looking, and what the browser logged and asked for."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

_Found = TypeVar("_Found")
CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER: Final = shutil.which("chromedriver")


def why_no_browser() -> str | None:
    """What is missing for these tests, or nothing."""
    if CHROMIUM is None or DRIVER is None:
        return "no browser here: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium here: pip install selenium"
    return None


class Page:
    """A tab of one browser, on one server."""

    def __init__(self, downloads: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        arguments += ["--disable-component-update", "--no-first-run", "--lang=en-US", "--window-size=1280,860"]
        # Nothing has a name but this machine: a request to elsewhere would fail, and be seen in the log.
        arguments += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium refuses to start as root with it
        for argument in arguments:
            options.add_argument(argument)
        preferences = {"intl.accept_languages": "en-US", "download.default_directory": str(downloads)}
        options.add_experimental_option("prefs", preferences)
        options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
        self.downloads = downloads
        self.url = ""

    def open(self, url: str) -> Page:
        """Show the playground of a server as to somebody who has never seen it."""
        if self.url:
            self.script("sessionStorage.clear()")
        self.url = url
        self.resize(1280, 860)
        self.command("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "local_storage"})
        self.driver.get("about:blank")
        self.faults()  # of the pages before
        self.driver.get(f"{url}/")
        self.until_ready()
        return self

    def reload(self) -> None:
        self.driver.refresh()
        self.until_ready()

    def until_ready(self) -> None:
        self.until(lambda: self.script("return document.documentElement.dataset.ready") == "true")

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.command("Emulation.setDeviceMetricsOverride", metrics)

    def command(self, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Call the browser's debugging protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        """The text of the first match as it is in the document, shown or not."""
        return self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def click(self, selector: str) -> None:
        from selenium.common.exceptions import StaleElementReferenceException

        def is_clicked() -> bool:
            for element in self.find_all(selector)[:1]:
                try:
                    self.script("arguments[0].scrollIntoView({block: 'center'})", element)
                    element.click()
                except StaleElementReferenceException:  # the page has drawn it anew meanwhile
                    return False
                return True
            return False

        self.until(is_clicked)

    def fill(self, selector: str, text: str) -> None:
        """Put a text into a control as if it were typed or pasted."""
        self.script(
            "const [s, text] = arguments; const control = document.querySelector(s); control.value = text;"
            "for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind, {bubbles: true}));",
            selector,
            text,
        )

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def say(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        self.fill("#draft", text)
        self.click("#send")
        self.until_idle()

    @property
    def is_busy(self) -> bool:
        return bool(self.find_all("#send.stops"))

    def until_idle(self) -> None:
        self.until(lambda: not self.is_busy)

    def until(self, condition: Callable[[], _Found], seconds: float = 20) -> _Found:
        """Wait until something is so. Raises AssertionError with the page's text after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                shown = self.script("return document.body.innerText")
                raise AssertionError(f"it did not come to be; faults: {self.faults()}; the page shows:\n{shown}")
            time.sleep(0.02)

    def faults(self) -> list[str]:
        """What the console has said since the last call: errors, refusals of the content policy, warnings."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "DEBUG"]

    def requested(self) -> list[str]:
        """The addresses that the page has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, path: Path) -> None:
        """Write what is shown to a PNG file."""
        self.driver.save_screenshot(str(path))


def one_page(downloads: Path) -> Iterator[Page]:
    """A fixture's body: a browser that ends with it. Skips where there is none."""
    if reason := why_no_browser():
        pytest.skip(reason)
    page = Page(downloads)
    try:
        yield page
    finally:
        page.driver.quit()
