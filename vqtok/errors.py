"""What can go wrong through a user's input, each kind with one sentence and one way out."""


class VqtokError(Exception):
    """An error a user can cause and mend.

    The command line prints two lines: the message, then `fix`.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


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
