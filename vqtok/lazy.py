"""Names of a package that are imported when they are first asked for."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, public: Sequence[str], **names: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` of a package: `names` says which names each of its
    modules has, as in `color="WHITE Color"`, and `public` which `dir` lists.
    """
    homes = {name: f"{package}.{module}" for module in names for name in names[module].split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find, lambda: sorted(public)
