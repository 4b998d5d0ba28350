"""The report in a real browser, opened from disk: it draws, moves, sorts, asks no network, and can be used by all."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm_vae.report.page import write_report
from tests.report.conftest import ATTACK, KEYS, make_run

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(sys.prefix) / "node_modules/axe-core/axe.min.js"
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The report, fresh, at desktop size."""
    show(browser, page)
    return browser


def show(browser: Any, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
    browser.get_log("browser"), browser.get_log("performance")  # what other tests left
    browser.get(page.as_uri())
    # On a machine that is busy, the first question may still meet the page that was left.
    WebDriverWait(browser, 30).until(lambda it: it.execute_script("return document.readyState") == "complete")
    WebDriverWait(browser, 30).until(lambda it: it.current_url == page.as_uri())


def test_no_error_in_the_console(opened: Any) -> None:
    assert opened.title.endswith("ldm_vae report")
    assert opened.get_log("browser") == []


def test_nothing_is_asked_of_any_network(opened: Any, page: Path) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked  # the log was taken
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    resources = opened.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in resources)


def test_the_policy_lets_no_request_out(opened: Any) -> None:
    """Even a script inside the page could not call home."""
    opened.set_script_timeout(10)
    blocked = opened.execute_async_script(
        """const done = arguments[0];
        document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
        setTimeout(() => done("nothing was blocked"), 3000);"""
    )
    assert blocked == "connect-src"
    opened.get_log("browser")


def test_a_script_in_a_name_is_text(opened: Any) -> None:
    assert opened.execute_script("return document.scripts.length") == 1
    assert opened.get_log("browser") == []
    assert ATTACK in opened.find_element(By.TAG_NAME, "main").text
    assert ATTACK in opened.execute_script(
        "return [...document.querySelectorAll('svg desc')].map(d => d.textContent).join()"
    )


def test_the_keyboard_moves_the_slider_and_the_clip(opened: Any) -> None:
    slider, after = opened.find_element(By.CSS_SELECTOR, ".split"), opened.find_element(By.CSS_SELECTOR, ".after")
    before = after.value_of_css_property("clip-path")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert slider.get_attribute("value") == "52"
    assert (before, after.value_of_css_property("clip-path")) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 52%)")
    assert slider.get_attribute("aria-valuetext") == "52 % original, 48 % reconstruction"
    other = opened.find_elements(By.CSS_SELECTOR, ".after")[1]
    assert other.value_of_css_property("clip-path") == before  # each image has a slider of its own


def test_original_and_reconstruction_are_on_their_sides(opened: Any) -> None:
    """Left of the bar the screen shows the original's pixels, right of it the reconstruction's."""
    view = opened.find_element(By.CSS_SELECTOR, ".viewport.compare")
    images = [
        np.asarray(data_image(e.get_attribute("src")).convert("RGB"), np.int16)
        for e in view.find_elements(By.TAG_NAME, "img")
    ]
    opened.execute_script("for (const e of arguments[0].querySelectorAll('.bar, .tag')) e.remove()", view)
    shown = Image.open(io.BytesIO(view.screenshot_as_png)).convert("RGB")
    height, width = images[0].shape[:2]
    small = np.asarray(shown.resize((width, height), Image.Resampling.BOX), np.int16)
    for part, (mine, other) in (
        (np.s_[4:-4, 4 : width // 2 - 4], images),
        (np.s_[4:-4, width // 2 + 4 : -4], images[::-1]),
    ):
        assert np.abs(small[part] - mine[part]).mean() < np.abs(small[part] - other[part]).mean() / 4


def test_zoom_and_place_are_shared(opened: Any) -> None:
    item = opened.find_element(By.CSS_SELECTOR, ".item")
    views = item.find_elements(By.CSS_SELECTOR, ".viewport")
    layers = item.find_elements(By.CSS_SELECTOR, ".layer")
    assert len(layers) == 3
    views[1].send_keys("+", "+", Keys.ARROW_LEFT)
    moved = {layer.value_of_css_property("transform") for layer in layers}
    assert len(moved) == 1 and moved.pop().startswith("matrix(2.25, 0, 0, 2.25, ")
    item.find_element(By.CSS_SELECTOR, "[data-zoom=whole]").click()
    assert layers[2].value_of_css_property("transform") == "matrix(1, 0, 0, 1, 0, 0)"


def test_dragging_moves_the_bar_and_when_zoomed_the_pictures(opened: Any) -> None:
    item = opened.find_element(By.CSS_SELECTOR, ".item")
    view, bar, slider = (item.find_element(By.CSS_SELECTOR, name) for name in (".compare", ".bar", ".split"))
    layer = item.find_elements(By.CSS_SELECTOR, ".layer")[2]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", view)

    def drag(x: int) -> tuple[int, str]:
        mouse = webdriver.ActionChains(opened).move_to_element_with_offset(view, x, -20).click_and_hold()
        mouse.move_by_offset(30, 0).release().perform()
        return int(slider.get_attribute("value")), layer.value_of_css_property("transform")

    split, place = drag(40)
    assert split > 60 and place == "matrix(1, 0, 0, 1, 0, 0)"
    view.send_keys("+")
    before = layer.value_of_css_property("transform")
    unmoved, place = drag(-60)
    assert unmoved == split and place != before
    webdriver.ActionChains(opened).drag_and_drop_by_offset(bar, -40, 0).perform()
    assert int(slider.get_attribute("value")) < split


def test_heads_sort_both_ways_and_missing_values_stay_last(opened: Any) -> None:
    head = opened.find_element(By.XPATH, "//th[@data-kind='number'][contains(., 'PSNR')]")
    assert head.get_attribute("aria-sort") == "ascending"  # the worst first

    def column(name: str) -> list[str]:
        script = """const heads = [...document.querySelectorAll('.sortable thead th')];
                    const head = heads.findIndex(h => h.innerText.includes(arguments[0]));
                    return [...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[head].dataset.value)"""
        return list(opened.execute_script(script, name))

    worst = [float(v) for v in column("PSNR")]
    assert len(worst) == len(KEYS) and worst == sorted(worst) and len(set(worst)) > 1
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert [float(v) for v in column("PSNR")] == sorted(worst, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert "descending" in opened.find_element(By.ID, "announce").get_attribute("textContent")
    text = opened.find_element(By.XPATH, "//th[@data-kind='text']")
    text.find_element(By.TAG_NAME, "button").click()
    assert column("image")[:2] != column("image")[-2:] and text.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None
    partly = opened.find_element(By.XPATH, "//th[@data-kind='number'][contains(., 'MS-SSIM')]//button")
    for direction in ("ascending", "descending"):
        partly.click()
        known = [float(value) for value in column("MS-SSIM") if value]
        assert len(known) == 2 and column("MS-SSIM")[2:] == [""] * (len(KEYS) - 2)
        assert known == sorted(known, reverse=direction == "descending")


def test_charts_are_drawn(opened: Any) -> None:
    charts = opened.find_elements(By.CSS_SELECTOR, ".chart > svg[role=img]")
    assert len(charts) >= 10
    for chart in charts:
        box = opened.execute_script("return arguments[0].getBBox()", chart)
        assert box["width"] > 100 and box["height"] > 50
        drawn = """return [...arguments[0].querySelectorAll('[style*="--series"]')]
                   .filter(e => e.getBoundingClientRect().width > 0).length"""
        assert opened.execute_script(drawn, chart) > 0


def test_colours_of_charts_follow_the_scheme(browser: Any, page: Path) -> None:
    seen = []
    for dark in (False, True):
        show(browser, page, dark=dark)
        script = "return getComputedStyle(document.querySelector('.chart [style*=\"--series-1\"]')).stroke"
        seen.append(browser.execute_script(script))
    assert seen == ["rgb(37, 99, 176)", "rgb(127, 178, 245)"]


@pytest.mark.skipif(not AXE.exists(), reason=f"needs axe-core: npm install --prefix {sys.prefix} axe-core")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_axe_finds_nothing_serious(browser: Any, page: Path, dark: bool, width: int) -> None:
    show(browser, page, dark=dark, width=width)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    browser.set_script_timeout(60)
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[0])")
    assert found["passes"]  # it did look
    serious = [
        (violation["id"], violation["nodes"][0]["html"][:300], len(violation["nodes"]))
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_picture_is_not_blank(opened: Any) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(opened.get_screenshot_as_png())).convert("L"), np.float64)
    assert pixels.std() > 10


def test_no_sideways_scroll_on_a_phone(browser: Any, page: Path) -> None:
    show(browser, page, width=360, height=780)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
    )


@pytest.fixture(scope="module")
def compared(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs, with names of usual length."""
    folder = tmp_path_factory.mktemp("two")
    shards = Path(json.loads((whole_run / "results.json").read_text())["protocol"]["shards"])
    names = [str(make_run(folder / name, shards, seed=seed)) for seed, name in enumerate(("one", "other"))]
    return write_report(names, folder / "report.html", None, "ldm-vae report")


def test_every_run_is_seen_on_a_phone(browser: Any, compared: Path) -> None:
    """Beside the values of the second run stands its name, and nothing of them is to the side of the screen."""
    show(browser, compared, width=390, height=844)
    cells = browser.execute_script(
        """return [...document.querySelectorAll('#comparison .sides tbody td')].map(cell => {
             const box = cell.getBoundingClientRect();
             return [getComputedStyle(cell, '::before').content, cell.innerText, box.left, box.right, box.height]})"""
    )
    assert len({name for name, *_ in cells}) == 2 and all(name.strip('"') for name, *_ in cells)
    assert all(left >= 0 and right <= 390 and height > 0 for _, _, left, right, height in cells)
    assert {text for name, text, *_ in cells if name.strip('"').endswith("other")} >= {"1", "200", "22", "done"}


def test_long_parts_are_folded_on_a_phone_and_a_link_unfolds_them(browser: Any, page: Path) -> None:
    folded = "return [...document.querySelectorAll('details.long')].map(part => part.open)"
    show(browser, page, width=1200)
    assert all(browser.execute_script(folded))
    tall = browser.execute_script("return document.documentElement.scrollHeight")
    show(browser, page, width=390, height=844)
    assert len(browser.execute_script(folded)) > 5 and not any(browser.execute_script(folded))
    assert browser.execute_script("return document.documentElement.scrollHeight") < tall
    last = f"image-{len(KEYS) - 1}"
    browser.execute_script("location.hash = arguments[0]", last)
    shown = "const box = document.getElementById(arguments[0]).getBoundingClientRect(); return box.top"
    WebDriverWait(browser, 10).until(lambda b: 0 <= b.execute_script(shown, last) < 844)
    assert sum(browser.execute_script(folded)) == 1


def test_the_first_tab_skips_to_the_report_and_focus_is_seen(opened: Any) -> None:
    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    link = opened.switch_to.active_element
    assert link.text == "Skip to the report"
    assert link.rect["y"] >= 0 and link.value_of_css_property("outline-style") == "solid"
    link.send_keys(Keys.ENTER)
    assert opened.switch_to.active_element.get_attribute("id") == "main"


def data_image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
