"""Errors that a user can cause, each kind with one sentence and one fix."""

from typing import Self


class VqtokError(Exception):
    """An error that a user can cause and mend.

    `fix` says what to do, in words for a caller of the library. The command line prints two lines:
    the message, then `command_fix`, which speaks of options; by default it is `fix`.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str, command_fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix
        self.command_fix = fix if command_fix is None else command_fix

    def about(self, origin: object) -> Self:
        """Returns the same error, with what it is about named before the message, once."""
        if str(self).startswith(f"{origin}: "):
            return self
        return type(self)(f"{origin}: {self}", self.fix, self.command_fix)

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str]]:
        """Keeps all of it when it is sent to another process."""
        return type(self), (str(self), self.fix, self.command_fix)


class UsageError(VqtokError):
    """Options or arguments that make no sense together or are out of range."""

    exit_code = 2


class InputError(VqtokError):
    """An image or data set cannot be found or read."""


class OutputError(VqtokError):
    """A result cannot be written: it exists, the folder refuses, the disk is full."""


class FormatError(VqtokError):
    """A codes or weights file is damaged, hostile, of a newer format, or not one of ours."""


class ModelError(VqtokError):
    """A model is not found, or is not the one a file was written with."""


class TrainingError(VqtokError):
    """Training cannot start, go on or be resumed."""
