"""The command line: one file a verb, torch imported only by the verbs that need it.

Exit codes: 0 done, 1 a run failed (divergence, full disk), 2 input that cannot be used, 3 a missing
optional part, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one sentence on standard error."""
    import tyro

    from regraft.errors import RegraftError

    from .verbs import VERBS

    try:
        command = tyro.cli(
            VERBS,
            prog="regraft",
            description=_DESCRIPTION,
            args=None if argv is None else list(argv),
        )
        return command.run() or 0
    except RegraftError as error:
        print(f"regraft: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("regraft: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


_DESCRIPTION = (
    "Inherit more, train less: good networks out of what already exists. "
    "Exit codes: 0 done, 1 a run failed, 2 unusable input, 3 a missing optional part, "
    "130 interrupted."
)

if __name__ == "__main__":
    sys.exit(main())
