"""A real headless Chromium: Debian's packages chromium and chromium-driver, or any whose names are on the path."""

import json
import shutil
from pathlib import Path

import pytest

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"  # looked at by people; no test compares them
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """Chromium on a page, with what it said and asked for since.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver):
        self.driver, self._log = driver, []

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file and wait until the first tokens are drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._read_logs()
        self._log.clear()
        self.driver.get(path.as_uri())
        self.wait("return !document.querySelector('.pair') || !!document.querySelector('.tokens span')")

    def ask(self, script: str, *arguments):
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> None:
        """Until a script returns something true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 30).until(lambda driver: driver.execute_script(script))

    def find(self, selector: str):
        """The first element of a selector."""
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Type keys where the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def hover(self, element) -> None:
        """Put the mouse over an element."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def shoot(self, name: str) -> None:
        """Keep a picture of the window."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def requests(self) -> list[str]:
        """What was asked for since the page was opened, the page's own file left out."""
        self._read_logs()
        sent = [entry["params"] for entry in self._log if entry["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if each["request"]["url"] != each["documentURL"]]

    def complaints(self) -> list[str]:
        """What the console says: errors, warnings, and violations of the page's policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def _read_logs(self) -> None:
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        self._log.extend(entries)


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # In containers its user is root and /dev/shm is small; the pages are our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Browser(driver)
    driver.quit()


@pytest.fixture
def browser(chromium):
    """Nothing that a test does may make a page complain, or ask for anything."""
    chromium.driver.get("about:blank")
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []
    assert chromium.requests() == []
