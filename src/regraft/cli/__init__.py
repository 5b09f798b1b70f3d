"""The command line: one file a verb, torch imported only by the verbs that need it.

Exit codes: 0 done, 1 a run failed (divergence, full disk), 2 input that cannot be used, 3 a missing
optional part, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any


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
    except SystemExit as stop:  # help was shown, or the usage was wrong and tyro said how
        return stop.code if isinstance(stop.code, int) else 0
    try:
        with _warnings_in_one_line():
            return command.run() or 0
    except RegraftError as error:
        print(f"regraft: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("regraft: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        # Out of memory, a user's own model that fails: one sentence, and the rest on demand.
        if os.environ.get("REGRAFT_TRACEBACK"):
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        print(
            f"regraft: {type(error).__name__}: {reason} (set REGRAFT_TRACEBACK=1 to see where)",
            file=sys.stderr,
        )
        return 1


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show warnings to the user as errors are shown; those to programmers say where they arise."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def brief(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if category is UserWarning:
                print(f"regraft: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = brief
        yield


_DESCRIPTION = (
    "Inherit more, train less: good networks out of what already exists.\n\n"
    "Exit codes: 0 done, 1 a run failed, 2 unusable input,\n"
    "3 a missing optional part, 130 interrupted."
)

if __name__ == "__main__":
    sys.exit(main())
