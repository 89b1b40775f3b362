"""One run at a time in a folder: a file that the system keeps locked for as long as the process lives."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from clever3d.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows: there the file is made, but keeps nobody out
    fcntl = None  # type: ignore[assignment]

_HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Lock:
    """A lock on `path`. It ends with the process, kill -9 included, and workers that were spawned do not hold it.

    Where the file system knows no locks (flock(2): ENOLCK, EOPNOTSUPP) it keeps nobody out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Make the file and its folders, and lock it. DataError if another run has it; OSError as the disk gives it."""
        while self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # the run before has just taken the folder away
                continue
            try:
                self._lock(descriptor)
                if not self._is_at_path(descriptor):  # the run before has just let go of it and taken it away
                    continue
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                self._descriptor, descriptor = descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def release(self) -> None:
        """Take the file away, if it is still ours, and let go. Does nothing if the lock was not taken."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            if self._is_at_path(descriptor):
                self.path.unlink()
        os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                return
            process = os.read(descriptor, 20).decode(errors="replace") or "unknown"
            raise DataError(
                f"another run is writing here: {self.path.parent.parent} (process {process}); wait until it has ended, "
                "or choose another folder"
            ) from None

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False
