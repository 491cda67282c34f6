"""A real Chromium for the tests of pages, on a desktop and on a phone."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
TOKEN = "tok-canary-0123456789"


def missing() -> bool:
    return not Path(CHROMIUM).exists()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page that has logged in; it fails the test if it says anything on its console or asks another server."""
    context = browser.new_context(**options)
    page = context.new_page()
    said: list[str] = []
    foreign: list[str] = []
    page.goto(f"{url}/login#token={TOKEN}")
    page.wait_for_selector("#status, #model", state="attached")
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    page.said = said
    page.home = url
    yield page
    context.close()
    assert not said
    assert not foreign


def until(page: Page, expression: str, seconds: float = 30) -> None:
    """Wait until it is true. (Playwright's own wait evaluates text in the page, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def open_chat(page: Any) -> None:
    page.goto(f"{page.home}/chat")
    page.wait_for_selector("#model option", state="attached")


def ask(page: Page, words: str) -> None:
    """Type it, send it, and wait for the end of the answer."""
    page.fill("#words", words)
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant:not(.writing)", timeout=60_000)
