"""The version number, alone: modules that write it into files need not import the package."""

__version__ = "0.1.0"
