"""`python -m regraft.cli`, and what the `regraft` script calls."""

import sys

from . import main


def run() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
