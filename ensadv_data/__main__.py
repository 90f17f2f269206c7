"""Where a command line begins and ends: exit codes as in errors.py, and Ctrl-C also while the commands are loaded."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ensadv_data.errors import EnsadvError
from ensadv_data.interrupts import insistent_interrupt

if TYPE_CHECKING:
    from click import Command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, and end with its exit code; return where that is 0."""
    command = None
    try:
        with insistent_interrupt():
            command = _loaded()
            code = _called(command, arguments)
    except KeyboardInterrupt:
        how = " before anything was done" if command is None else "; the same command resumes"
        print(f"stopped{how}", file=sys.stderr)
        code = 130
    if code:
        sys.exit(code)


def _loaded() -> Command:
    """The commands; to load them takes seconds, most of them PyTorch's."""
    from ensadv_data.cli import cli
    from ensadv_data.memory import keep_freed_memory

    keep_freed_memory()
    return cli


def _called(command: Command, arguments: Sequence[str] | None) -> int:
    """Run one of the commands; returns its exit code."""
    import click

    sys.path.append(os.getcwd())  # python:MODULE:FACTORY finds a module of the folder one stands in
    try:
        words = None if arguments is None else list(arguments)
        command.main(args=words, prog_name="ensadv-data", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except EnsadvError as error:
        print("error: " + _on_one_line(str(error)), file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(f"error: unexpected {type(error).__name__}; please report it with the lines above", file=sys.stderr)
        return 1
    return 0


def _on_one_line(text: str) -> str:
    """A message, in which what a stranger wrote does nothing to a terminal."""
    words = " ".join(line.strip() for line in text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


if __name__ == "__main__":
    main()
