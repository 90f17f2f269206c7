"""Where a command line begins: the commands are loaded here, so that Ctrl-C ends their loading as it ends them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ensadv_data.interrupts import insistent_interrupt

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, and end with its exit code."""
    try:
        with insistent_interrupt():
            from ensadv_data import cli  # seconds, most of them PyTorch's

            cli.main(arguments)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
