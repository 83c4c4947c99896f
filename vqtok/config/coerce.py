"""Turns values from flags, recipes and files into settings, each checked and of its type."""

import difflib
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vqtok.config import registry
from vqtok.errors import FormatError, UsageError

TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    tuple[str, ...]: "a list of texts",
    tuple[int, ...]: "a list of whole numbers",
    tuple[float, ...]: "a list of numbers",
}
# Settings that are younger than format 1, and what files without them were made with.
OLD_DEFAULTS = {
    "level_dropout": 0.0,
    "shortcut": False,
    "architecture": "pixelcnn",
    "output": "softmax",
    "mixtures": 10,
    "heads": 4,
    "kinds": 1,
    "rows": 0,
    "columns": 0,
    "network": "folded",
    "stages": (),
    "attention": (),
    "groups": 0,
    "z_channels": 0,
    "decoder_widths": (),
    "decoder_depths": (),
    "encoder_layers": (),
    "decoder_layers": (),
    "input_mean": (),
    "input_std": (),
    "distance": "l2",
    "product": False,
    **{name: setting.default for name, setting in registry.ADDED.items()},
}
T = TypeVar("T")


def require(ok: bool, message: str, fix: str) -> None:
    if not ok:
        raise UsageError(message, fix)


def check_range(name: str, value: float, low: float, high: float) -> None:
    require(
        low <= value <= high,
        f"{name} is {value}, outside [{low}, {high}]",
        f"choose a value from {low} to {high}",
    )


def check_added(config: Any) -> None:
    """Raises UsageError where a setting that an entry of the registry added is out of its range."""
    for name in registry.ADDED.keys() & vars(config).keys():
        setting = registry.ADDED[name]
        check_range(name.replace("_", " "), getattr(config, name), setting.low, setting.high)


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    require(
        value in choices,
        f"{name} {reprlib.repr(value)} is not known",
        f"choose one of {', '.join(choices)}",
    )


def override(config: Any, values: Mapping[str, Any], origin: str) -> Any:
    types, changes = get_type_hints(type(config)), {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.0)
            raise UsageError(f"{origin} has the unknown key {key!r}", f"did you mean {near[0]!r}?")
        old = getattr(config, key)
        if hasattr(old, "__dataclass_fields__"):
            require(
                isinstance(value, Mapping),
                f"{origin}: {key} is not a table",
                f"write it as [{key}]",
            )
            changes[key] = override(old, value, origin)
        else:
            changes[key] = _convert(key, value, types[key], origin)
    return replace(config, **changes)


def _convert(key: str, value: Any, kind: Any, origin: str) -> Any:
    # TOML's own limit; Python refuses to turn the largest into float or text
    if type(value) is int and abs(value) >= 2**63:
        raise UsageError(f"{origin}: {key} is too large a number", f"write {TYPES[kind]}")
    if kind is float and type(value) is int:
        return float(value)
    entry = get_args(kind)[0] if get_origin(kind) is tuple else None
    if entry and isinstance(value, list | tuple) and all(type(v) is entry for v in value):
        return tuple(value)
    require(
        type(value) is kind, f"{origin}: {key} is {reprlib.repr(value)}", f"write {TYPES[kind]}"
    )
    return value


def from_dict(kind: type[T], values: Any, origin: str) -> T:
    """Builds a config dataclass from a file's JSON; raises FormatError where keys, types or values
    are wrong.
    """
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or not names - set(OLD_DEFAULTS) <= set(values) <= names:
        raise FormatError(
            f"{origin} holds no valid {kind.__name__}",
            "the file is damaged, or written by a newer vqtok",
        )
    try:
        return override(
            kind(),
            {**{key: value for key, value in OLD_DEFAULTS.items() if key in names}, **values},
            origin,
        )
    except UsageError as error:
        raise FormatError(
            f"{origin}: {error}", "the file is damaged, or written by a newer vqtok"
        ) from None
