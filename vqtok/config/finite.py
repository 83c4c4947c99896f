"""How many values the numbers of `fsq` and `lfq` take; without PyTorch."""

import math
from functools import lru_cache

from vqtok.errors import UsageError

# values a number may take; the usual most is that of the paper's table 1
LEVELS_LOW, LEVELS_USUAL, LEVELS_HIGH = 3, 8, 16


def fsq_levels(size: int) -> tuple[int, ...]:
    """Returns how many values each number takes, largest first, so that their product is `size`.

    As few numbers as possible with at most 8 values each, as evenly as possible: this gives table 1
    of Mentzer et al. 2023 (arXiv 2309.15505). Up to 16 where 8 do not suffice. Raises UsageError
    for sizes that are no such product.
    """
    found = _split(size)
    if found is None:
        near = [
            next((n for n in sizes if _split(n)), None)
            for sizes in (range(size, 2, -1), range(size, 2 * size + 2))
        ]
        names = " or ".join(str(n) for n in near if n)
        raise UsageError(
            f"fsq cannot make {size} codes: "
            f"that is no product of numbers from {LEVELS_LOW} to {LEVELS_HIGH}",
            f"use --codebook-size {names}, or another --quantizer",
        )
    return found


@lru_cache(maxsize=4096)
def _split(size: int) -> tuple[int, ...] | None:
    for highest in (LEVELS_USUAL, LEVELS_HIGH):
        for count in range(1, math.floor(math.log(size, LEVELS_LOW) + 1e-9) + 1):
            splits = list(_products(size, count, highest))
            if splits:
                return min(splits, key=sum)  # of equal products, the most even has the smallest sum
    return None


def _products(size: int, count: int, highest: int) -> list[tuple[int, ...]]:
    """Lists all ways to write `size` as a product of `count` factors from 3 to `highest`, in
    falling order.
    """
    if not LEVELS_LOW**count <= size <= highest**count:
        return []
    if count == 1:
        return [(size,)]
    factors = [n for n in range(LEVELS_LOW, highest + 1) if size % n == 0]
    return [(n, *rest) for n in factors for rest in _products(size // n, count - 1, n)]


def lfq_bits(size: int) -> int:
    """Returns d for K = 2^d codes; UsageError for other sizes."""
    bits = size.bit_length() - 1
    if size != 2**bits:
        raise UsageError(
            f"lfq cannot make {size} codes: that is no power of two",
            f"use --codebook-size {2**bits} or {2 ** (bits + 1)}, or another --quantizer",
        )
    return bits
