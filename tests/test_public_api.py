"""The public face: a list that was reviewed, loaded only when it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import ensadv_data

REVIEWED = [
    "DataSpec",
    "EnsadvError",
    "EnsembleMix",
    "PrecomputeSpec",
    "TorchImages",
    "TrainSpec",
    "load_model",
    "measure_transfer",
    "open_dataset",
    "open_store",
    "precompute_store",
    "train",
]


def test_face_is_the_reviewed_list():
    assert ensadv_data.__all__ == REVIEWED
    assert len(REVIEWED) <= 12


@pytest.mark.parametrize(
    "name",
    REVIEWED,
)
def test_name_is_what_its_home_defines(name):
    import_module("ensadv_data.cli")  # loads every module, and so binds their names in the package
    value = getattr(ensadv_data, name)
    assert value.__module__.startswith("ensadv_data.")
    assert value.__name__ == name
    assert value.__doc__


def test_names_are_imported_by_from():
    from ensadv_data import EnsadvError, open_dataset

    assert issubclass(EnsadvError, Exception)
    assert callable(open_dataset)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ensadv_data' has no attribute 'trian'"):
        _ = ensadv_data.trian
    assert not hasattr(ensadv_data, "__version_of_nothing__")


def test_dir_has_the_face():
    assert set(REVIEWED) <= set(dir(ensadv_data))


def test_import_of_the_face_loads_nothing_heavy():
    code = (
        "import sys, ensadv_data; "
        "heavy = {'torch', 'numpy', 'zarr', 'dask', 'numba', 'pydantic', 'click', 'matplotlib'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
