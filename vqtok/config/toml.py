"""Reads and writes settings as text: TOML recipes, KEY=VALUE, durations."""

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

from vqtok.config.recipe import Recipe
from vqtok.errors import InputError, UsageError


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads the nested values of a TOML recipe, unchecked: `Recipe.override` checks them."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the recipe {path}: {error.strerror}", "give the path of a TOML file"
        ) from None
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{path} is not TOML: {error}", "mend the line it names") from None


def parse_setting(text: str) -> dict[str, Any]:
    """Parses "prior.width=192" to {"prior": {"width": 192}}; the value is written as in TOML, a
    bare word counts as a string.
    """
    key, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        try:
            setting = tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            setting = tomllib.loads(f"{key} = {_toml(value.strip())}")
        if not setting:  # all of it was a comment
            raise ValueError
        return setting
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError
        raise UsageError(f"{text!r} is no setting", "write it like prior.width=192") from None


def parse_duration(text: str) -> float:
    """Parses '90', '90s', '10m', '1.5h' or '1h30m' to seconds.

    Only a lone number goes without a unit: '1h30' could mean two things.
    """
    text, number = text.strip(), r"(\d+(?:\.\d+)?)"
    lone = re.fullmatch(number, text)
    match = re.fullmatch(
        f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", f"{text}s" if lone else text
    )
    if not match or not text:
        raise UsageError(f"{text!r} is no duration", "write it like 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def to_toml(recipe: Recipe) -> str:
    """Writes the recipe as a TOML file that `read_recipe` and `Recipe.override` turn into an equal
    one.
    """
    values = recipe.to_dict()
    lines = [
        f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)
    ]
    for table, entries in values.items():
        if isinstance(entries, dict):
            lines += [
                "",
                f"[{table}]",
                *(f"{key} = {_toml(value)}" for key, value in entries.items()),
            ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Writes numbers, strings, booleans and lists of strings, which are alike in JSON and TOML but
    for two things.
    """
    # TOML has no \ud83d\ude00 for one letter
    return "inf" if value == math.inf else json.dumps(value, ensure_ascii=False)
