"""Takes the picture of a report's page that the README shows.

python -P tools/picture_report.py FIT.nc     (needs chromium, and playwright of ``dev``)
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tunecast.analysis.report.contents import contents
from tunecast.analysis.report.page import write_html
from tunecast.models import load_fit
from tunecast.models.files import write_atomically

PICTURE = Path(__file__).parent / "figures" / "report.png"
WIDTH, HEIGHT = 900, 900
COLOURS = 256  # a page has few colours, and the README should load quickly


def main(fit: Path) -> None:
    """Write the picture of the report on a saved fit."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        write_html(contents(load_fit(fit)), page_file)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(page_file.as_uri())
        page.wait_for_function("page.drawn && page.mapped", timeout=60_000)
        page.evaluate("document.getElementById('what-if').scrollIntoView()")
        page.wait_for_timeout(1000)  # the page scrolls smoothly
        taken = page.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    few = picture.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE)
    write_atomically(PICTURE, lambda path: few.save(path, optimize=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
