"""Where clever3d keeps what it can make again. A leaf, like errors.py: every room may import it."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`CLEVER3D_CACHE`, else `clever3d` in `XDG_CACHE_HOME` or in `~/.cache`. Need not exist.

    Raises RuntimeError where no variable says it and the user has no home.
    """
    if folder := os.environ.get("CLEVER3D_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clever3d"
