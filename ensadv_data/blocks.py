"""One task of precompute: a block of a store, computed and written whole.

A task is deterministic and idempotent: on CPU it computes with one thread and a fixed batch size, its randomness is
named by (seed, source, draw, first example of the batch), and it may run twice without harm.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ensadv_data.ahead import made_ahead
from ensadv_data.arithmetic import as_recorded
from ensadv_data.data import ArrayDataset, Opened, digest_examples, open_data
from ensadv_data.data.checking import Piece, digested
from ensadv_data.data.photographs import Photographs
from ensadv_data.errors import DataError, IntegrityError, ModelError
from ensadv_data.models import Model, load_model
from ensadv_data.perturbation import BlockRows
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import Entry, Header, Planes, StoreWriter

__all__ = [
    "Block",
    "Job",
    "compute_block",
    "dataset_of",
    "make_block",
    "model_of",
    "part_size",
    "plan_blocks",
]

_MOST_IMAGES, _MOST_BYTES = 1024, 2**25  # of a part
_COMPUTING = threading.Lock()  # a worker with several threads still computes one block at a time


@dataclass(frozen=True)
class Block:
    """Consecutive examples first … last, both included."""

    index: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"block {self.index}"


@dataclass(frozen=True)
class Job:
    """All that a task needs; small, since it travels with every task. Models are loaded on the worker."""

    place: Path | str  # of the store
    data: DataSpec
    header: Header
    entries: tuple[Entry, ...]
    spec: PrecomputeSpec
    expected: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # of a finished store that is repaired


def plan_blocks(header: Header, done: set[int] | frozenset[int] = frozenset()) -> list[Block]:
    """The blocks still to compute, in order: a function of the header and of what is done."""
    size = header.block
    return [
        Block(index, index * size, min((index + 1) * size, header.n) - 1)
        for index in range(header.blocks)
        if index not in done
    ]


def part_size(batch_size: int, d: int) -> int:
    """How many images of ``d`` bytes are read at once: whole batches, one at least. Another part is read meanwhile."""
    return max(1, min(_MOST_IMAGES, _MOST_BYTES // d) // batch_size) * batch_size


def compute_block(job: Job, block: Block) -> dict[str, Any]:
    """Make one block, unless it is done: its worker may have died before it told, or another client was faster.

    Raises as :func:`make_block` does.
    """
    writer = StoreWriter(job.place, job.header, job.entries)
    done = None if job.expected else writer.record(block.index)
    return make_block(job, block) if done is None else done


def make_block(job: Job, block: Block) -> dict[str, Any]:
    """Compute one block of everything and write it; nothing is written if any of it fails.

    Where the device's memory does not hold a batch, the block is computed in smaller ones, which its record tells.

    Raises
    ------
    ModelError
        A model's output is wrong; the message names source, block and example.
    OutputError
        The store cannot be written.
    IntegrityError
        The store is finished, and a chunk comes out otherwise than its manifest has it.
    """
    size = int(job.spec.batch_size)
    while True:
        try:
            smaller = replace(job, spec=job.spec.model_copy(update={"batch_size": size}))
            planes, digests_N = _perturbed(smaller, block)
            break
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)):
                raise
            if size == 1:
                raise ModelError(
                    f"block {block.index}: expected memory of {job.spec.device} for one image at least: {error}"
                ) from None
        size //= 2
    fewer = {} if size == job.spec.batch_size else {"batch_size": size}
    writer = StoreWriter(job.place, job.header, job.entries)
    try:
        return writer.write_block(block.index, planes, digests_N, about=fewer, expected=job.expected)
    except FileNotFoundError:
        if not writer.is_complete():
            raise
        return {}  # another precompute has finished the store meanwhile, and tidied what was being written


def _perturbed(job: Job, block: Block) -> tuple[dict[str, Planes], npt.NDArray[np.uint64]]:
    """The planes of a block by entry's key, and the digests of its images."""
    threads = 1 if job.spec.device == "cpu" else None  # there is a worker for each core
    data, spec, rows = dataset_of(job.data, job.spec.split, threads), job.spec, dict[str, BlockRows]()
    n, part = block.last + 1 - block.first, part_size(int(spec.batch_size), job.header.d)
    digests = []

    def read(at: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        images, labels = data.read(np.arange(block.first + at, block.first + min(at + part, n)))
        return images, labels, digest_examples(images)

    starts = range(0, n, part)
    with (
        _COMPUTING,
        as_recorded(spec.device, spec.precision),
        closing(made_ahead(read, starts, depth=1)) as parts,
    ):
        for at, (images, labels, known) in zip(starts, parts, strict=True):  # a part is read once, for all sources
            digests.append(known)
            for name in spec.models:
                try:
                    if name not in rows:
                        rows[name] = _rows_of(job, block, name)
                    rows[name].fill(images, labels, at=at)
                except ModelError as error:
                    raise ModelError(f"block {block.index}: {error}; nothing was written for this block") from None
                except RuntimeError as error:
                    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                        raise
                    cause = str(error).strip().splitlines()[0]
                    raise ModelError(f"source {name}: torch.compile failed: {cause}; leave out --compile") from None
        planes = {key: plane for source in rows.values() for key, plane in source.planes().items()}
    return planes, np.concatenate(digests)


def _rows_of(job: Job, block: Block, name: str) -> BlockRows:
    entries = {entry.attack: entry for entry in job.entries if entry.source == name}
    expected = next(iter(entries.values())).source_digest
    model = model_of(job.spec.models[name], name, job.spec.device, expected, job.spec.compile)
    count = block.last + 1 - block.first
    return BlockRows(model, job.spec, entries, n=count, d=job.header.d, first=block.first)


@lru_cache(maxsize=2)
def dataset_of(spec: DataSpec, split: Literal["train", "test"], threads: int | None = None) -> Opened:
    """The images of a split, opened once a process; ``threads`` decode, one a core unless given."""
    return open_data(spec, split, threads=threads)


@dataclass(frozen=True)
class Rows:
    """Some rows of a listing, and their number."""

    number: int
    rows: Sequence[int]

    def __str__(self) -> str:
        """What to call the task in a message."""
        return f"the digest of {len(self.rows)} images from row {self.rows[0] if self.rows else 0} on"


def digest_rows(
    data: DataSpec, split: Literal["train", "test"], listing: str, threads: int | None, part: Rows
) -> Piece:
    """A task beside the blocks: digests of rows of images of one's own, before the first block is given out.

    Parameters
    ----------
    listing
        Digest of the client's listing, of which the rows are.
    threads
        That decode; None: one a core.

    Raises
    ------
    IntegrityError
        This machine sees other files than the client.
    """
    whole = data.model_copy(update={"on_bad_image": "fail", "limit": None})  # to skip bad ones it would look at all
    try:
        images = dataset_of(whole, split, threads)
        if not isinstance(images, ArrayDataset) and images.listed != listing:
            dataset_of.cache_clear()  # what this worker has listed may be of another day
            images = dataset_of(whole, split, threads)
    except DataError as error:
        raise IntegrityError(f"expected the client's images on {platform.node()} too: {error}") from None
    if isinstance(images, ArrayDataset) or images.listed != listing:
        index = f", or delete {images.listing.index}, which may be old" if isinstance(images, Photographs) else ""
        raise IntegrityError(
            f"{data.data}: expected the files of the client, with their sizes and times, found others on "
            f"{platform.node()}; mount the same folder there, or copy it with its times{index}"
        )
    return digested(part.number, part.rows, images.digests_of)


@lru_cache(maxsize=16)
def model_of(reference: str, name: str, device: str, digest: str, compiled: bool = False) -> Model:
    """A static model, loaded once a process.

    Raises
    ------
    IntegrityError
        It has other weights than the client's.
    """
    model = load_model(reference, name=name, device=device)
    if model.digest != digest:
        remedy = (
            "does the factory return the same weights at each call? (seed it, or let it load them)"
            if reference.startswith("python:")
            else f"does {reference} hold the same file on every machine?"
        )
        raise IntegrityError(
            f"source {name}: expected weights with digest {digest[:12]}…, this worker loaded "
            f"{model.digest[:12]}…; {remedy}"
        )
    model.module.requires_grad_(False)
    return replace(model, module=cast(nn.Module, torch.compile(model.module))) if compiled else model
