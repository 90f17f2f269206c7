"""The tree of errors: its drawing, its exit codes, and the way from a worker."""

from __future__ import annotations

import re

import pytest

from ensadv_data import errors
from ensadv_data.errors import EnsadvError, UnknownNameError
from laws import survives_pickle

CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, EnsadvError)
}
EXIT_CODES = {
    "EnsadvError": 1,
    "InputError": 3,
    "UnknownNameError": 3,
    "QuantityError": 3,
    "DataError": 3,
    "ModelError": 3,
    "OutputError": 3,
    "IntegrityError": 4,
    "ChunkError": 4,
    "AlignmentError": 4,
    "Interrupted": 130,
}


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """From the drawing at the top of the module: class → (its parent, the exit code beside it)."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    branch: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^((?:[│ ]{4})*(?:[├└]── )?)([A-Z]\w+) {2,}(?:(\d+) {2,})?\S", line)
        if found:
            depth, name = len(found[1]), found[2]
            branch = [above for above in branch if above[0] < depth]
            tree[name] = (branch[-1][1] if branch else None, int(found[3]) if found[3] else None)
            branch.append((depth, name))
    return tree


def make(kind: type[EnsadvError]) -> EnsadvError:
    return kind("attack", "fgms", ["fgsm", "pgd"]) if kind is UnknownNameError else kind("expected a, got b")


def test_the_drawing_names_every_class_under_its_parent():
    parents = {name: kind.__base__.__name__ for name, kind in CLASSES.items()}
    assert {name: parent or "Exception" for name, (parent, _) in drawn_tree().items()} == parents
    assert issubclass(EnsadvError, Exception)


def test_exit_codes_are_those_of_the_drawing_and_of_the_design():
    assert {name: kind.exit_code for name, kind in CLASSES.items()} == EXIT_CODES
    assert {name: code for name, (_, code) in drawn_tree().items() if code is not None} == {
        name: EXIT_CODES[name] for name in ("EnsadvError", "InputError", "IntegrityError", "Interrupted")
    }


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_error_survives_its_way_from_a_worker(kind):
    survives_pickle(make(kind))


def test_an_unknown_name_comes_with_the_known_ones():
    error = UnknownNameError("attack", "fgms", (name for name in ["fgsm", "pgd"]))
    assert str(error) == "unknown attack 'fgms'; known: fgsm, pgd"
    assert (error.kind, error.name, error.known) == ("attack", "fgms", ("fgsm", "pgd"))
    assert str(UnknownNameError("scale", "tiny", [])) == "unknown scale 'tiny'; known: none"
