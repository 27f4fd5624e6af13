"""The version of the installed package, which pyproject.toml states."""

from importlib.metadata import version as _version

version = _version("rlvar")
