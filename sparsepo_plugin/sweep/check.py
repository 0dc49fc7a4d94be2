"""`sparsepo check` of many files in one process, which `sparsepo sweep` starts: it imports torch and the host once."""

import sys
from pathlib import Path

from ..errors import SparsePOError, one_line, telling_its_starter
from ..hosts import load_host


def main(files: list[Path]) -> None:
    """Check YAMLs that are called like the points of a sweep, up to the first that is wrong.

    Raises:
        SparsePOError: names the point.
    """
    host = load_host(files[0])
    for file in files:
        try:
            host.check(file, [])
        except ValueError as error:  # the patched OpenRLHF has a class of its own
            if not (isinstance(error, SparsePOError) or type(error).__name__ == "ConfigError"):
                raise
            line = one_line(error).removeprefix(f"{file}: ").replace(f"{file.parent}/", "")
            raise SparsePOError(f"{file.stem}: {line}") from error


if __name__ == "__main__":
    with telling_its_starter():
        sys.path.insert(0, "")  # modules of one's own beside the YAML, as the command line finds them
        main([Path(name) for name in sys.argv[1:]])
