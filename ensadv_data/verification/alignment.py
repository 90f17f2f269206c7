"""Whether a store is for the images that one has: their digests against those of the store, one by one."""

from __future__ import annotations

import numpy as np

from ensadv_data.data import Dataset, digest_examples
from ensadv_data.errors import AlignmentError
from ensadv_data.objects import Objects
from ensadv_data.progress import progress_bar
from ensadv_data.untrusted import quoted
from ensadv_data.verification.blueprint import Blueprint
from ensadv_data.verification.contents import chunk_of

__all__ = ["check_alignment"]

_PART = 4096  # images in memory


def check_alignment(place: Objects, blueprint: Blueprint, dataset: Dataset) -> int:
    """Compare every image that both have with the digest that the store has for it; returns how many there are.

    Parameters
    ----------
    dataset
        The split that the store is for; with fewer images than it, those are compared.

    Raises
    ------
    AlignmentError
        The images are others, of another shape or number of classes.
    ChunkError
        A chunk of digests is damaged.
    """
    header = blueprint.header
    about = f"{quoted(header.data)[1:-1]}/{quoted(header.split)[1:-1]}"
    if (dataset.shape, dataset.classes) != (header.shape, header.classes):
        raise AlignmentError(
            f"{place}: expected images of shape {header.shape} in {header.classes} classes ({about}), found "
            f"{dataset.shape} in {dataset.classes} ({dataset.name}/{dataset.split}); the store is for other images"
        )
    count = min(header.n, len(dataset))
    compared, here = 0, sorted(block for block in blueprint.blocks_of() if block * header.block < count)
    with progress_bar(f"align {place.name}", total=len(here), unit="blocks") as advance:
        for block in here:
            first = block * header.block
            digests = chunk_of(place, blueprint, blueprint.digests, 0, block).view("<u8")[:, 0]
            for start in range(first, min(first + header.block, count), _PART):
                rows = np.arange(start, min(start + _PART, first + header.block, count))
                compared += len(rows)
                found, expected = digest_examples(dataset.read(rows)[0]), digests[rows - first]
                if len(wrong := np.flatnonzero(found != expected)):
                    at = wrong[0]
                    raise AlignmentError(
                        f"{place}: example {rows[at]}: expected an image with digest {int(expected[at]):016x} "
                        f"({about}), found {int(found[at]):016x}; the store is for other images than "
                        f"{dataset.name}/{dataset.split}"
                    )
            advance(1)
    if dataset.digest != header.data_digest:
        raise AlignmentError(
            f"{place}: expected a split with digest {header.data_digest[:16]}… ({about}), found "
            f"{dataset.digest[:16]}…; the store is for another version of these images"
        )
    return compared
