"""The command line: one file a verb, torch imported only by the verbs that need it.

Exit codes: 0 done, 1 a run failed (divergence, full disk), 2 input that cannot be used, 3 a missing
optional part, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from regraft.errors import InputError, RegraftError, printable

if TYPE_CHECKING:
    from .verbs import Runnable, Verb, VerbGroup


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one sentence on standard error."""
    code = 0
    try:
        code = _main(sys.argv[1:] if argv is None else list(argv))
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except KeyboardInterrupt:  # in the first or the last moment
        return _interrupted()
    except BrokenPipeError:
        # Whoever read has read enough, as `head` does; Python would complain again when it ends.
        _discard_output()
        return 0
    except OSError as error:
        if os.environ.get("REGRAFT_TRACEBACK"):
            raise
        _discard_output()
        return code or _refused(f"standard output: {error.strerror}; lead it elsewhere", 1)
    return code


def _main(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A name that the terminal cannot show ends no command; bytes of a file's name stay what they are.
        utf8 = sys.stdout.encoding.lower() == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    if os.environ.get("COLUMNS", "").isdecimal() and int(os.environ["COLUMNS"]) < _NARROWEST:
        del os.environ["COLUMNS"]
    try:
        verb, command = _command(words)
        with _warnings_in_one_line(), _known_by_its_folder(verb, command):
            return command.run() or 0
    except SystemExit as stop:  # help was shown, or the usage was wrong and it was said how
        return stop.code if isinstance(stop.code, int) else 0
    except RegraftError as error:
        if os.environ.get("REGRAFT_TRACEBACK"):  # also where somebody's factory raised
            import traceback

            traceback.print_exception(error)
        return _refused(error, error.exit_code)
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except BrokenPipeError:
        raise
    except Exception as error:
        # Out of memory, a user's own model that fails: one sentence, and the rest on demand.
        if os.environ.get("REGRAFT_TRACEBACK"):
            raise
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say in one sentence what nothing else has put into words."""
    if isinstance(error, OSError) and error.filename:  # a path too long, or closed to this user
        cure = "give a path that can be read or written"
        return _refused(f"{error.filename}: {error.strerror}; {cure}", 2)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _refused(f"standard output: {error.strerror}; lead it elsewhere", 1)
    reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
    return _refused(f"{reason} (set REGRAFT_TRACEBACK=1 to see where)", 1)


def _refused(sentence: object, code: int) -> int:
    print(f"regraft: {printable(sentence)}", file=sys.stderr)
    return code


def _interrupted(stop: KeyboardInterrupt | None = None) -> int:
    what = str(stop or "") or "the same command goes on where it stopped"
    return _refused(f"interrupted; {what}", 130)


def _command(words: list[str]) -> tuple[str, Runnable]:
    """Return the verb and its dataclass, filled from the command line; only its file is imported."""
    from .verbs import VERBS, VerbGroup

    path, verbs, description = ["regraft"], VERBS, _DESCRIPTION
    while True:
        word = words[0] if words else ""
        if word in ("-h", "--help"):
            _show_verbs(path, verbs, description)
            raise SystemExit(0)
        if word == "--version" and len(path) == 1:
            from regraft._version import __version__

            print(f"regraft {__version__}")
            raise SystemExit(0)
        if word not in verbs:
            _refuse(path, word, list(verbs))
        path, words, verb = [*path, word], words[1:], verbs[word]
        if not isinstance(verb, VerbGroup):
            break
        verbs, description = verb.verbs, verb.line
    try:
        if not {"-h", "--help"} & {*words}:
            Path.cwd()  # torch itself cannot be imported without
    except FileNotFoundError as error:
        cure = "go to one that exists (`cd`) and try again"
        raise InputError(f"the folder that this runs in has been removed: {cure}") from error
    import tyro

    from .constructors import registry
    from .options import Options, option_names

    for before, word in itertools.pairwise([path[-1], *words]):
        # As a path it would be the folder that one is in.
        if not word or (word.startswith("--") and word.find("=") == len(word) - 1):
            raise InputError(f"nothing stands after {word or before!r}: is a variable not set?")
    kind, name, default = verb.load(), " ".join(path[1:]), None
    if issubclass(kind, Options) and "config" in option_names(kind):
        from .config_file import defaults, split_config

        file, words = split_config(words)
        default = None if file is None else defaults(file, name, kind, words)
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    with registry():
        return name, tyro.cli(kind, prog=" ".join(path), args=words, config=config, default=default)


@contextlib.contextmanager
def _known_by_its_folder(verb: str, command: object) -> Iterator[None]:
    """Let the folder that a command makes keep its options, for --config."""
    from regraft.config.command import carrying_out

    from .config_file import command_of
    from .options import Options

    with carrying_out(command_of(verb, command) if isinstance(command, Options) else None):
        yield


def _show_verbs(path: list[str], verbs: Mapping[str, Verb | VerbGroup], description: str) -> None:
    """Print the help of a word that other words follow: one line a verb."""
    width = max(map(len, verbs))
    print(f"usage: {' '.join(path)} VERB [OPTIONS]\n\n{description}\n")
    for name, verb in verbs.items():
        print(f"  {name:<{width}}  {verb.line}")
    print(f"\n{' '.join(path)} VERB --help shows the options of a verb.")


def _refuse(path: list[str], word: str, verbs: list[str]) -> NoReturn:
    """Say which verb was probably meant, and leave as after any wrong usage."""
    import difflib

    near = difflib.get_close_matches(word, verbs, n=1, cutoff=0.5)
    what = f"{word!r} is no verb" if word else "no verb was named"
    cure = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(verbs)}"
    print(f"{' '.join(path)}: {what}; {cure}", file=sys.stderr)
    raise SystemExit(2)


def _discard_output() -> None:
    """Lead standard output to nowhere, where it has a file descriptor."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show warnings to the user as errors are shown, each once; others say where they arise."""
    with warnings.catch_warnings():
        show = warnings.showwarning
        shown: set[str] = set()

        def brief(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category is UserWarning:
                if str(message) in shown:  # each training of a search may say it
                    return
                shown.add(str(message))
                print(f"regraft: {printable(message)}", file=sys.stderr)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = brief
        yield


_NARROWEST = 40
"""Columns below which no word would stay whole: such a width counts as none."""

_DESCRIPTION = (
    "Inherit more, train less: good networks out of what already exists.\n\n"
    "Exit codes: 0 done, 1 a run failed, 2 unusable input,\n"
    "3 a missing optional part, 130 interrupted."
)

if __name__ == "__main__":
    sys.exit(main())
