"""The chunks of an array in memory: one table of addresses, from which native code gathers rows."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ensadv_data.gather import gather_rows

__all__ = ["Cache", "Chunks"]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


class Cache:
    """Room for decompressed chunks of several arrays; what was used longest ago makes place for what is needed.

    Parameters
    ----------
    limit
        Bytes. One chunk is held even where it is larger.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
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
    """All chunks of one array, by their number; each is loaded, and checked, when it is first used.

    Parameters
    ----------
    count
        How many chunks there are.
    rows, width
        Rows of a chunk, and bytes of a row.
    load
        From a chunk's number to its bytes, uint8 (rows, width), C-contiguous.
    cache
        Where chunks are held for a time; None: each is kept for good, which costs nothing where it is a map of a file.
    """

    def __init__(
        self, count: int, *, rows: int, width: int, load: Callable[[int], U8], cache: Cache | None = None
    ) -> None:
        self.width, self.size = width, rows * width
        self._load, self._cache = load, cache
        self._address = np.zeros(count, np.uint64)  # 0: not loaded
        self._used = np.zeros(count, np.int64)
        self._kept: dict[int, U8] = {}
        self._lock = cache.lock if cache else threading.RLock()
        if cache:
            cache.join(self)

    def gather(self, chunk_B: I64, row_B: I64) -> U8:
        """Rows in the order asked for, uint8 (B, width).

        Parameters
        ----------
        chunk_B, row_B
            int64 (B,): the chunk of each row, and which of its rows; in range.

        Raises
        ------
        ChunkError
            A chunk is missing, truncated or corrupted.
        """
        if self._cache is None:
            if not self._address[chunk_B].all():
                with self._lock:
                    self._load_all(np.unique(chunk_B))
            return self._copied(chunk_B, row_B)
        with self._lock:
            needed = np.unique(chunk_B)
            room = max(1, self._cache.limit // self.size)
            if len(needed) <= room:
                self._used[needed] = self._cache.tick()
                self._load_all(needed)
                return self._copied(chunk_B, row_B)
            out_BW = np.empty((len(chunk_B), self.width), np.uint8)
            for group in np.split(needed, range(room, len(needed), room)):
                members = np.flatnonzero(np.isin(chunk_B, group))
                out_BW[members] = self.gather(chunk_B[members], row_B[members])
            return out_BW

    def oldest(self) -> tuple[float, int]:
        """When the chunk that was used longest ago was used, and its number; infinity where none is held."""
        held = np.flatnonzero(self._address)
        if not len(held):
            return float("inf"), -1
        number = int(held[self._used[held].argmin()])
        return float(self._used[number]), number

    def drop_oldest(self) -> None:
        """Give up the chunk that was used longest ago."""
        _, number = self.oldest()
        self._address[number] = 0
        del self._kept[number]
        if self._cache:
            self._cache.held -= self.size

    def _load_all(self, needed: I64) -> None:
        for number in map(int, needed[self._address[needed] == 0]):
            if self._cache:
                self._cache.make_room(self.size)
            self._kept[number] = self._load(number)
            self._address[number] = self._kept[number].ctypes.data
            if self._cache:
                self._cache.held += self.size

    def _copied(self, chunk_B: I64, row_B: I64) -> U8:
        offset_B = (row_B * self.width).astype(np.uint64)
        return gather_rows(self._address[chunk_B] + offset_B, width=self.width)
