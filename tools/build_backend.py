"""The build backend: scikit-build-core, with sdists that hold exactly what git tracks.

scikit-build-core selects an sdist's files by patterns, so an untracked file that matches one
would be published. In a git checkout this backend hands it the list of tracked files instead; where
git is not there, or will not read the checkout, it says so and leaves it at the patterns.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403


def _tracked_files() -> list[str]:
    """Return the paths that git tracks here, or [] where it cannot say: outside of a checkout, for one."""
    if not Path(".git").exists():
        return []
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"git cannot list the files of the sdist ({error}): patterns select them", file=sys.stderr)
        return []
    return [name for name in listing.stdout.split("\0") if name and Path(name).is_file()]


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """Build an sdist of the tracked files."""
    settings = dict(config_settings or {})
    tracked = _tracked_files()
    if tracked:
        settings["sdist.include"] = ["/" + name for name in tracked]
    return str(_backend.build_sdist(sdist_directory, settings))
