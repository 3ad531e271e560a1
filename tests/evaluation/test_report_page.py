"""The page of a report in a browser: what it shows, what can be done in it, and what it leaves be.

Chromium and its driver come from the system (Debian: chromium, chromium-driver); where they are
not, these tests are skipped.
"""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_reports import HOSTILE, make_run, names_of

from vitbase.evaluation.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="there is no chromium with its driver here: apt-get install chromium chromium-driver",
)
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


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
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, one of names that would be markup."""
    folder = tmp_path_factory.mktemp("report")
    first = make_run(folder / "first", names_of(130), each=8)
    second = make_run(folder / "second", [HOSTILE, *names_of(4)], skill=0.6)
    write_report([first, second], folder / "page.html")
    return folder / "page.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The browser, with the page just opened in it, wide and light."""
    seen(browser, width=1400)
    ask(browser, "window.before = true")
    browser.get(report.as_uri())
    # On a busy machine the driver may be back before the last line of the page's program has run.
    deadline = time.monotonic() + 60
    while not ask(browser, "return !window.before && document.readyState === 'complete'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return browser


def seen(browser: Any, *, width: int, scheme: str = "light", media: str = "screen") -> None:
    """Look at pages on a screen of a width, or on paper."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features, "media": media})


def ask(browser: Any, script: str, *given: Any) -> Any:
    return browser.execute_script(script, *given)


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return ask(browser, script, selector)


def is_seen(browser: Any, selector: str) -> bool:
    return ask(browser, "return document.querySelector(arguments[0]).checkVisibility()", selector)


def click(browser: Any, selector: str) -> None:
    browser.find_element("css selector", selector).click()


def test_it_opens_whole_without_an_error_or_a_request(page):
    parts = ("classes", "confusion", "images", "calibration", "doubts", "config", "environment")
    for part in ("summary", "curves", *(f"run0-{name}" for name in parts)):
        assert is_seen(page, f"#{part}"), part
    assert ask(page, "return [...document.images].every(e => e.complete && e.naturalWidth > 1)")
    assert ask(page, "return document.querySelectorAll('svg.chart').length") >= 10
    assert page.get_log("browser") == []
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked = message["params"]  # of a page, not of the browser's own first one
            if not asked["documentURL"].startswith("chrome"):
                assert asked["request"]["url"].startswith(("file:", "data:"))


def test_names_are_text_and_no_script_but_its_own_runs(page):
    click(page, "[aria-controls=run1]")
    assert any("<script>alert(1)</script>" in text for text in texts(page, "#run1-classes td"))
    assert any("<script>" in text for text in texts(page, "#run1-classes svg text"))
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
    ask(page, f"{added} document.body.append(s)")
    assert ask(page, "return window.ran === undefined")  # the page's policy
    assert ask(page, "return document.querySelectorAll('[onload]').length") == 0


def test_tabs_show_one_run_at_a_time(page):
    assert (is_seen(page, "#run0"), is_seen(page, "#run1")) == (True, False)
    click(page, "[aria-controls=run1]")
    assert (is_seen(page, "#run0"), is_seen(page, "#run1")) == (False, True)
    page.switch_to.active_element.send_keys("\ue014")  # the right arrow goes round
    assert (is_seen(page, "#run0"), is_seen(page, "#run1")) == (True, False)


def rows_seen(browser: Any) -> list[list[str]]:
    script = """return [...document.querySelectorAll('#run0-classes tbody tr')]
      .filter(e => e.checkVisibility()).map(e => [...e.cells].map(c => c.textContent))"""
    return ask(browser, script)


def test_classes_are_sorted_found_and_all_shown(page):
    first = rows_seen(page)
    assert len(first) == 20
    recalls = [float(row[2].rstrip("%")) for row in first]
    assert recalls == sorted(recalls)
    head = "#run0-classes th:nth-child(3)"
    click(page, f"{head} button")
    click(page, f"{head} button")
    assert rows_seen(page)[0][2] == "100.00%"
    assert page.find_element("css selector", head).get_attribute("aria-sort") == "descending"
    click(page, "#run0-classes th:nth-child(1) button")
    assert rows_seen(page)[0][0] == min((row[0] for row in rows_seen(page)), key=str.lower)
    page.find_element("css selector", "#run0-classes input.filter").send_keys("129")
    assert [row[0][-3:] for row in rows_seen(page)] == ["129"]
    page.find_element("css selector", "#run0-classes input.filter").clear()
    ask(page, "document.querySelector('#run0-classes input').dispatchEvent(new Event('input'))")
    click(page, "#run0-classes button.all")
    assert len(rows_seen(page)) == 130


@pytest.mark.parametrize("run", [0, 1])
def test_a_cell_of_the_confusion_matrix_is_read_by_pointing_at_it(page, run):
    click(page, f"[aria-controls=run{run}]")
    point = """const figure = document.querySelector(arguments[0] + ' .matrix');
      const box = JSON.parse(figure.querySelector('script').textContent).box;
      const area = figure.getBoundingClientRect();
      const [x, y] = arguments[1].map((at, i) => box[i] + at * box[i + 2]);
      figure.dispatchEvent(new PointerEvent('pointermove', {
        clientX: area.left + x * area.width, clientY: area.top + y * area.height}));
      return document.querySelector(arguments[0] + ' .reading').textContent;"""
    names = names_of(130) if run == 0 else [HOSTILE, *names_of(4)]
    last = ask(page, point, f"#run{run}", [0.999, 0.999])
    assert f"{names[-1]} → {names[-1]}: " in last
    assert is_seen(page, f"#run{run} .spot")
    assert "→" in ask(page, point, f"#run{run}", [0.001, 0.999])
    ask(page, point, f"#run{run}", [-0.1, 0.5])
    assert not is_seen(page, f"#run{run} .spot")


def brightness(browser: Any, selector: str, what: str) -> float:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    words = ask(browser, script, selector, what).split("(")[1].rstrip(")").split(",")
    return sum(map(float, words[:3]))


def test_it_is_light_and_dark_its_charts_too(page):
    ink = "#curves svg text"
    assert brightness(page, ink, "fill") < 200 < 700 < brightness(page, "body", "backgroundColor")
    seen(page, width=1400, scheme="dark")
    assert brightness(page, "body", "backgroundColor") < 100 < 600 < brightness(page, ink, "fill")


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_sticks_out_of_a_phone(page, width):
    seen(page, width=width)
    assert ask(page, "return document.documentElement.scrollWidth") <= width


def test_paper_shows_every_run_in_light_colours(page):
    seen(page, width=1000, scheme="dark", media="print")
    assert is_seen(page, "#run0")
    assert is_seen(page, "#run1")
    assert not is_seen(page, "[role=tablist]")
    assert brightness(page, "body", "backgroundColor") > 700
    ask(page, "dispatchEvent(new Event('beforeprint'))")
    assert is_seen(page, "#run0-config table")
    paper = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(paper).startswith(b"%PDF")
