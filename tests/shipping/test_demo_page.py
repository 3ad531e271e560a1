"""The page of `vitbase demo` in a browser: an upload, what is seen in it, and what is no image.

gradio is in an environment of its own (`make test-demo`), Chromium and its driver come from the
system (Debian: chromium, chromium-driver); where either is not, these tests are skipped.
With VITBASE_SCREENSHOTS set to a folder, pictures of the page are left in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import environment_of_commands
from listening import family_of, is_loopback, listening_addresses
from made_images import encode, photo
from made_runs import TINY

import vitbase

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None,
        reason="gradio is not installed here: make test-demo",
    ),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="there is no chromium with its driver: apt-get install chromium chromium-driver",
    ),
]
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 120.0
"""Seconds; a busy machine needs some, and nothing waits for longer than it must."""

HOSTILE = "<img src=x onerror=alert(1)> & co"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny run"
    size = {"image_height": 48, "image_width": 48}  # nine patches, so that maps differ
    options = {**TINY, **size, "data_path": str(tiny_idx), "output_dir": str(folder)}
    vitbase.train(vitbase.load_config("fashion", **options))
    return folder


class Demo:
    """A running demo."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "vitbase", "demo", *map(str, words), "--port", "0"]
        self.process = subprocess.Popen(
            command,
            env=environment_of_commands(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"http://[\d.]+:\d+", line):
                self.address = found[0]
                return
        raise AssertionError("".join(self.said))

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            rest, _ = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, "".join(self.said) + rest


@pytest.fixture(scope="module")
def demo(run: Path) -> Iterator[Demo]:
    made = Demo(run)
    try:
        yield made
    finally:
        code, said = made.end()
    assert code == 0, said
    assert "Traceback" not in said, said
    assert said.splitlines()[-1] == "The demo has ended."
    assert len(said.splitlines()) == 3, said  # nothing of gradio's


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in SWITCHES:
        options.add_argument(switch)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


def until(holds: Callable[[], Any], browser: Any) -> Any:
    """Wait for a condition; elements that are being made anew do not hold it."""
    from selenium.common.exceptions import WebDriverException

    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            if found := holds():
                return found
        except WebDriverException:
            pass
        time.sleep(0.1)
    raise AssertionError(browser.find_element("css selector", "body").text)


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def text(browser: Any, selector: str) -> str:
    return str(find(browser, selector).text)


def seen(browser: Any, *, width: int = 1280, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def picture_of(browser: Any, name: str) -> None:
    folder = os.environ.get("VITBASE_SCREENSHOTS")
    if folder:
        time.sleep(1)  # what fades in, and fonts
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def page(browser: Any, demo: Demo) -> Any:
    seen(browser)
    browser.get(demo.address)
    until(lambda: find(browser, "#picture input[type=file]"), browser)
    return browser


def upload(page: Any, path: Path) -> None:
    find(page, "#picture input[type=file]").send_keys(str(path))


def shows_result(page: Any) -> bool:
    loaded = "return [...document.querySelectorAll('#overlay img')].some(e => e.naturalWidth > 99)"
    return text(page, "#result").count("%") == 5 and page.execute_script(loaded)


def overlay(page: Any) -> str:
    return str(find(page, "#overlay img").get_attribute("src"))


def file_of(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_an_image_gets_classes_and_attention(page, run, tmp_path):
    image = file_of(tmp_path, "image.jpg", encode(photo(90, 120)))
    upload(page, image)
    until(lambda: shows_result(page), page)
    found = vitbase.predict([image], run)[0].classes
    lines = text(page, "#result").splitlines()
    assert lines[1] == found[0][0]
    shares = [float(line.rstrip("%")) for line in lines if line.endswith("%")]
    assert shares == pytest.approx([100 * share for _, share in found], abs=0.51)
    assert lines[2::2] == [name for name, _ in found]
    assert "tiny run" in text(page, "#title h1")
    picture_of(page, "result")
    # Each choice draws anew: a layer, a head, the image alone.
    kinds = page.find_elements("css selector", "#shown input")
    drawn = {overlay(page)}
    for kind in kinds[1:]:
        kind.click()
        until(lambda: overlay(page) not in drawn, page)
        drawn.add(overlay(page))
    kinds[1].click()
    until(lambda: find(page, "#head input").is_displayed(), page)
    find(page, "#head input").click()
    until(lambda: len(page.find_elements("css selector", "#head [role=option]")) == 3, page)
    before = overlay(page)
    picture_of(page, "heads")
    page.find_elements("css selector", "#head [role=option]")[2].click()
    until(lambda: overlay(page) != before, page)


def test_examples_are_images_of_the_run(page):
    examples = until(lambda: page.find_elements("css selector", "#examples img"), page)
    assert len(examples) == 12
    examples[3].click()
    until(lambda: shows_result(page), page)
    seen(page, scheme="dark")
    picture_of(page, "dark")
    script = "return getComputedStyle(document.body).backgroundColor"
    dark = page.execute_script(script)
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60, dark


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.png", f"text with {HOSTILE}".encode(), "it is text"),
        ("cut.jpg", encode(photo(60, 60))[:500], ""),
        ("empty.png", b"", ""),
    ],
)
def test_what_is_no_image_is_said_in_the_page(page, tmp_path, name, content, said):
    upload(page, file_of(tmp_path, name, content))
    until(lambda: find(page, "#problem [role=alert]").is_displayed(), page)
    words = text(page, "#problem")
    assert words.startswith("No result. ")
    assert said in words
    assert str(tmp_path) not in words
    assert "/tmp" not in words
    assert not page.find_elements("css selector", "#problem img")
    picture_of(page, f"problem-{name}")
    upload(page, file_of(tmp_path, "good.png", encode(photo(40, 40), "PNG")))
    until(lambda: shows_result(page), page)
    assert not page.find_elements("css selector", "#problem [role=alert]")


def test_a_text_file_is_refused_in_the_page(page, tmp_path):
    upload(page, file_of(tmp_path, "note.txt", b"a note"))
    until(lambda: "Invalid file type: note.txt" in text(page, "body"), page)
    picture_of(page, "text")


def test_a_phone_shows_it(page):
    seen(page, width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    picture_of(page, "phone")


def test_the_page_asks_nobody_else(page, demo):
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked = message["params"]
            if not asked["documentURL"].startswith("chrome"):
                own = (f"{demo.address}/", "data:", "blob:")
                assert asked["request"]["url"].startswith(own), asked["request"]["url"]


def test_it_listens_on_loopback_and_answers_to_its_own_name(demo):
    addresses = listening_addresses(family_of(demo.process.pid))
    assert addresses
    assert all(map(is_loopback, addresses)), addresses
    asked = urllib.request.Request(demo.address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(asked, timeout=PATIENCE)
    with urllib.request.urlopen(demo.address, timeout=PATIENCE) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    for path in ("/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/docs", "/openapi.json"):
        with pytest.raises(urllib.error.HTTPError, match=r"40\d"):
            urllib.request.urlopen(demo.address + path, timeout=PATIENCE)


def test_ctrl_c_ends_it_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = Demo(run)
    code, said = made.end(signal.SIGINT)
    assert code == 0, said
    assert said.splitlines()[-1] == "The demo has ended."
    assert list(tmp_path.glob("vitbase-*")) == []
