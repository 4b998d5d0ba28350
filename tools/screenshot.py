"""The top of a report as a picture for the README: python -m tools.screenshot runs/demo/report.html docs/report.png

Needs Chromium, chromedriver and selenium. Written as a PNG of 256 colours, which keeps it small.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from ldm_vae.atomic import atomic_file
from ldm_vae.errors import UserError

LARGEST = 300_000  # bytes


def main(report: Path, picture: Path, width: int, height: int) -> None:
    """Raises UserError where there is no report, or the picture would be larger than LARGEST."""
    if not report.is_file():
        raise UserError(f"{report} not found", "make it with `ldm-vae report RUN`")
    screen = Image.open(io.BytesIO(photograph(report, width, height))).convert("RGB")
    file = io.BytesIO()
    few = screen.quantize(palette=screen.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    few.save(file, "PNG", optimize=True)
    if len(file.getvalue()) > LARGEST:
        raise UserError(f"the picture has {len(file.getvalue()):,} bytes", "give a smaller --width or --height")
    with atomic_file(picture) as stage:
        stage.write_bytes(file.getvalue())
    print(f"{picture}: {width} x {height} pixels, {len(file.getvalue()):,} bytes")


def photograph(report: Path, width: int, height: int) -> bytes:
    """PNG of what a screen of that many pixels shows first, in light mode."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise UserError("chromium and chromedriver not found", "install them (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = str(chromium)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        browser.get(report.resolve().as_uri())
        return bytes(browser.get_screenshot_as_png())
    finally:
        browser.quit()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.screenshot", description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200, help="pixels")
    parser.add_argument("--height", type=int, default=800, help="pixels")
    given = parser.parse_args()
    try:
        main(given.report, given.picture, given.width, given.height)
    except UserError as error:
        print(f"screenshot: {error}", file=sys.stderr)
        sys.exit(2)
