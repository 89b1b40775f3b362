"""Training state on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from clever3d.errors import CheckpointError

#: Name of the state in a run's folder.
STATE_FILE = "state.pt"
#: What torch's unpickler raises besides its own errors, depending on which byte of a file is wrong.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes a dictionary of tensors and plain values so that ``path`` is always the old file or the new one, whole.

    Raises:
        CheckpointError: the disk is full or not writable; the old file is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        raise CheckpointError(
            f"the training state could not be written to {path} ({error}); the previous one is intact. "
            "Free some space or fix the folder's permissions, then start the same command with --resume"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Reads what :func:`save_state` wrote.

    Raises:
        CheckpointError: no such file, or not a training state.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no training state at {path}: start without --resume, or check --out")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, *_DAMAGE) as error:
        raise CheckpointError(
            f"{path} is not a readable training state ({error}): delete it and start again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a training state but a {type(state).__name__}: check --out")
    return state
