"""The data sets: opened by name, checked byte by byte, fetched from mirrors (:mod:`.fetch`); and one's own images."""

from __future__ import annotations

from ensadv_data.data.dataset import ArrayDataset, Dataset, digest_examples, digest_of
from ensadv_data.data.opening import DATASETS, PLACES, Opened, absolute_data, open_data, open_dataset
from ensadv_data.data.shift import shifted

__all__ = [
    "DATASETS",
    "PLACES",
    "ArrayDataset",
    "Dataset",
    "Opened",
    "absolute_data",
    "digest_examples",
    "digest_of",
    "open_data",
    "open_dataset",
    "shifted",
]
