"""What a `make test` covered, from the files that its runs of pytest left: `python tests/covered.py FILE.xml…`."""

import ast
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

FOLDER = 1  # of a test's name, tests.unit.test_masks


def outcome(case: ElementTree.Element) -> str:
    """`passed`, `skipped` or `failed`."""
    for child in case:
        if child.tag in ("failure", "error"):
            return "failed"
        if child.tag == "skipped":
            return "skipped"
    return "passed"


def folder(case: ElementTree.Element) -> str:
    """Of the test; pytest gives a module that skips itself whole as a test without a class name."""
    return (case.get("classname") or case.get("name")).split(".")[FOLDER]


def reason(skipped: ElementTree.Element) -> str:
    """Why a test, or a module whole, was skipped; pytest writes the latter as (file, line, reason)."""
    if skipped.get("message") == "collection skipped":
        return ast.literal_eval(skipped.text)[-1].removeprefix("Skipped: ")
    return skipped.get("message")


def main(files: list[Path]) -> int:
    """Print a line for each run and folder, why tests were skipped, and the sum; 1 if a test failed."""
    total, reasons = Counter(), Counter()
    print("\nWhat was covered")
    for file in files:
        counted: dict[str, Counter] = {}
        for case in ElementTree.parse(file).iter("testcase"):
            found = outcome(case)
            counted.setdefault(folder(case), Counter())[found] += 1
            if found == "skipped":
                reasons[reason(case.find("skipped"))] += 1
        for name, counts in sorted(counted.items()):
            numbers = ", ".join(f"{counts[each]} {each}" for each in ("passed", "skipped", "failed") if counts[each])
            print(f"  {file.stem:<12} tests/{name:<12} {numbers}")
            total += counts
    for why, count in reasons.most_common():
        print(f"  not covered: {count} × {why}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return total["failed"] > 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
