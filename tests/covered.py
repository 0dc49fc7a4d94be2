"""What a `make test` covered, from the files that its runs of pytest left: `python tests/covered.py FILE.xml…`."""

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


def main(files: list[Path]) -> int:
    """Print a line for each run and folder, why tests were skipped, and the sum; 1 if a test failed."""
    total, reasons = Counter(), Counter()
    print("\nWhat was covered")
    for file in files:
        folders: dict[str, Counter] = {}
        for case in ElementTree.parse(file).iter("testcase"):
            found = outcome(case)
            folders.setdefault(case.get("classname", "").split(".")[FOLDER], Counter())[found] += 1
            if found == "skipped":
                reasons[case.find("skipped").get("message")] += 1
        for folder, counts in sorted(folders.items()):
            numbers = ", ".join(f"{counts[each]} {each}" for each in ("passed", "skipped", "failed") if counts[each])
            print(f"  {file.stem:<12} tests/{folder:<12} {numbers}")
            total += counts
    for reason, count in reasons.most_common():
        print(f"  not covered: {count} × {reason}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return total["failed"] > 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
