"""A path as data sources see it, and the protocol of a data source."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vqtok.data.dataset import DataOptions, Dataset
from vqtok.data.splits import Split

_HEAD = 512  # bytes by which a file is recognized


@dataclass(frozen=True)
class Place:
    """A file with its first bytes, or a folder with the names in it; the other pair is empty."""

    path: Path
    head: bytes = b""
    names: tuple[str, ...] = ()  # sorted, without hidden ones

    @classmethod
    def of(cls, path: Path) -> "Place":
        """Looks at a path that exists. Raises OSError."""
        if path.is_dir():
            names = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
            return cls(path, names=tuple(names))
        with path.open("rb") as file:
            return cls(path, file.read(_HEAD))

    def named(self, *endings: str) -> bool:
        """Whether it is a file whose name ends so."""
        return bool(self.head) and self.path.name.endswith(endings)


# Opens what it recognizes, and returns None of anything else. Raises InputError where the place is
# its own and damaged; OSError is reported by the caller.
DataSource: TypeAlias = Callable[[Place, Split, DataOptions], Dataset | None]
