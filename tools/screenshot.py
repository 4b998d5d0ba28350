"""Takes a picture of the top of a report, for the README.

    python -m tools.screenshot runs/demo/report.html docs/report.png

Needs Chromium, chromedriver and selenium. The picture is a PNG of 256 colours, which keeps it small.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from ldm_vae.atomic import atomic_file
from ldm_vae.errors import UserError
from tools.command import run_command

LARGEST_FILE = 300_000  # bytes of the picture


def screenshot(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="What `ldm-vae report` wrote.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The PNG to write.")],
    width: Annotated[int, typer.Option(min=1, help="Pixels.")] = 1200,
    height: Annotated[int, typer.Option(min=1, help="Pixels.")] = 800,
) -> None:
    """Show the top of a report as a picture. Refuses one of more than 300,000 bytes."""
    if not report.is_file():
        raise UserError(f"{report} not found", "make it with `ldm-vae report RUN`")
    screen = Image.open(io.BytesIO(photograph(report, width, height))).convert("RGB")
    file = io.BytesIO()
    few = screen.quantize(palette=screen.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    few.save(file, "PNG", optimize=True)
    if len(file.getvalue()) > LARGEST_FILE:
        raise UserError(f"the picture has {len(file.getvalue()):,} bytes", "give a smaller --width or --height")
    with atomic_file(picture) as stage:
        stage.write_bytes(file.getvalue())
    print(f"{picture}: {width} x {height} pixels, {len(file.getvalue()):,} bytes")


def photograph(report: Path, width: int, height: int) -> bytes:
    """A PNG of what a screen of that size shows first, in light mode."""
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
    run_command(screenshot)
