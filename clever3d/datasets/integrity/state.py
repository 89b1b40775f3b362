"""What a check has done so far, in a file: an interrupted one goes on, and a later one reads only what has changed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from clever3d.datasets.integrity.files import files_unchanged
from clever3d.datasets.integrity.frames import Checked
from clever3d.errors import DataError

FORMAT = "clever3d.data-check-state.v2"


class State:
    """A file of lines of JSON: which data set, then one line for each frame that was checked.

    A line holds the frame's fingerprint, the sizes and times of its files, and what was found. It counts as long as
    neither has changed, and, for a full check, if it is from a full one. Lines are read when they are asked for.

    path: made if it is not there. anew: start from nothing, whatever is there.
    Raises DataError if the file cannot be read or written, is no such state, or is that of another data set.
    """

    def __init__(self, path: Path, dataset: str, root: Path, *, anew: bool = False) -> None:
        self.path = path
        self._head = {"format": FORMAT, "dataset": dataset, "root": str(root.resolve())}
        self._lines: dict[str, int] = {}  # fingerprint -> where its line begins
        if path.exists() and not path.is_file():
            raise DataError(f"the state of the check cannot be kept in {path}: it is no file; give another")
        try:
            self._file = path.open("w+b" if anew or not path.exists() else "r+b")
        except OSError as error:
            message = f"the state of the check cannot be kept in {path}: {error.strerror}; give another file"
            raise DataError(message) from error
        try:
            self._load()
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> State:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # a line that could not be written has been reported; closing tries again
            self._file.close()

    def __len__(self) -> int:
        return len(self._lines)

    def find(self, fingerprint: str, *, fast: bool) -> Checked | None:
        """What was found in a frame, if its files are as they were; what a fast check found counts only for `fast`."""
        if fingerprint not in self._lines:
            return None
        self._file.seek(self._lines[fingerprint])
        line = json.loads(self._file.readline())
        files = tuple((path, size, changed) for path, size, changed in line["files"])
        if (line["fast"] and not fast) or not files_unchanged(files):
            return None
        faults = tuple((kind, path, message) for kind, path, message in line["faults"])
        sizes = tuple(None if size is None else (size[0], size[1]) for size in line["sizes"])
        labels, boxes, sweeps = line["looked_at"]
        return Checked(faults, line["points"], sizes, files, (labels, boxes, sweeps))

    def add(self, fingerprint: str, frame_id: str, checked: Checked, *, fast: bool) -> None:
        """Write down what was found in a frame; it is in the file when this returns."""
        self._write({"frame": frame_id, "print": fingerprint, "fast": fast, **vars(checked)})

    def _load(self) -> None:
        first = self._file.readline()
        if not first:
            self._write(self._head)
            return
        head = _parse(first)
        if head.get("format") != FORMAT:
            raise DataError(f"{self.path} is no state of a check of this version; give another file, or remove it")
        if head != self._head:
            other, this = (f"{h.get('dataset')}:{h.get('root')}" for h in (head, self._head))
            raise DataError(f"{self.path} is the state of a check of {other}, not of {this}; give another file")
        at = self._file.tell()
        for line in self._file:
            fields = _parse(line)
            if not line.endswith(b"\n") or "print" not in fields:
                break  # cut off while it was written: what follows is checked again
            self._lines[fields["print"]] = at
            at += len(line)
        self._file.truncate(at)

    def _write(self, fields: dict[str, Any]) -> None:
        try:
            at = self._file.seek(0, 2)
            self._file.write(json.dumps(fields).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}; make room and run it again") from error
        if "print" in fields:
            self._lines[fields["print"]] = at


def _parse(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
