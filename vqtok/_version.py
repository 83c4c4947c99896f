"""The version, alone: whoever writes it into a file need not import the package's door."""

__version__ = "0.1.0"
