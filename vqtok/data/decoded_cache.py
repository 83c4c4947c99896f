"""Decoded images that stay in memory, up to a limit."""

import os
import threading

import numpy as np

# an eighth of the machine's memory, 4 GiB at most; 512 MiB where it does not say
SHARE, MOST, UNKNOWN = 8, 2**32, 2**29


class DecodedCache:
    """Images by key. Keeps the first ones until `limit` bytes are full; none leaves again.

    Safe to use from several threads.

    Each epoch asks for each image once, in another order, so any choice of n out of N images is
    found n times. To throw out the one that was asked for longest ago, as caches mostly do, would
    find c + (1 - c) ln(1 - c) of them where this finds c = n/N:
    15 % with room for half.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._images: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> tuple[np.ndarray, int] | None:
        return self._images.get(key)

    def put(self, key: tuple[int, int], image: tuple[np.ndarray, int]) -> None:
        """Keeps it where there is room. Nobody may write to the array from here on."""
        size = image[0].nbytes
        with self._lock:
            if size <= self._left and key not in self._images:
                self._images[key] = image
                self._left -= size


def cache_budget() -> int:
    """Returns the bytes for decoded images on this machine."""
    try:
        return min(MOST, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return UNKNOWN
