"""The chunks of an array of rows in memory: a table of addresses, from which native code gathers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import InputError
from ensadv_data.gather import DONE, OUTSIDE, gather_rows
from ensadv_data.objects import Shelf
from ensadv_data.store.layout import HELD_BYTES

__all__ = ["Cache", "Chunks"]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

_BYTE = np.dtype(np.uint8)  # made once: this is the hot path


class Cache:
    """Room for decompressed chunks of several arrays; what was used longest ago makes place for what is needed.

    Parameters
    ----------
    limit
        Bytes. One chunk is held even where it is larger.
    shelf
        Where copies of far chunks are kept on a disk, if anywhere.
    """

    def __init__(self, limit: int = HELD_BYTES, shelf: Shelf | None = None) -> None:
        self.limit, self.shelf, self.held = limit, shelf, 0
        self.lock = threading.RLock()  # held while rows are copied: nothing is dropped under a reader
        self._arrays: list[Chunks] = []
        self._now = 0

    def join(self, array: Chunks) -> None:
        """Have an array's chunks held here."""
        self._arrays.append(array)

    def tick(self) -> int:
        """The number of this use, larger than all before."""
        self._now += 1
        return self._now

    def make_room(self, size: int) -> None:
        """Drop chunks until so many bytes more fit, or nothing is left."""
        while self.held and self.held + size > self.limit:
            min(self._arrays, key=lambda array: array.oldest()[0]).drop_oldest()


class Chunks:
    """All chunks of one array of rows, by draw and block; each is loaded, and checked, when it is first used.

    Parameters
    ----------
    draws, n, block
        Draws, rows of a draw, and rows of a chunk: row i of block b is row b·block + i of its draw.
    width
        Bytes of a row.
    load
        From draw and block to the chunk's bytes, uint8 (block, width), C-contiguous.
    cache
        Where chunks are held for a time; None: each is kept for good, which costs nothing where it is a map of a file.
    at_once
        Chunks that are loaded at the same time, where one call needs several.
    """

    def __init__(
        self,
        draws: int,
        n: int,
        block: int,
        *,
        width: int,
        load: Callable[[int, int], U8],
        cache: Cache | None = None,
        at_once: int = 1,
    ) -> None:
        self.n, self.block, self.width, self.size = n, block, width, block * width
        self._load, self._cache, self._at_once = load, cache, at_once
        self._address = np.zeros((draws, -(-n // block)), np.uint64)  # 0: not in memory
        self._used = np.zeros(self._address.shape, np.int64)  # when, by the cache's count
        self._kept: dict[tuple[int, int], U8] = {}
        self._lock = cache.lock if cache else threading.RLock()
        if cache:
            cache.join(self)

    def gather(self, draw_B: I64, row_B: I64) -> U8:
        """Rows in the order asked for, uint8 (B, width).

        Parameters
        ----------
        draw_B, row_B
            int64 (B,): draw and row of each.

        Raises
        ------
        InputError
            One of them is out of range.
        ChunkError
            A chunk is missing, truncated or corrupted.
        """
        out_BW = np.empty((len(row_B), self.width), _BYTE)
        if self._cache is None:
            status = gather_rows(self._address, self._used, draw_B, row_B, self.n, self.block, 0, out_BW)
            if status != DONE:
                self._complete(status, draw_B, row_B, 0, out_BW)
            return out_BW
        with self._lock:
            now = self._cache.tick()
            status = gather_rows(self._address, self._used, draw_B, row_B, self.n, self.block, now, out_BW)
            if status != DONE:
                self._complete(status, draw_B, row_B, now, out_BW)
        return out_BW

    def oldest(self) -> tuple[float, tuple[int, int]]:
        """When the chunk that was used longest ago was used, and which it is; infinity where none is held."""
        held = np.argwhere(self._address)
        if not len(held):
            return float("inf"), (-1, -1)
        draw, block = held[self._used[held[:, 0], held[:, 1]].argmin()]
        return float(self._used[draw, block]), (int(draw), int(block))

    def drop_oldest(self) -> None:
        """Give up the chunk that was used longest ago."""
        _, chunk = self.oldest()
        self._address[chunk] = 0
        del self._kept[chunk]
        if self._cache:
            self._cache.held -= self.size

    def _complete(self, status: int, draw_B: I64, row_B: I64, now: int, out_BW: U8) -> None:
        """Load what was absent and gather again, or say what is out of range."""
        if status == OUTSIDE:
            for what, numbers, count in (("examples", row_B, self.n), ("draws", draw_B, len(self._address))):
                if numbers.min() < 0 or numbers.max() >= count:
                    raise InputError(f"expected {what} in 0 … {count - 1}, got {numbers.min()} … {numbers.max()}")
        chunk_B = draw_B * self._address.shape[1] + row_B // self.block
        needed = np.unique(chunk_B)
        room = len(needed) if self._cache is None else max(1, self._cache.limit // self.size)
        for start in range(0, len(needed), room):  # all at once, unless the cache has no room for them
            group = needed[start : start + room]
            self._hold(group, now)
            members = np.flatnonzero(np.isin(chunk_B, group))
            part_BW = np.empty((len(members), self.width), np.uint8)
            gather_rows(self._address, self._used, draw_B[members], row_B[members], self.n, self.block, now, part_BW)
            out_BW[members] = part_BW

    def _hold(self, chunks: I64, now: int) -> None:
        """Have these chunks in memory; those of the same call that were held for it before may be dropped."""
        self._used[self._used == now] = now - 1
        self._used.flat[chunks] = now
        with self._lock:
            absent = [
                divmod(chunk, self._address.shape[1]) for chunk in chunks.tolist() if not self._address.flat[chunk]
            ]
            for (draw, block), rows in zip(absent, self._loaded(absent), strict=True):
                if self._cache:
                    self._cache.make_room(self.size)
                self._kept[draw, block] = rows
                self._address[draw, block] = rows.ctypes.data
                if self._cache:
                    self._cache.held += self.size

    def _loaded(self, absent: Sequence[tuple[int, int]]) -> Iterator[U8]:
        if self._at_once == 1 or len(absent) < 2:
            yield from (self._load(draw, block) for draw, block in absent)
            return
        with ThreadPoolExecutor(self._at_once) as pool:
            for start in range(0, len(absent), self._at_once):  # no more than these beside what the cache holds
                yield from pool.map(lambda chunk: self._load(*chunk), absent[start : start + self._at_once])
