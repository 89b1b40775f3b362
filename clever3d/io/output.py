"""Files written whole or not at all: an interrupted or failed write leaves what was there before."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clever3d.errors import DataError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new path beside ``path`` to write to; it takes ``path``'s place when the block ends without an error.

    The new path has the same suffix. Two that write at once do not disturb each other: the last one wins.
    Raises DataError when the file cannot be written (no folder, no permission, no space left).
    """
    path = Path(path)
    draft = path.with_name(f".{path.stem[:100]}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    """Make sure, by writing an empty file beside it, that ``path`` can be written, before the work that fills it.

    Raises DataError when it has none of the ``suffixes``, is a folder, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{path} cannot be written: its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise DataError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    probe = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def save_npz(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write named arrays as an uncompressed .npz at exactly ``path``, whole or not at all; DataError if that fails."""
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
