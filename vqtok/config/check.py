"""Checks that all settings share."""

import reprlib

from vqtok.errors import UsageError


def check(ok: bool, message: str, fix: str) -> None:
    if not ok:
        raise UsageError(message, fix)


def check_range(name: str, value: float, low: float, high: float) -> None:
    check(
        low <= value <= high,
        f"{name} is {value}, outside [{low}, {high}]",
        f"choose a value from {low} to {high}",
    )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    check(
        value in choices,
        f"{name} {reprlib.repr(value)} is not known",
        f"choose one of {', '.join(choices)}",
    )
