"""The order of a sequence, the ids of its tokens, and the way back to a grid.

A sequence is: BOS, the class token, the tokens of the grid with an EOL after each row, EOS; each
of these four only where it is asked for. The ids are the codebook's K indices (K for each level
where `offset` is set), and after them the special ones.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np

from vqtok.codes import count_levels
from vqtok.codes.checks import is_int, require
from vqtok.errors import FormatError, UsageError

Order = Literal["raster", "level-major"]
ORDERS: tuple[Order, ...] = ("raster", "level-major")
IDS_MAX = 1 << 31  # readers hold ids in int32
DIGITS = "first dimension fastest"  # of the ids of fsq and lfq: `quantizers.finite.pack`


@dataclass(frozen=True)
class Vocabulary:
    """The meaning of each id."""

    codebook_size: int  # K
    levels: int  # L
    offset: bool = False  # ids of level l start at l * K, counted from 0
    bos: int | None = None
    eol: int | None = None
    eos: int | None = None
    class_start: int | None = None  # the token of class c is class_start + c
    classes: int = 0

    @classmethod
    def make(
        cls,
        codebook_size: int,
        levels: int,
        offset: bool = False,
        bos: bool = False,
        eol: bool = False,
        eos: bool = False,
        classes: int = 0,
    ) -> "Vocabulary":
        """Numbers the special tokens: after the codes, in the order BOS, EOL, EOS, classes.

        UsageError where the ids do not fit into 31 bits.
        """
        free = codebook_size * (levels if offset else 1)
        special: dict[str, int | None] = {}
        for name, wanted in (("bos", bos), ("eol", eol), ("eos", eos)):
            special[name] = free if wanted else None
            free += wanted
        found = cls(
            codebook_size,
            levels,
            offset,
            special["bos"],
            special["eol"],
            special["eos"],
            free if classes else None,
            classes,
        )
        if found.size > IDS_MAX:
            raise UsageError(
                f"a vocabulary of {found.size:,} ids does not fit into the 31 bits that "
                "training code takes",
                "leave --offset out, or use fewer levels",
            )
        return found

    @property
    def size(self) -> int:
        """Returns how many ids there are."""
        special = sum(each is not None for each in (self.bos, self.eol, self.eos))
        return self.codes + special + self.classes

    @property
    def codes(self) -> int:
        """Returns how many of the ids are codes: the first ones."""
        return self.codebook_size * (self.levels if self.offset else 1)

    @property
    def dtype(self) -> np.dtype:
        """Returns the width of an id by rule: uint16 up to 65,536 ids, else uint32."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)

    @property
    def level_starts(self) -> list[int]:
        """Returns the first id of each level."""
        step = self.codebook_size if self.offset else 0
        return [level * step for level in range(self.levels)]

    def describe(self, token: int) -> str:
        """Returns what an id is, in words: 'code 12 of level 2', 'the EOL token'."""
        names = {self.bos: "the BOS token", self.eol: "the EOL token", self.eos: "the EOS token"}
        if token in names:
            return names[token]
        start = self.class_start
        if start is not None and start <= token < start + self.classes:
            return f"the token of class {token - start}"
        if 0 <= token < self.codes:
            level, code = divmod(token, self.codebook_size)
            return f"code {code} of level {level + 1}" if self.offset else f"code {code}"
        return "none of its ids"


@dataclass(frozen=True)
class Layout:
    """Turns grids (n, L, h, w) into sequences (n, T), and sequences back into grids."""

    vocabulary: Vocabulary
    order: Order = "raster"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"there is no order {self.order!r}", f"choose {' or '.join(ORDERS)}")

    def length(self, h: int, w: int) -> int:
        """Returns T, the length of the sequence of a grid."""
        v = self.vocabulary
        rows, per_row = self._rows(h, w)
        ends = v.eol is not None
        return self._before + rows * (per_row + ends) + (v.eos is not None)

    def encode(self, grids: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
        """Makes sequences (n, T) of grids (n, L, h, w), with the class (n,) of each where the
        vocabulary has class tokens.

        FormatError where an index is none of the codebook, UsageError where a class is none.
        """
        v = self.vocabulary
        n, L, h, w = grids.shape
        assert v.levels == L
        # one pass, not two
        require(int(grids.max(initial=0)) < v.codebook_size, "an index is out of range")
        rows, per_row = self._rows(h, w)
        out = np.empty((n, self.length(h, w)), v.dtype)
        before = 0
        if v.bos is not None:
            out[:, 0], before = v.bos, 1
        if v.class_start is not None:
            out[:, before] = v.class_start + _checked(classes, n, v.classes)
            before += 1
        end = out.shape[1] - (v.eos is not None)
        body = out[:, before:end].reshape(n, rows, -1)  # (n, rows, tokens of a row and its EOL)
        shape = (n, h, w, L) if self.order == "raster" else (n, L, h, w)
        cells = body[..., :per_row].reshape(shape)  # a view: only axes are split
        for level, start in enumerate(v.level_starts):
            of_level = cells[..., level] if self.order == "raster" else cells[:, level]
            of_level[...] = grids[:, level]
            if start:
                of_level += start
        if v.eol is not None:
            body[..., per_row] = v.eol
        if v.eos is not None:
            out[:, -1] = v.eos
        return out

    def decode(
        self, sequence: np.ndarray, grid: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, int | None]:
        """Returns the grid (L, h, w), int64, of a sequence (T,), and its class, None where it has
        none.

        BOS, class token and EOS may be missing: a trainer's samples often begin after the prompt.
        `grid` is (h, w); where the sequence has EOL tokens they tell it. Raises FormatError, which
        says what is wrong at which place.
        """
        v = self.vocabulary
        tokens = np.asarray(sequence)
        require(
            tokens.ndim == 1 and tokens.dtype.kind in "iu",
            f"a sequence of {tokens.dtype} in the shape {tokens.shape} is no line of integers",
            "give integers: one sequence a row",
        )
        tokens = tokens.astype(np.int64)
        start, end, label = self._bounds(tokens)
        body = tokens[start:end]
        where = np.arange(start, end)
        if v.eol is not None and (ends := body == v.eol).any():
            h, w = self._measure(np.flatnonzero(ends), len(body))
            require(
                grid is None or grid == (h, w),
                f"its EOL tokens tell of a grid of {w}x{h}, not {(grid or (0, 0))[1]}x"
                f"{(grid or (0, 0))[0]}",
                "give the grid as it is, or leave it out",
            )
            body, where = body[~ends], where[~ends]
        elif grid is None:
            raise FormatError(
                "nothing tells the grid of the sequence",
                "give it: --grid HEIGHTxWIDTH; or, where grids differ, export with --eol",
            )
        else:
            h, w = grid
        count = h * w * v.levels
        require(
            len(body) == count,
            f"the sequence has {len(body):,} codes, and a grid of {w}x{h} with "
            f"{count_levels(v.levels)} has {count:,}",
            "give whole sequences, and the grid that they were made with",
        )
        levels = self._level_of_each(h, w)
        indices = body - np.array(v.level_starts)[levels]
        wrong = np.flatnonzero((indices < 0) | (indices >= v.codebook_size))
        if len(wrong):
            raise self._wrong(int(body[wrong[0]]), int(where[wrong[0]]), int(levels[wrong[0]]))
        if self.order == "raster":
            return indices.reshape(h, w, v.levels).transpose(2, 0, 1), label
        return indices.reshape(v.levels, h, w), label

    @property
    def _before(self) -> int:
        """Returns how many tokens come before those of the grid."""
        return (self.vocabulary.bos is not None) + (self.vocabulary.class_start is not None)

    def _rows(self, h: int, w: int) -> tuple[int, int]:
        """Returns how many rows a sequence has, and the tokens of each without its EOL."""
        L = self.vocabulary.levels
        return (h, w * L) if self.order == "raster" else (L * h, w)

    def _bounds(self, tokens: np.ndarray) -> tuple[int, int, int | None]:
        """Returns where the tokens of the grid begin and end, and the class."""
        v, start, end, label = self.vocabulary, 0, len(tokens), None
        if v.bos is not None and start < end and tokens[start] == v.bos:
            start += 1
        if v.class_start is not None and start < end and tokens[start] >= v.class_start:
            label = int(tokens[start]) - v.class_start
            if label >= v.classes:
                raise self._wrong(int(tokens[start]), start, None)
            start += 1
        if v.eos is not None and end > start and tokens[end - 1] == v.eos:
            end -= 1
        return start, end, label

    def _measure(self, ends: np.ndarray, length: int) -> tuple[int, int]:
        """Returns (h, w) from the positions of the EOL tokens among `length` others."""
        v = self.vocabulary
        step = int(ends[0]) + 1
        even = np.array_equal(ends, np.arange(step - 1, length, step)) and length % step == 0
        wide, deep = (v.levels, 1) if self.order == "raster" else (1, v.levels)
        require(
            even and step > 1 and (step - 1) % wide == 0 and len(ends) % deep == 0,
            "its EOL tokens do not stand after rows of one length",
            "give whole sequences of one image each",
        )
        return len(ends) // deep, (step - 1) // wide

    def _level_of_each(self, h: int, w: int) -> np.ndarray:
        L = self.vocabulary.levels
        if self.order == "raster":
            return np.tile(np.arange(L), h * w)
        return np.repeat(np.arange(L), h * w)

    def _wrong(self, token: int, place: int, level: int | None) -> FormatError:
        v = self.vocabulary
        if not 0 <= token < v.size:
            return FormatError(
                f"the id {token} at place {place} is beyond the vocabulary of {v.size:,}",
                "give the ids as they were exported; meta.json tells what each one is",
            )
        wanted = "a code" if level is None or not v.offset else f"a code of level {level + 1}"
        return FormatError(
            f"the id {token} at place {place} is {v.describe(token)}, where {wanted} belongs",
            "mask such ids when you sample, or give whole sequences in the exported order",
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` takes, and more that a reader of meta.json wants to know."""
        v = self.vocabulary
        return {
            "order": self.order,
            "offset": v.offset,
            "codebook_size": v.codebook_size,
            "levels": v.levels,
            "level_starts": v.level_starts,
            "vocabulary_size": v.size,
            "bos": v.bos,
            "eol": v.eol,
            "eos": v.eos,
            "class_start": v.class_start,
            "classes": v.classes,
            "digits": DIGITS,
            "sequence": self.words(),
        }

    def words(self) -> str:
        """Describes the sequence in words, for a person."""
        v = self.vocabulary
        L = v.levels
        if L == 1:
            body = "the rows of the grid"
        elif self.order == "raster":
            body = f"the rows of the grid, {L} levels of a place side by side"
        else:
            body = f"the rows of level 1, then those of level 2, up to {L}"
        parts = [
            "BOS" if v.bos is not None else "",
            "the class" if v.class_start is not None else "",
            body + (", EOL after each row" if v.eol is not None else ""),
            "EOS" if v.eos is not None else "",
        ]
        return "; ".join(filter(None, parts))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Layout":
        """Parses the layout in meta.json. Raises FormatError where it cannot be."""
        names = [*asdict(Vocabulary(2, 1))]
        damaged = "meta.json is damaged"
        require(all(name in value for name in ("order", *names)), damaged)
        require(value["order"] in ORDERS and type(value["offset"]) is bool, damaged)
        numbers = [value[name] for name in names if name != "offset"]
        require(all(number is None or is_int(number, 0, IDS_MAX) for number in numbers), damaged)
        require(is_int(value["codebook_size"], 2, IDS_MAX), damaged)
        require(
            is_int(value["levels"], 1, 1 << 16) and is_int(value["classes"], 0, IDS_MAX), damaged
        )
        v = Vocabulary(**{name: value[name] for name in names})
        expected = Vocabulary.make(
            v.codebook_size,
            v.levels,
            v.offset,
            v.bos is not None,
            v.eol is not None,
            v.eos is not None,
            v.classes,
        )
        require(v == expected, damaged)
        return cls(v, cast(Order, value["order"]))


def _checked(classes: np.ndarray | None, n: int, count: int) -> np.ndarray:
    """Returns the classes of n images, int64."""
    assert classes is not None
    assert classes.shape == (n,)
    if n and (classes.min() < 0 or classes.max() >= count):
        raise UsageError(f"an image has no class among the {count}", "leave the class tokens out")
    return classes.astype(np.int64)
