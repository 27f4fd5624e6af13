"""The build backend: scikit-build-core, with sdists that hold exactly what git tracks.

scikit-build-core selects an sdist's files by patterns, so an untracked file that matches one
would be published. In a git checkout this backend hands it the list of tracked files instead.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403


def _tracked_files() -> list[str]:
    """Return the paths that git tracks here, or [] where this is not the root of a checkout."""
    if not Path(".git").exists():
        return []
    listing = subprocess.run(["git", "ls-files", "-z"], stdout=subprocess.PIPE, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name and Path(name).is_file()]


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Build an sdist of the tracked files."""
    settings = dict(config_settings or {})
    tracked = _tracked_files()
    if tracked:
        settings["sdist.include"] = ["/" + name for name in tracked]
    return str(_backend.build_sdist(sdist_directory, settings))
