"""One tree of errors; every error knows the exit code that the command line ends with.

EnsadvError                     1   unexpected
├── InputError                  3   bad input or configuration
│   ├── UnknownNameError            a name that does not exist; lists the ones that do
│   ├── QuantityError               a number outside its range (epsilon, alpha, draws, …)
│   ├── DataError                   a data set's file is missing, truncated, renamed or wrong
│   ├── ModelError                  a model cannot be loaded, or its output is not finite (N, K) logits
│   └── OutputError                 a folder is read-only, full, or holds something else
├── IntegrityError              4   something does not match its digest, signature or data set
│   ├── ChunkError                  a chunk of a store is missing, truncated or corrupted
│   └── AlignmentError              an image is not the image that a perturbation was made for
└── Interrupted               130   stopped on request; what was done is kept and can be resumed
"""

from __future__ import annotations

from collections.abc import Iterable


class EnsadvError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class InputError(EnsadvError):
    """Bad input or configuration."""

    exit_code = 3


class UnknownNameError(InputError):
    """A name that does not exist, with the names that do."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(self.known) or 'none'}")

    def __reduce__(self) -> tuple[type, tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.name, self.known)  # errors travel from workers by pickle


class QuantityError(InputError):
    """A number outside its range."""


class DataError(InputError):
    """A data set's file is missing, truncated, renamed or wrong."""


class ModelError(InputError):
    """A model cannot be loaded, or its output is not finite logits of shape (N, K)."""


class OutputError(InputError):
    """A folder cannot be written, or holds something that must not be overwritten."""


class IntegrityError(EnsadvError):
    """Something does not match its digest, signature or data set."""

    exit_code = 4


class ChunkError(IntegrityError):
    """A chunk of a store is missing, truncated or corrupted."""


class AlignmentError(IntegrityError):
    """An image is not the image that a perturbation was made for."""


class Interrupted(EnsadvError):
    """Stopped on request; what was done is kept and can be resumed."""

    exit_code = 130
