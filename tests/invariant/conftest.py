"""The options of this suite, there when pytest is given this folder."""

from layouts import covering_layouts, every_layout, name


def pytest_addoption(parser):
    parser.addoption("--every-layout", action="store_true", help="run the whole product of layouts, for hours")
    parser.addoption("--renew-trajectory", action="store_true", help="write tests/invariant/trajectory.csv anew")


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        rows = every_layout() if metafunc.config.getoption("every_layout", False) else covering_layouts()
        metafunc.parametrize("row", rows, ids=name)
