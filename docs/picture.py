"""The pictures of masks in README.md and docs/tutorial.md, from a page of `sparsepo heatmap` in a headless Chromium.

python docs/picture.py runs/demo/policy --pairs runs/demo/held_out.jsonl
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from selenium import webdriver
from selenium.webdriver.support.select import Select

from sparsepo_plugin.analysis.heatmap import QUANTITIES, heatmap

IMAGE = Path(__file__).parent / "images/mask.png"  # README.md's; the tutorial's is images/tutorial_mask.png
QUANTITY = "mask_reward"


def main(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    pairs: Annotated[Path, typer.Option(help="JSON lines with prompt, chosen and rejected.")],
    number: Annotated[int, typer.Option(help="Which of them, from 1.")] = 1,
    image: Annotated[Path, typer.Option(help="Where to.")] = IMAGE,
    width: Annotated[int, typer.Option(help="Of the page, in pixels.")] = 860,
) -> None:
    """Take the picture of one pair."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},1200"):
        options.add_argument(argument)
    options.add_argument("--force-device-scale-factor=2")
    with tempfile.TemporaryDirectory() as folder:
        one, page = Path(folder, "pairs.jsonl"), Path(folder, "page.html")
        one.write_text(pairs.read_text().splitlines()[number - 1] + "\n")
        heatmap([run], one, page, 1)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.get(page.as_uri())
            Select(driver.find_element("id", "quantity")).select_by_index(list(QUANTITIES).index(QUANTITY))
            driver.find_element("css selector", ".pair").screenshot(str(image))
        finally:
            driver.quit()


if __name__ == "__main__":
    typer.run(main)
