"""The data sets: opened by name, checked byte by byte, fetched from mirrors (:mod:`.fetch`)."""

from __future__ import annotations

from ensadv_data.data.dataset import ArrayDataset, Dataset, digest_examples, digest_of
from ensadv_data.data.opening import DATASETS, open_data, open_dataset
from ensadv_data.data.shift import shifted

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Dataset",
    "digest_examples",
    "digest_of",
    "open_data",
    "open_dataset",
    "shifted",
]
