"""Whether a report of coverage has so many percent of the branches: `python tests/branches.py REPORT.json 95`."""

import json
import sys
from pathlib import Path

totals = json.loads(Path(sys.argv[1]).read_text())["totals"]
taken, branches, needed = totals["covered_branches"], totals["num_branches"], float(sys.argv[2])
share = 100 * taken / branches
print(f"core: {taken} of {branches} branches are taken, {share:.1f} %; {needed:g} % are needed")
sys.exit(share < needed)
